"""Differences to magnitude are taken seed by seed, in whatever order a run has its cells."""

import dataclasses
from statistics import fmean

import pandas as pd
import pytest
from report.runs import made_up_run

from sipp_bench.report import comparisons, summaries
from sipp_bench.report.collect import Collected, collect


@pytest.fixture
def report() -> Collected:
    """Methods whose seeds come in other orders, and of which random lacks one."""
    report = collect({"run": made_up_run()})
    cells = report.cells
    # Seeds far apart: pairing 0 with 1 gives other differences than pairing 0 with 0.
    cells = cells.assign(accuracy=cells["accuracy"] / 10 + 0.3 * cells["seed"])
    turned = {
        method: rows if str(method).startswith("magnitude") else rows.iloc[::-1]
        for method, rows in cells.groupby("method")
    }
    cells = pd.concat(turned.values(), ignore_index=True)
    return dataclasses.replace(report, cells=cells[(cells["method"] != "random") | (cells["seed"] != 1)])


def by_hand(cells: pd.DataFrame, method: str, keep: float, base: str = "magnitude") -> list[float]:
    found = {(row.method, row.seed): row.accuracy for row in cells.itertuples() if row.keep == keep}
    return [found[method, s] - found[base, s] for s in (0, 1, 2) if (method, s) in found]


def test_difference_summary_pairs_by_seed(report: Collected) -> None:
    cells = next(report.targets()).cells
    summary = summaries.difference_summary(cells, "magnitude").set_index(["method", "keep"])
    for method in ("sipp-det", "sipp-rand", "random"):
        for keep in (0.5, 0.2, 0.05):
            expected = by_hand(cells, method, keep)
            row = summary.loc[(method, keep)]
            assert row["seeds"] == len(expected) == (2 if method == "random" else 3)
            assert row["difference"] == pytest.approx(fmean(expected))
            assert abs(row["difference"]) < 0.1, "seeds are 0.3 apart"


def test_comparisons_pair_by_seed(report: Collected) -> None:
    cells = next(report.targets()).cells
    for row in comparisons.details(report).itertuples():
        expected = by_hand(cells, row.sipp, row.keep, row.magnitude)
        assert row.difference == pytest.approx(fmean(expected))
        assert row.high - row.low < 0.4, "unpaired, seeds 0.3 apart leave an interval of more than 1"
    (headline,) = comparisons.headlines(report).itertuples()
    each = [by_hand(cells, headline.sipp, keep, headline.magnitude) for keep in (0.5, 0.2, 0.05)]
    assert headline.n == 3
    assert headline.difference == pytest.approx(fmean(map(fmean, each)))
    assert headline.high - headline.low < 0.4
