"""Networks that several runs made are counted once; old formats are filled or refused with a word."""

import dataclasses
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from report.runs import MadeUpRun, made_up_run, set_accuracy

from sipp_bench.report import prose
from sipp_bench.report.bounds import bound_counts
from sipp_bench.report.collect import collect
from sipp_bench.report.potential import potential_lacks, potential_table
from sipp_bench.report.summaries import accuracy_summary, latency_samples, time_samples

QUICK = Path(__file__).parents[2] / "reports" / "quick" / "data"


def again(run: MadeUpRun, methods: tuple[str, ...], keeps: tuple[float, ...]) -> MadeUpRun:
    """Another run that makes some of the same networks, and measures something else of them."""
    some = run.cells["method"].isin(methods) & run.cells["keep"].isin(keeps)
    cells = run.cells[some].reset_index(drop=True)
    ids = set(cells["id"])
    pairs = [[0.001, 0.002]] * len(cells)
    timings = run.timings[run.timings["id"].isin(ids)].reset_index(drop=True)
    return dataclasses.replace(
        run,
        meta=run.meta | {"cells": list(cells["id"])},
        cells=cells.assign(corrupted_accuracy=0.25),
        layers=run.layers[run.layers["id"].isin(ids)],
        checks=run.checks.iloc[:0],
        timings=timings.assign(latency_dense_seconds=pairs, latency_pruned_seconds=pairs, fit_seconds=99.0),
        arrays={},
    )


def test_equal_networks_are_counted_once_with_the_measures_of_both() -> None:
    run = made_up_run()
    beyond = again(run, ("sipp-det", "magnitude"), (0.5, 0.2))
    report = collect({"beyond": beyond, "quick": run})
    assert len(report.done) == len(run.cells)
    assert [target.run for target in report.targets()] == ["quick"], "the run with more cells stands for both"
    measured = report.cells["corrupted_accuracy"].notna()
    assert measured.sum() == len(beyond.cells)
    assert set(report.cells[measured]["method"]) == {"sipp-det", "magnitude"}
    assert accuracy_summary(report.done)["seeds"].max() == 3
    assert len(report.layers) == len(run.layers)
    assert bound_counts(report)["blocks"].sum() == run.checks.query("on == 'S'")["blocks"].sum()
    assert len(latency_samples(report.timings)) == 2 * len(beyond.cells)
    assert 99.0 not in set(time_samples(report.timings)["seconds"]), "the time of another run is another sample"
    said = dict(zip(report.runs, prose.what_was_run(report), strict=True))
    assert f"{len(beyond.cells)} of its cells are equal by content" in said["beyond"]
    assert "to cells of run quick" in said["beyond"]
    assert f"Of {len(beyond.cells)} planned cells, {len(beyond.cells)} finished" in said["beyond"]
    assert "equal by content" not in said["quick"]


@pytest.mark.parametrize("column", ["checkpoint_sha256", "mask_sha256", "accuracy", "retrained_sha256"])
def test_networks_that_differ_in_anything_stay_apart(column: str) -> None:
    run = made_up_run()
    other = again(run, ("sipp-det",), (0.5,))
    other.cells[column] = 0.123 if column == "accuracy" else "another"
    report = collect({"quick": run, "other": other})
    assert len(report.done) == len(run.cells) + len(other.cells)
    assert report.merged.again.empty


def test_cells_without_hashes_have_no_content_to_compare() -> None:
    run = made_up_run()
    run.cells["mask_sha256"] = None
    assert len(collect({"one": run, "two": run}).done) == 2 * len(run.cells)


def test_beyond_is_quick_again_in_the_published_data() -> None:
    """216 networks of `beyond` are networks of `quick`; whichever was published, none is there twice."""
    cells = pd.read_csv(QUICK / "cells.csv")
    others = ("layers", "checks", "timings", "skipped")
    empty = dataclasses.replace(made_up_run(), **{name: getattr(made_up_run(), name).iloc[:0] for name in others})
    runs = {
        str(label): dataclasses.replace(empty, cells=rows.drop(columns="run").reset_index(drop=True))
        for label, rows in cells.groupby("run", sort=False)
    }
    once = collect(runs).done
    content = ["network", "data", "seed", "method", "keep", "checkpoint_sha256", "mask_sha256"]
    assert not once.duplicated(content).any()
    assert len(once) == len(cells.drop_duplicates(content)) == 630
    assert (once["corrupted_accuracy"].notna()).sum() == 216


def test_an_old_format_is_filled_from_cells_of_the_same_checkpoint() -> None:
    old, new = made_up_run(), made_up_run(methods={"snip": "snip"})
    old.cells["dense_validation_accuracy"] = np.nan
    new.cells["dense_validation_accuracy"] = new.cells["seed"].map({0: 0.90, 1: 0.91, 2: np.nan})
    target = next(collect({"old": old, "new": new}).targets())
    filled = target.cells.groupby("seed")["dense_validation_accuracy"].first()
    assert filled.dropna().to_dict() == {0: 0.90, 1: 0.91}
    lacking = (old.cells["seed"] == 2).sum()
    assert f"Of {len(old.cells)} cells {lacking} have no prune potential" in potential_lacks(target)
    table = potential_table(target)
    assert table is not None
    assert f"{len(old.cells) - lacking} cells take the latter from other cells" in table.caption
    assert {row[-1] for row in table.rows} == {"2"}


def test_what_cannot_be_filled_is_refused_with_a_word() -> None:
    target = next(collect({"run": made_up_run()}).targets())
    assert potential_table(target) is None
    assert "54 cells 54 have no prune potential" in potential_lacks(target)
    assert "Run the suite again" in potential_lacks(target)


def test_the_prune_potential_is_that_of_validation() -> None:
    run = made_up_run()
    run.cells["dense_validation_accuracy"] = 0.9
    for method in run.cells["method"].unique():
        for keep, validation in ((0.5, 0.8), (0.2, 0.896), (0.05, 0.894)):
            set_accuracy(run, method, keep, [0.9] * 3, validation)
    set_accuracy(run, "random", 0.2, [0.9] * 3, 0.8)
    set_accuracy(run, "magnitude", 0.5, [0.1] * 3, 0.95)
    target = next(collect({"run": run}).targets())
    table = potential_table(target)
    assert table is not None
    assert potential_lacks(target) == ""
    rows = {row[0]: row[1:-1] for row in table.rows}
    assert rows["sipp-det"] == ["none, none, none", "80.0, 80.0, 80.0"], "50 % fails, 80 % passes, 95 % does not"
    assert rows["magnitude"] == ["80.0, 80.0, 80.0"] * 2
    assert rows["random"] == ["none, none, none"] * 2
