"""Differences to magnitude are taken seed by seed, in whatever order a run has its cells."""

from statistics import fmean

import pandas as pd
import pytest
from report.runs import made_up_run

from sipp_bench.report import summaries
from sipp_bench.report.collect import collect


@pytest.fixture
def cells() -> pd.DataFrame:
    """Methods whose seeds come in other orders, and of which random lacks one."""
    run = made_up_run()
    cells = next(collect({"run": run}).targets()).cells
    # Seeds far apart: pairing 0 with 1 gives other differences than pairing 0 with 0.
    cells = cells.assign(accuracy=cells["accuracy"] / 10 + 0.3 * cells["seed"])
    turned = {method: rows if method == "magnitude" else rows.iloc[::-1] for method, rows in cells.groupby("method")}
    cells = pd.concat(turned.values())
    return cells[(cells["method"] != "random") | (cells["seed"] != 1)]


def by_hand(cells: pd.DataFrame, method: str, keep: float) -> list[float]:
    found = {(row.method, row.seed): row.accuracy for row in cells.itertuples() if row.keep == keep}
    return [found[method, s] - found["magnitude", s] for s in (0, 1, 2) if (method, s) in found]


def test_difference_summary_pairs_by_seed(cells: pd.DataFrame) -> None:
    summary = summaries.difference_summary(cells, "magnitude").set_index(["method", "keep"])
    for method in ("sipp-det", "sipp-rand", "random"):
        for keep in (0.5, 0.2, 0.05):
            expected = by_hand(cells, method, keep)
            row = summary.loc[(method, keep)]
            assert row["seeds"] == len(expected) == (2 if method == "random" else 3)
            assert row["difference"] == pytest.approx(fmean(expected))
            assert abs(row["difference"]) < 0.1, "seeds are 0.3 apart"
