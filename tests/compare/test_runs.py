"""Run folders against each other: each planted change is found, and nothing else."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sipp_bench.compare import Comparison, compare
from sipp_bench.compare.runs import epsilon_tolerance
from sipp_bench.compare.timings import LOST_REFERENCE, NOT_IN_TURNS, ONE_RUN
from sipp_bench.errors import OptionError, StoreError
from sipp_bench.store.cell import Cell
from sipp_bench.store.folder import Store
from sipp_bench.store.records import read_json, sealed_json

SEEDS = range(8)
CELLS = [Cell("net", "digits", seed, method, keep) for method in ("a", "b") for seed in SEEDS for keep in (0.5, 0.1)]
MACHINE = {"cpu": "one", "cores": 2}
META = {
    "suite": {"name": "small", "text": "", "sha256": "abc"},
    "cells": [cell.id for cell in CELLS],
    "machine": MACHINE,
    "versions": {"torch": "1"},
    "commit": "c0ffee",
    "dirty": False,
}
CHECK = {
    "claim": "C2", "on": "S", "layer": "fc1.weight", "blocks": 2, "vacuous": 0, "exceeding": 0, "points": 8,
    "drawn": 0, "exceeding_certain": 0, "active": 16, "verdict": "holds",
}  # fmt: skip
LAYER = {"layer": "fc1.weight", "weights": 10, "requested": 5, "kept": 5, "epsilon_max": 0.5, "epsilon_mean": 0.25}

Change = Callable[[dict[str, Any]], object]


def write_run(path: Path, meta: dict[str, Any] = META) -> Path:
    with Store(path, meta) as store:
        for index, cell in enumerate(CELLS):
            result = {
                "status": "done", "error": None, "accuracy": 0.9 - 0.01 * (cell.seed % 3), "weights": 10,
                "requested": 5, "kept": 5, "multiply_adds": 5,
                "num_points": 8, "delta": 0.0, "method_name": cell.method, "options": {},
                "mask_sha256": f"mask{index}", "checkpoint_sha256": f"net{cell.seed}", "layers": [LAYER],
                "checks": [CHECK],
            }  # fmt: skip
            jitter = 1 + 0.01 * (index % 5)
            timing = {f"{part}_seconds": 2 * jitter for part in ("fit", "prune", "evaluate", "check")}
            timing |= {"reference_seconds": 2.0}
            store.write_cell(cell, result, timing, predicted={"dense": np.array([1])})
    return path


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return write_run(tmp_path / "base")


@pytest.fixture
def new(base: Path) -> Path:
    return Path(shutil.copytree(base, base.with_name("new")))


def edit(run: Path, change: Change, cells: list[Cell] = CELLS[:1], kind: str = "json") -> None:
    for cell in cells:
        file = run / "cells" / f"{cell.id}.{kind}"
        content = read_json(file)
        change(content)
        file.write_text(sealed_json(content))


def only(comparison: Comparison, status: str) -> str:
    """The name and message of the only finding that is not the same."""
    (finding,) = [finding for finding in comparison.findings if finding.status != "same"]
    assert finding.status == status
    return f"{finding.name}: {finding.message}"


def test_a_run_is_the_same_as_itself(base: Path) -> None:
    comparison = compare(base, base)
    assert comparison.exit_code == 0
    assert comparison.counts["same"] == len(comparison.findings) == len(CELLS) + 2 + 8


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda cell: cell.update(mask_sha256="another"), "mask_sha256 mask0 -> another"),
        (lambda cell: cell.update(kept=4), "kept 5 -> 4"),
        (lambda cell: cell["layers"][0].update(kept=4), "fc1.weight kept 5 -> 4"),
        (lambda cell: cell.update(requested=6), "requested 5 -> 6"),
        (lambda cell: cell["checks"][0].update(verdict="violated"), "C2 S fc1.weight: holds -> violated"),
        (lambda cell: cell["checks"].clear(), "holds -> no verdict"),
        (lambda cell: cell["layers"][0].update(epsilon_max=0.500005), "epsilon_max 0.5 -> 0.500005"),
        (lambda cell: cell["layers"][0].update(epsilon_mean=None), "epsilon_mean 0.25 -> nan"),
        (lambda cell: cell["layers"].clear(), "layer fc1.weight is in one run only"),
        (lambda cell: cell.update(status="failed", error="ValueError: no"), "Failed in NEW: ValueError: no"),
    ],
)
def test_one_planted_change_is_a_regression(base: Path, new: Path, change: Change, said: str) -> None:
    edit(new, change)
    comparison = compare(base, new)
    assert comparison.exit_code == 1
    message = only(comparison, "regression")
    assert CELLS[0].id in message
    assert said in message


def test_bounds_may_differ_by_rounding(base: Path, new: Path) -> None:
    edit(new, lambda cell: cell["layers"][0].update(epsilon_max=0.5 + 0.9 * epsilon_tolerance(0.5, 0.5, 10)))
    assert compare(base, new).exit_code == 0
    assert epsilon_tolerance(0.5, 0.5, 10) == pytest.approx(0.5 * 28 * 2.0**-24)


def test_a_missing_cell_is_a_regression(base: Path, new: Path) -> None:
    (new / "cells" / f"{CELLS[3].id}.json").unlink()
    comparison = compare(base, new)
    assert comparison.exit_code == 1
    assert only(comparison, "regression") == f"{CELLS[3].id}: Missing in NEW."


def test_an_empty_cell_file_is_refused_by_name(base: Path, new: Path) -> None:
    (new / "cells" / f"{CELLS[3].id}.json").write_text("")
    with pytest.raises(StoreError, match=CELLS[3].id):
        compare(base, new)


def test_nothing_in_common_does_not_compare(base: Path, tmp_path: Path) -> None:
    with Store(tmp_path / "empty", META):
        pass
    assert compare(base, tmp_path / "empty").exit_code == 2
    assert compare(tmp_path / "empty", base).exit_code == 2


def test_missing_times_and_accuracies_are_regressions(base: Path, new: Path) -> None:
    first = [cell for cell in CELLS if cell.method == "a"]
    edit(new, lambda timing: timing.pop("prune_seconds"), first, "timing.json")
    assert "net on digits, a: prune: Measured in BASE, but not in NEW." in only(compare(base, new), "regression")
    edit(new, lambda timing: timing.pop("reference_seconds"), CELLS[:1], "timing.json")
    lost = compare(base, new)
    assert lost.exit_code == 1
    assert {f.message for f in lost.findings if f.kind == "timing"} == {LOST_REFERENCE}
    shutil.copytree(base, new, dirs_exist_ok=True)
    edit(new, lambda cell: cell.update(accuracy=None))
    assert "No accuracy in NEW of 1 cells" in only(compare(base, new), "regression")


def test_other_checkpoints_do_not_compare(base: Path, new: Path) -> None:
    edit(new, lambda cell: cell.update(checkpoint_sha256="another", mask_sha256="another"))
    comparison = compare(base, new)
    assert "The checkpoints differ" in only(comparison, "not comparable")
    assert comparison.exit_code == 0, "the other cells are equal"
    edit(new, lambda cell: cell.update(checkpoint_sha256="another"), CELLS)
    assert compare(base, new).exit_code == 2


def test_cells_of_other_settings_do_not_compare(base: Path, new: Path) -> None:
    run = read_json(new / "run.json")
    run["suite"]["sha256"] = "another"
    (new / "run.json").write_text(sealed_json(run))
    assert compare(base, new).exit_code == 0
    edit(new, lambda cell: cell.update(options={"scope": "layer"}, mask_sha256="another"))
    comparison = compare(base, new)
    assert "options is {} and {'scope': 'layer'}" in only(comparison, "not comparable")
    assert "The suite files differ." in comparison.notes


def test_cells_that_failed_before(base: Path, new: Path) -> None:
    edit(base, lambda cell: cell.update(status="failed", error="no"))
    assert "Failed in BASE, done in NEW" in only(compare(base, new), "better")
    edit(new, lambda cell: cell.update(status="failed", error="no"))
    assert "Failed in both" in only(compare(base, new), "not comparable")


def test_times_of_other_machines_compare_as_ratios_only(base: Path, tmp_path: Path) -> None:
    other = write_run(tmp_path / "other", META | {"machine": {"cpu": "one", "cores": 4}, "versions": {"torch": "2"}})
    # A machine that is three times as slow is the same by ratios.
    edit(other, lambda timing: timing.update({k: 3 * v for k, v in timing.items()}), CELLS, "timing.json")
    comparison = compare(base, other)
    assert comparison.exit_code == 0
    assert comparison.counts["same"] == len(comparison.findings)
    assert comparison.notes == ("The machines differ: seconds are not compared.", "torch 1 -> 2")
    for run in (base, other):
        without_reference(run)
    comparison = compare(base, other)
    assert comparison.exit_code == 0
    assert {f.kind for f in comparison.findings if f.status == "not comparable"} == {"timing"}
    assert comparison.counts["not comparable"] == 8


def without_reference(run: Path) -> None:
    """As runs were before a reference operation was timed in every cell."""
    edit(run, lambda timing: timing.pop("reference_seconds"), CELLS, "timing.json")


def test_seconds_of_one_run_a_side_decide_nothing(base: Path, new: Path) -> None:
    first = [cell for cell in CELLS if cell.method == "a"]
    edit(new, lambda timing: timing.update(prune_seconds=1.15 * timing["prune_seconds"]), first, "timing.json")
    assert "a: prune: 1.15 times as slow." in only(compare(base, new), "regression")
    for run in (base, new):
        without_reference(run)
    comparison = compare(base, new)
    assert f"a: prune: 1.15 times as slow. {ONE_RUN}" in only(comparison, "undecided")
    assert comparison.exit_code == 0


@pytest.mark.parametrize("part", ["fit", "prune", "protocol", "evaluate", "check"])
def test_every_part_that_is_timed_is_compared(base: Path, new: Path, part: str) -> None:
    for run in (base, new):
        edit(run, lambda timing: timing.update({f"{part}_seconds": 2.0}), CELLS, "timing.json")
    edit(new, lambda timing: timing.pop(f"{part}_seconds"), CELLS, "timing.json")
    lost = [finding.name for finding in compare(base, new).findings if finding.status == "regression"]
    assert lost == [f"net on digits, {method}: {part}" for method in "ab"]


def test_a_slow_part_is_a_regression_and_a_fast_one_is_better(base: Path, new: Path) -> None:
    first = [cell for cell in CELLS if cell.method == "a"]

    def plant(timing: dict[str, Any]) -> None:
        timing["prune_seconds"] *= 1.15
        timing["check_seconds"] /= 1.12

    edit(new, plant, first, "timing.json")
    comparison = compare(base, new)
    found = {finding.name: finding for finding in comparison.findings if finding.status != "same"}
    assert {name: finding.status for name, finding in found.items()} == {
        "net on digits, a: prune": "regression",
        "net on digits, a: check": "better",
    }
    assert found["net on digits, a: prune"].n == (16, 16)


def lose(points: list[float]) -> Callable[[Path], None]:
    """Take these points of accuracy, by seed, from method a."""

    def plant(run: Path) -> None:
        for cell in CELLS:
            if cell.method == "a":
                edit(run, lambda c, seed=cell.seed: c.update(accuracy=c["accuracy"] - points[seed] / 100), [cell])

    return plant


@pytest.mark.parametrize(
    ("points", "status"),
    [
        ([3, 4, 2, 3, 4, 2, 3, 3], "regression"),
        ([-3, -4, -2, -3, -4, -2, -3, -3], "better"),
        ([1, 1, 1, 1, 1, 1, 1, 1], "undecided"),
        ([9, -9, 9, -9, 9, -9, 9, -9], "undecided"),
        ([0.1, -0.1, 0.1, -0.1, 0.1, -0.1, 0.1, -0.1], "same"),
    ],
)
def test_accuracies_are_paired_by_seed(base: Path, new: Path, points: list[float], status: str) -> None:
    lose(points)(new)
    (finding, other) = [finding for finding in compare(base, new).findings if finding.kind == "accuracy"][::1]
    finding, other = sorted((finding, other), key=lambda f: f.name)
    assert finding.status == status
    assert other.status == "same"
    assert finding.n == (8, 8)
    if status == "undecided":
        assert "too few to decide" in finding.message


def test_other_data_do_not_compare(base: Path, new: Path) -> None:
    run = read_json(new / "run.json")
    run["data"] = {"digits": {"sha256": "another"}}
    (new / "run.json").write_text(sealed_json(run))
    assert [f.status for f in compare(base, new).findings if f.kind == "accuracy"] == ["not comparable"] * 2


def test_strange_arguments(base: Path, tmp_path: Path) -> None:
    file = tmp_path / "timing.json"
    file.write_text('{"benchmarks": []}')
    with pytest.raises(OptionError, match="two run folders, or two files"):
        compare(base, file)
    with pytest.raises(StoreError, match="There is no "):
        compare(base, tmp_path / "nothing")


PARTS = ("fit", "prune", "evaluate", "check")


@pytest.fixture
def turns(base: Path, tmp_path: Path) -> tuple[Path, Path]:
    """Nine runs a side in turns, each as a whole up to 6 % slower or faster than the others, keep ratios far apart."""
    generator = np.random.default_rng(0)
    for number in range(18):
        run = Path(shutil.copytree(base, tmp_path / "turns" / "ab"[number % 2] / str(number)))
        speed = 1 + 0.03 * generator.standard_normal()
        meta = read_json(run / "run.json") | {"started": f"2026-01-01T00:{number:02}:00+00:00"}
        (run / "run.json").write_text(sealed_json(meta))
        for cell in CELLS:
            slow = {f"{part}_seconds": speed * (1 + 9 * cell.keep) for part in PARTS}
            edit(run, lambda timing, slow=slow: timing.update(slow), [cell], "timing.json")
    return tmp_path / "turns" / "a", tmp_path / "turns" / "b"


def test_noise_of_several_runs_is_no_difference(turns: tuple[Path, Path]) -> None:
    comparison = compare(*turns)
    assert {finding.status for finding in comparison.findings} == {"same"}
    assert {finding.n for finding in comparison.findings if finding.kind == "timing"} == {(9, 9)}


def test_which_side_is_base_changes_no_sample(turns: tuple[Path, Path]) -> None:
    """What makes the test exact: with equal code, runs could change sides."""
    one, other = (
        {finding.name: (finding.medians, finding.p) for finding in compare(*sides).findings if finding.kind == "timing"}
        for sides in (turns, turns[::-1])
    )
    assert one == {name: (medians[::-1], p) for name, (medians, p) in other.items() if medians}


@pytest.mark.parametrize("reference", [True, False])
def test_a_slow_method_is_found_by_several_runs(turns: tuple[Path, Path], reference: bool) -> None:
    first = [cell for cell in CELLS if cell.method == "a"]
    for run in turns[1].iterdir():
        edit(run, lambda timing: timing.update(prune_seconds=1.15 * timing["prune_seconds"]), first, "timing.json")
    for run in () if reference else (*turns[0].iterdir(), *turns[1].iterdir()):
        without_reference(run)
    assert "net on digits, a: prune: 1.1" in only(compare(*turns), "regression")


def test_seconds_of_runs_that_took_no_turns_decide_nothing(turns: tuple[Path, Path]) -> None:
    for side in turns:
        for run in side.iterdir():
            without_reference(run)
            edit(run, lambda timing: timing.update(prune_seconds=2.0), CELLS, "timing.json")
    for run in turns[1].iterdir():
        edit(run, lambda timing: timing.update(prune_seconds=3.0), CELLS, "timing.json")
        meta = read_json(run / "run.json") | {"started": "2026-01-02T00:00:00+00:00"}
        (run / "run.json").write_text(sealed_json(meta))
    comparison = compare(*turns)
    undecided = [finding for finding in comparison.findings if finding.status != "same"]
    assert [(f.name, f.status) for f in undecided] == [(f"net on digits, {m}: prune", "undecided") for m in "ab"]
    assert all(NOT_IN_TURNS in finding.message for finding in undecided)


def test_one_changed_cell_of_one_run_is_found(turns: tuple[Path, Path]) -> None:
    run = sorted(turns[1].iterdir())[4]
    edit(run, lambda cell: cell.update(mask_sha256="another"))
    assert f"{CELLS[0].id}, in {run}: Changed: mask_sha256" in only(compare(*turns), "regression")


def test_a_timing_that_some_runs_lack_is_a_regression(turns: tuple[Path, Path]) -> None:
    run = sorted(turns[1].iterdir())[4]
    edit(run, lambda timing: timing.pop("check_seconds"), CELLS, "timing.json")
    lost = [finding for finding in compare(*turns).findings if finding.status == "regression"]
    assert {f.message for f in lost} == {"Missing in 1 of 9 runs of NEW."}
    assert [f.name for f in lost] == [f"net on digits, {method}: check" for method in "ab"]
