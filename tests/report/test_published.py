"""The numbers on the published pages, computed anew from the raw data beside them."""

import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from statistics import fmean, stdev

import pandas as pd
import pytest
from scipy import stats

ROOT = Path(__file__).parents[2]
SITES = sorted(page.parent for page in (ROOT / "reports").glob("*/accuracy.html"))
HALF = 0.05 + 1e-9
"""Half of the last digit that is shown of a percentage."""


class Tables(HTMLParser):
    """The tables of a page: caption -> rows of text, the heads first."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.found: dict[str, list[list[str]]] = {}
        self.caption = self.into = ""
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "figcaption":
            self.caption, self.into = "", "caption"
        elif tag == "table":
            self.found[self.caption] = []
        elif tag == "tr":
            self.found[self.caption].append([])
        elif tag in ("td", "th"):
            self.found[self.caption][-1].append("")
            self.into = "cell"

    def handle_endtag(self, tag: str) -> None:
        if tag in ("figcaption", "td", "th"):
            self.into = ""

    def handle_data(self, data: str) -> None:
        if self.into == "caption":
            self.caption += data
        elif self.into == "cell":
            self.found[self.caption][-1][-1] += data


def tables(site: Path, page: str, beginning: str) -> Iterator[tuple[pd.DataFrame, list[list[str]]]]:
    """Each table whose caption begins so, with the raw cells of what it is about."""
    cells = pd.read_csv(site / "data" / "cells.csv").query("status == 'done'")
    found = {caption: rows for caption, rows in Tables(site / page).found.items() if caption.startswith(beginning)}
    groups = cells.groupby(["run", "network", "data"], sort=False)
    assert len(found) == groups.ngroups
    for (run, network, data), group in groups:
        about = re.compile(re.escape(f", {network} on {data}") + f"(, run {re.escape(str(run))})?[;:]")
        matching = [rows for caption, rows in found.items() if about.search(caption)]
        assert len(matching) == 1, (run, network, data)
        yield group, matching[0]


def assert_says(text: str, values: list[float]) -> None:
    """That `text` is the mean of `values` and their sample standard deviation, in percent."""
    mean, _, spread = text.partition(" ± ") if len(values) > 1 else text.partition(" (n = ")
    assert abs(float(mean) - 100 * fmean(values)) <= HALF, (text, values)
    if len(values) > 1:
        assert abs(float(spread) - 100 * stdev(values)) <= HALF, (text, values)
    else:
        assert spread == "1)"


def test_there_are_published_sites() -> None:
    assert {"fashion", "quick"} <= {site.name for site in SITES}


@pytest.mark.parametrize("site", SITES, ids=lambda site: site.name)
def test_every_accuracy_is_that_of_its_cells(site: Path) -> None:
    checked = 0
    for cells, (heads, *rows) in tables(site, "accuracy.html", "Test accuracy (%) by requested keep"):
        assert {row[0] for row in rows} == set(cells["method"])
        for method, *texts in rows:
            for head, text in zip(heads[1:], texts, strict=True):
                values = cells[(cells["method"] == method) & (100 * cells["keep"] == float(head.rstrip("%")))]
                if text == "–":
                    assert values.empty
                else:
                    assert_says(text, values["accuracy"].tolist())
                    checked += 1
    cells = pd.read_csv(site / "data" / "cells.csv").query("status == 'done'")
    assert checked == len(cells.groupby(["run", "network", "data", "method", "keep"]))


@pytest.mark.parametrize("site", SITES, ids=lambda site: site.name)
def test_every_comparison_with_magnitude_is_that_of_its_cells(site: Path) -> None:
    tested = (site / "data" / "comparisons.csv").exists()
    beginning = "SiPP against magnitude pruning" if tested else "Best methods by keep and their test accuracy"
    for cells, (_, *rows) in tables(site, "index.html", beginning):
        # Of earlier versions: no interval, and in how many seeds SiPP is ahead. Now the first row is the mean.
        for row in rows[1:] if tested else rows:
            keep, difference, said, sipp, magnitude = (
                row[place] for place in ((0, 2, 3, 6, 7) if tested else (0, 4, 5, 2, 3))
            )
            at = cells[100 * cells["keep"] == float(keep.rstrip("%"))]
            one, other = (
                at[at["method"] == text.rpartition(": ")[0]].set_index("seed")["accuracy"] for text in (sipp, magnitude)
            )
            for text, values in ((sipp, one), (magnitude, other)):
                assert_says(text.rpartition(": ")[2], values.tolist())
            apart = (one - other).dropna()
            if not tested:
                assert_says(difference, apart.tolist())
                assert said == f"{(apart > 0).sum()} of {len(apart)}"
                continue
            assert abs(float(difference) - 100 * apart.mean()) <= HALF
            if said != "–":
                interval = stats.ttest_1samp(apart, 0).confidence_interval(0.95)
                for text, end in zip(said.split(" to "), interval, strict=True):
                    assert abs(float(text) - 100 * end) <= HALF


@pytest.mark.parametrize("site", SITES, ids=lambda site: site.name)
def test_no_certain_bound_is_exceeded_in_the_raw_checks(site: Path) -> None:
    checks = pd.read_csv(site / "data" / "checks.csv").query("on == 'S'")
    assert len(checks) > 0
    assert (checks["exceeding_certain"] == 0).all()
    assert set(checks["verdict"]) <= {"holds", "not falsified", "useless"}


@pytest.mark.parametrize("site", SITES, ids=lambda site: site.name)
def test_kept_weights_add_up(site: Path) -> None:
    cells = pd.read_csv(site / "data" / "cells.csv").query("status == 'done'")
    layers = pd.read_csv(site / "data" / "layers.csv").groupby(["run", "id"])["kept"].sum()
    pd.testing.assert_series_equal(
        cells.set_index(["run", "id"])["kept"].astype("int64").sort_index(), layers.sort_index()
    )
