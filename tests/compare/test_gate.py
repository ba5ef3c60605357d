"""What the gate must see and what must not move it, each the only thing that differs."""

from datetime import UTC, datetime
from pathlib import Path

import pytest

from sipp_bench.compare import compare
from sipp_bench.compare.timings import took_turns
from sipp_bench.store.records import read_json, sealed_json
from tests.compare.test_runs import CELLS, Change, edit, lose, only, write_run


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return write_run(tmp_path / "base")


@pytest.fixture
def new(tmp_path: Path) -> Path:
    return write_run(tmp_path / "new")


@pytest.mark.parametrize(
    "change", [lambda cell: cell.update(mask_sha256=None), lambda cell: cell.update(multiply_adds=None)]
)
def test_a_value_that_is_gone_is_not_the_same(base: Path, new: Path, change: Change) -> None:
    edit(new, change)
    assert "Changed: m" in only(compare(base, new), "regression")
    assert "Changed: m" in only(compare(new, base), "regression")


@pytest.mark.parametrize(("size", "status"), [(0.6, "same"), (0.7, "undecided"), (2.0, "undecided")])
def test_seeds_that_leave_more_than_a_point_open_decide_nothing(
    base: Path, new: Path, size: float, status: str
) -> None:
    """Eight differences of ±x leave t(0.01 / 2 / 2; 7) x sqrt(8 / 7) / sqrt(8) = 1.52 x open; 1.32 x of one test."""
    lose([size, -size] * 4)(new)
    assert {f.name: f.status for f in compare(base, new).findings if f.kind == "accuracy"} == {
        "net on digits, a": status,
        "net on digits, b": "same",
    }


def test_the_accuracy_of_a_seed_is_the_mean_over_all_keep_ratios(base: Path, new: Path) -> None:
    for cell in CELLS:
        if cell.method == "a" and cell.keep == 0.1:
            loss = (0.06, 0.07, 0.08)[cell.seed % 3]
            edit(new, lambda c, by=loss: c.update(accuracy=c["accuracy"] - by), [cell])
    # Seeds 0 to 7: three losses of 6 points, three of 7, two of 8, at one of two keep ratios.
    assert "-3.44 points of accuracy in the mean of 8 seeds" in only(compare(base, new), "regression")


def test_cells_of_other_settings_say_nothing_by_their_accuracies_and_times(base: Path, new: Path) -> None:
    run = read_json(new / "run.json")
    run["suite"]["sha256"] = "another"
    (new / "run.json").write_text(sealed_json(run))
    first = [cell for cell in CELLS if cell.method == "a"]
    edit(new, lambda cell: cell.update(options={"scope": "layer"}, accuracy=0.1), first)
    edit(new, lambda timing: timing.update(prune_seconds=9 * timing["prune_seconds"]), first, "timing.json")
    comparison = compare(base, new)
    assert comparison.exit_code == 0
    assert {f.name for f in comparison.findings if f.kind == "accuracy"} == {"net on digits, b"}
    assert not [
        f.name for f in comparison.findings if f.kind == "timing" and ", a:" in f.name and f.status != "not comparable"
    ]


def test_a_fit_is_one_sample_a_seed_and_a_prune_one_a_keep_ratio(base: Path, new: Path) -> None:
    found = {f.name: f.n for f in compare(base, new).findings if f.kind == "timing"}
    assert (found["net on digits, a: fit"], found["net on digits, a: prune"]) == ((8, 8), (16, 16))


@pytest.mark.parametrize(
    ("order", "turns"), [("abab", True), ("abbaab", True), ("abbba", False), ("aaabbb", False), ("babaaab", False)]
)
def test_turns_are_never_more_than_two_in_a_row(order: str, turns: bool) -> None:
    times = [[datetime(2026, 1, 1, hour, tzinfo=UTC) for hour, s in enumerate(order) if s == side] for side in "ab"]
    assert took_turns(*times) is turns
    assert not took_turns(times[0], [*times[1], None])
