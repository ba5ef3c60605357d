"""Runs on two kinds of processor: other checkpoints are expected, equal ones may differ by rounding alone."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from sipp_bench.compare import Comparison, compare
from sipp_bench.compare.processors import read_pair, summarise
from sipp_bench.errors import OptionError
from sipp_bench.store.records import read_json, sealed_json
from tests.compare.test_runs import CELLS, MACHINE, META, Change, edit, lose, only, write_run

ELSEWHERE = {
    "model": MACHINE | {"cpu": "two"},
    "instructions": MACHINE | {"instructions": "AVX2"},
    "device": MACHINE | {"instructions": "AVX512", "device": "cuda"},
}
HERE = MACHINE | {"instructions": "AVX512"}


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return write_run(tmp_path / "base", META | {"machine": HERE | {"device": "cpu"}})


@pytest.fixture(params=ELSEWHERE)
def new(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    return write_run(tmp_path / "new", META | {"machine": ELSEWHERE[request.param]})


def retrained(run: Path) -> Path:
    for number, cell in enumerate(CELLS):
        edit(run, lambda c, n=number: c.update(checkpoint_sha256="other", mask_sha256=f"other{n}", kept=4), [cell])
    return run


def accuracies(comparison: Comparison) -> list[str]:
    return [finding.status for finding in comparison.findings if finding.kind == "accuracy"]


def test_other_checkpoints_are_expected_and_accuracies_decide(base: Path, new: Path) -> None:
    comparison = compare(base, retrained(new))
    cells = [finding for finding in comparison.findings if finding.kind == "cell"]
    assert {finding.status for finding in cells} == {"not comparable"}
    assert all("Another kind of processor (" in f.message and "as expected" in f.message for f in cells)
    assert "Another kind of processor (" in comparison.notes[0]
    assert (comparison.subject, comparison.exit_code) == ("accuracy", 0)
    lose([3, 4, 2, 3, 4, 2, 3, 3])(new)
    worse = compare(base, new)
    assert (worse.exit_code, sorted(accuracies(worse))) == (1, ["regression", "same"])


def test_noise_of_another_processor_is_no_regression_nor_a_pass(base: Path, new: Path) -> None:
    for cell in CELLS:
        loss = [9, -9, 8, -8, 9, -9, 7, -7][cell.seed] / 100
        edit(
            retrained(new) if cell == CELLS[0] else new,
            lambda c, by=loss: c.update(accuracy=c["accuracy"] - by),
            [cell],
        )
    comparison = compare(base, new)
    assert accuracies(comparison) == ["undecided", "undecided"]
    assert comparison.exit_code == 2, "nothing was decided"


CHOSEN: list[Change] = [
    lambda cell: cell.update(mask_sha256="another"),
    lambda cell: cell.update(kept=4, multiply_adds=4),
    lambda cell: cell["layers"][0].update(kept=4),
    lambda cell: cell["layers"][0].update(epsilon_max=0.5005),
]
COUNTED: list[Change] = [
    lambda cell: cell.update(requested=6, mask_sha256="another"),
    lambda cell: cell.update(weights=9),
    lambda cell: cell["layers"][0].update(requested=4),
    lambda cell: cell["layers"].clear(),
    lambda cell: cell["checks"][0].update(verdict="violated"),
    lambda cell: cell.update(status="failed", error="ValueError: no"),
]


@pytest.mark.parametrize("change", CHOSEN)
def test_equal_checkpoints_may_differ_by_rounding_elsewhere_and_not_here(
    base: Path, new: Path, tmp_path: Path, change: Change
) -> None:
    edit(new, change)
    comparison = compare(base, new)
    assert re.search(r"\): rounding alone can change [\w. ,]+\.$", only(comparison, "undecided"))
    assert (comparison.subject, comparison.exit_code) == ("cell", 0), "the other cells are equal"
    here = write_run(tmp_path / "here", META | {"machine": HERE | {"cores": 64}})
    edit(here, change)
    assert compare(base, here).exit_code == 1


@pytest.mark.parametrize("change", COUNTED)
def test_what_rounding_cannot_change_is_a_regression_on_any_processor(base: Path, new: Path, change: Change) -> None:
    edit(new, change)
    assert only(compare(base, new), "regression")


def test_a_missing_cell_is_one_on_any_processor(base: Path, new: Path) -> None:
    (retrained(new) / "cells" / f"{CELLS[3].id}.json").unlink()
    assert compare(base, new).exit_code == 1


def test_what_is_not_said_excuses_nothing(base: Path, tmp_path: Path) -> None:
    for number, machine in enumerate((None, {}, {"cpu": "one"}, {"cpu": None, "instructions": None})):
        new = write_run(tmp_path / str(number), META | {"machine": machine})
        edit(new, lambda cell: cell.update(mask_sha256="another"))
        assert compare(base, new).exit_code == 1


@pytest.mark.parametrize("key", ["resumed", "workers"])
def test_a_run_that_was_on_two_kinds_is_of_another_kind(base: Path, tmp_path: Path, key: str) -> None:
    other = {"cpu": "two"}
    new = write_run(tmp_path / "new", META | {"machine": HERE})
    meta = read_json(new / "run.json") | {key: [{"machine": other}] if key == "resumed" else {"w": other}}
    (new / "run.json").write_text(sealed_json(meta))
    edit(new, lambda cell: cell.update(mask_sha256="another"))
    assert "(one with AVX512" in only(compare(base, new), "undecided")


def test_the_figures_of_a_pair_by_hand() -> None:
    group: dict[str, Any] = {
        "network": "net", "data": "digits", "method": "a", "keep": 0.5, "seeds": [0, 1, 2],
        "accuracy": [0.9, 0.8, 0.7], "accuracy_new": [0.9, 0.82, 0.77], "dense_accuracy": [0.9, 0.8, 0.75],
        "dense_accuracy_new": [0.9, 0.81, 0.75], "same_checkpoint": [True, False, True],
        "same_mask": [True, True, False],
    }  # fmt: skip
    low = group | {"keep": 0.1, "accuracy": [0.5, 0.5, 0.5], "accuracy_new": [0.5, 0.5, 0.44]}
    found = summarise({"groups": [group, low]})
    counts = ("cells", "cells_with_the_same_checkpoint", "of_these_with_the_same_mask", "networks", "seeds")
    assert [found[key] for key in counts] == [6, 4, 2, 3, 3]
    assert found["dense"] == pytest.approx({"n": 3, "median": 0, "quantile_95": 0.9, "largest": 1})
    assert found["means_of_good"] == pytest.approx({"n": 1, "median": 3, "quantile_95": 3, "largest": 3})
    assert found["means_of_others"]["largest"] == pytest.approx(2)
    # Squares of the changes: (0 + 4 + 49) / 3 and 36 / 3; variances: 100, 43, 0 and 12.
    assert found["seeds_apart"] == pytest.approx(((53 / 3 + 12) / (100 + 43 + 12)) ** 0.5)
    assert (found["tests"], found["tests_rejected"]) == (1, 0)


def test_runs_and_published_ones_are_read_alike(base: Path, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="no cell in common"):
        read_pair(base, Path(__file__).parents[2] / "reports" / "quick" / "data" / "quick.run.json")
    pair = read_pair(base, base)
    assert (len(pair["groups"]), pair["groups"][0]["seeds"]) == (4, list(range(8)))
    assert pair["groups"][0]["accuracy"][:3] == [0.9, 0.89, 0.88]
    published = Path(__file__).parents[2] / "reports" / "quick" / "data" / "quick.run.json"
    assert summarise(read_pair(published, published))["cells"] == 630


def test_the_published_figures_are_those_of_their_accuracies() -> None:
    published = Path(__file__).parents[2] / "reports" / "baselines" / "processors.json"
    pairs = json.loads(published.read_bytes())["pairs"]
    for pair in pairs:
        found = summarise(pair)
        assert found.keys() == pair["summary"].keys()
        for name, figure in pair["summary"].items():
            assert found[name] == pytest.approx(figure), (pair["base"]["run"], name)
    quick = pairs[0]
    assert quick["base"]["machine"]["cpu"] != quick["new"]["machine"]["cpu"]
    assert (quick["summary"]["cells"], quick["summary"]["cells_with_the_same_checkpoint"]) == (630, 0)
    assert all(pair["summary"]["tests_rejected"] == 0 for pair in pairs), "a false alarm of compare"
