"""The report's folder as a reader gets it: the pages, their figures, their data, the Markdown."""

import json
import re
import xml.etree.ElementTree
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from PIL import Image
from report.runs import MadeUpRun, fail, made_up_run, retrain, store

from sipp_bench.errors import SippBenchError, StoreError
from sipp_bench.report.build import build_report, write_report
from sipp_bench.report.render import PAGES
from sipp_bench.report.theory_run import read_theory
from theory_checks.claims import claims

VOID = {"meta", "link", "img", "br", "hr", "input"}


class Page(HTMLParser):
    """Collects what the tests ask about, and refuses tags that are not closed in order. Of index.html: all pages."""

    def __init__(self, path: Path) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.rows: list[list[str]] = []
        for each in [path.parent / file for file in PAGES] if path.name == "index.html" else [path]:
            self.feed(each.read_text(encoding="utf-8"))
            self.close()
            assert self.open == []
            self.reset()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" in self.open:
            return
        self.text += data
        if {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data

    def attributes(self, name: str) -> list[str]:
        return [value for _, attributes in self.tags if (value := attributes.get(name)) is not None]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[MadeUpRun, Path]:
    run = made_up_run()
    return run, write_report({"made-up": run}, tmp_path_factory.mktemp("report")).parent


@pytest.fixture(scope="module")
def page(built: tuple[MadeUpRun, Path]) -> Page:
    return Page(built[1] / "index.html")


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures without contents, for the tests that are about words: drawing takes the time."""

    def save(_: Figure, file: BytesIO, **options: Any) -> None:
        if options["format"] == "svg":
            file.write(b'<svg xmlns="http://www.w3.org/2000/svg"/>')
        else:
            Image.new("RGB", (9, 9)).save(file, "PNG")

    monkeypatch.setattr(Figure, "savefig", save)


def small(**changes: Any) -> MadeUpRun:
    """A run that is quick to draw."""
    return made_up_run(**({"methods": {"sipp-det": "sipp-det", "magnitude": "magnitude"}, "keeps": (0.2,)} | changes))


def test_pages_ask_for_nothing_that_is_not_in_the_folder(built: tuple[MadeUpRun, Path], page: Page) -> None:
    folder = built[1]
    identifiers = {file: Page(folder / file).attributes("id") for file in PAGES if file != "index.html"}
    links = {*page.attributes("src"), *page.attributes("href")} - {"data:,"}
    assert len(links) > 20
    for link in links:
        file, _, section = link.partition("#")
        assert not file or (folder / file).is_file(), link
        assert not section or not file or section in identifiers[file], link
    assert "url(" not in "".join(page.attributes("style"))
    assert "url(" not in (folder / "style.css").read_text()


@pytest.mark.parametrize("file", [file for file in PAGES if file != "index.html"])
def test_every_page_leads_to_every_other(built: tuple[MadeUpRun, Path], file: str) -> None:
    page = Page(built[1] / file)
    identifiers = page.attributes("id")
    assert len(identifiers) == len(set(identifiers))
    assert page.attributes("href")[3 : 3 + len(PAGES)] == list(PAGES)
    assert page.attributes("aria-current") == ["page"]
    assert page.attributes("href").count("#main") == 1
    images = [attributes for tag, attributes in page.tags if tag == "img"]
    assert all(len(attributes["alt"] or "") > 20 for attributes in images)


def test_accuracy_table_is_the_mean_and_spread_of_the_cells(built: tuple[MadeUpRun, Path], page: Page) -> None:
    run = built[0]
    start = next(i for i, row in enumerate(page.rows) if row == ["Method", "50%", "20%", "5%"])
    shown = {row[0]: row[1:] for row in page.rows[start + 1 : start + 7]}
    assert set(shown) == set(run.cells["method"])
    for method, texts in shown.items():
        for keep, text in zip((0.5, 0.2, 0.05), texts, strict=True):
            cells = run.cells[(run.cells["method"] == method) & (run.cells["keep"] == keep)]
            values = 100 * cells["accuracy"].to_numpy()
            assert text == f"{values.mean():.1f} ± {values.std(ddof=1):.1f}"


def test_figures_are_vectors_and_pixels_and_all_are_shown(built: tuple[MadeUpRun, Path], page: Page) -> None:
    files = sorted((built[1] / "figures").glob("*.png"))
    shown = [source for source in page.attributes("src") if source.startswith("figures/")]
    assert sorted(shown) == [f"figures/{file.stem}.svg" for file in files]
    for file in files:
        vectors = file.with_suffix(".svg")
        assert len(list(xml.etree.ElementTree.parse(vectors).iter())) > 50
        assert "<dc:date>" not in vectors.read_text()
        assert vectors.stat().st_size < 500_000
        pixels = np.asarray(Image.open(file).convert("L"))
        assert pixels.shape[0] > 300
        assert pixels.shape[1] > 500
        # Something is drawn: neither empty nor a single tone.
        assert (pixels < 128).sum() > 500


def test_data_files_read_back_as_the_tables(built: tuple[MadeUpRun, Path]) -> None:
    run, folder = built
    for name in ("cells", "layers", "checks", "timings"):
        read = pd.read_csv(folder / "data" / f"{name}.csv")
        assert set(read["run"]) == {"made-up"}
        expected = getattr(run, name).replace({None: np.nan})
        pd.testing.assert_frame_equal(read[list(expected.columns)], expected, check_dtype=False)


def test_same_run_gives_the_same_bytes(tmp_path: Path) -> None:
    first, second = (write_report({"run": small()}, tmp_path / name).parent for name in ("first", "second"))
    files = sorted(path.relative_to(first) for path in first.rglob("*") if path.is_file())
    assert len(files) > 8
    assert all((first / file).read_bytes() == (second / file).read_bytes() for file in files)


@pytest.mark.usefixtures("undrawn")
def test_names_are_text_everywhere(tmp_path: Path) -> None:
    hostile = "<script>alert(1)</script>"
    run = small(targets=[(hostile, "a|b*$x_$")])
    run.meta["suite"]["text"] = f"# {hostile}"
    run.meta["machine"]["cpu"] = hostile
    index = write_report({hostile: run}, tmp_path)
    page = Page(index)
    scripts = [attributes["src"] or "" for tag, attributes in page.tags if tag == "script"]
    assert scripts == [f"explorer/{name}.js" for name in ("plotly.min", "data", "explorer")]
    assert "<" not in (tmp_path / "explorer" / "data.js").read_text()
    assert page.text.count(hostile) > 5
    markdown = (tmp_path / "report.md").read_text()
    outside_code = "\n".join(line for line in markdown.splitlines() if not line.startswith("    "))
    assert "<script" not in outside_code
    assert "a\\|b\\*" in outside_code
    assert all(re.fullmatch(r"[a-z0-9.-]+", path.name) for path in (tmp_path / "figures").iterdir())


@pytest.mark.usefixtures("undrawn")
def test_failed_cells_are_listed_and_left_out_of_means(tmp_path: Path) -> None:
    run = small()
    failed = run.cells["id"].iloc[0]
    fail(run, failed, "ModelError: NaN in fc1.weight: mend it")
    page = Page(write_report({"run": run}, tmp_path))
    row = next(row for row in page.rows if "ModelError" in row)
    assert row == [
        "run",
        "lenet-5",
        "mnist-digits",
        "0",
        "sipp-det",
        "20%",
        "ModelError",
        "NaN in fc1.weight: mend it",
    ]
    assert "5 finished, 1 failed and 0 were not run" in page.text
    summary = pd.read_csv(tmp_path / "data" / "accuracy-summary.csv").set_index("method")
    others = run.cells[(run.cells["method"] == "sipp-det") & (run.cells["id"] != failed)]
    assert summary.at["sipp-det", "seeds"] == 2
    assert summary.at["sipp-det", "accuracy_mean"] == pytest.approx(others["accuracy"].mean())


@pytest.mark.usefixtures("undrawn")
def test_cells_that_were_not_run_are_not_failures(tmp_path: Path) -> None:
    run = small()
    run.meta["cells"] += ["another", "and-another"]
    page = Page(write_report({"run": run}, tmp_path))
    assert "Of 8 planned cells, 6 finished, 0 failed and 2 were not run." in page.text
    assert "Failed cells" not in page.text


@pytest.mark.usefixtures("undrawn")
def test_one_seed_says_so(tmp_path: Path) -> None:
    page = Page(write_report({"run": small(seeds=(0,))}, tmp_path))
    assert "One seed (n = 1), so there are no bars." in page.text
    accuracies = next(row for row in page.rows if row[0] == "sipp-det" and "(n = 1)" in row[1])
    assert "±" not in accuracies[1]


@pytest.mark.usefixtures("undrawn")
def test_run_without_checks(tmp_path: Path) -> None:
    page = Page(write_report({"run": small(checked=False)}, tmp_path))
    assert page.text.count("No bounds were checked in this run.") == 2
    assert not list((tmp_path / "figures").glob("*[a-z0-9]-digits-bounds*"))
    assert len(pd.read_csv(tmp_path / "data" / "checks.csv")) == 0


def test_nothing_kept_has_no_place_on_a_logarithmic_axis(tmp_path: Path) -> None:
    page = Page(write_report({"run": small(keeps=(1.0, 0.2, 0.0))}, tmp_path))
    compute = next(row for row in page.rows if row[0] == "magnitude" and row[-1].startswith("∞"))
    assert compute[1] == "1× / 1×"


@pytest.mark.usefixtures("undrawn")
def test_several_runs_are_kept_apart(tmp_path: Path) -> None:
    one, other = small(), small(targets=[("lenet-300-100", "digits")])
    page = Page(write_report({"one": one, "other": other}, tmp_path))
    cells = pd.read_csv(tmp_path / "data" / "cells.csv")
    assert cells.groupby("run").size().to_dict() == {"one": 6, "other": 6}
    assert "lenet-300-100 on digits, run other" in page.text
    assert "Provenance of run one" in page.text


@pytest.mark.usefixtures("undrawn")
def test_run_folders_are_read_and_named_after(tmp_path: Path) -> None:
    run = small()
    folders = [store(run, tmp_path / place / "results") for place in ("here", "there")]
    page = Page(build_report(folders, tmp_path / "report"))
    assert "Provenance of run results (2)" in page.text
    read = pd.read_csv(tmp_path / "report" / "data" / "checks.csv")
    assert read.groupby("run").size().to_dict() == {"results": len(run.checks)}, "they are the same networks"
    assert f"{len(run.cells)} of its cells are equal by content" in page.text
    once = pd.read_csv(tmp_path / "report" / "data" / "counted-once.csv")
    assert list(once["into_id"]) == list(once["id"]) == list(run.cells["id"])
    assert list((tmp_path / "report" / "figures").glob("*-bounds.png"))


@pytest.mark.usefixtures("undrawn")
def test_measures_are_in_the_data_beside_runs_without_them(tmp_path: Path) -> None:
    old, new = small(), small()
    lists = [[0.5, None, index / 7] for index in range(len(new.cells))]
    new.cells = new.cells.assign(agreement=0.75, flips=250.0, loss_gap=np.inf, class_accuracies=lists)
    new.cells["mask_sha256"] = [f"{index:064x}" for index in range(len(lists))]
    folders = [store(old, tmp_path / "old"), store(new, tmp_path / "new")]
    build_report(folders, tmp_path / "report")
    cells = pd.read_csv(tmp_path / "report" / "data" / "cells.csv").set_index("run")
    measures = ["agreement", "flips", "loss_gap", "calibration_error", "class_accuracies", "class_loss_changes"]
    assert cells.loc["old", measures].isna().all(axis=None)
    assert set(cells.loc["new", "agreement"]) == {0.75}
    assert set(cells.loc["new", "loss_gap"]) == {np.inf}
    assert [json.loads(text) for text in cells.loc["new", "class_accuracies"]] == lists
    assert list(cells.loc["old", "accuracy"]) == list(cells.loc["new", "accuracy"]) == list(old.cells["accuracy"])


@pytest.mark.parametrize("status", ["none", "failed"])
def test_nothing_to_report_is_refused(tmp_path: Path, status: str) -> None:
    run = small()
    if status == "none":
        run.cells = run.cells.iloc[:0]
    for cell in run.cells["id"]:
        fail(run, cell, "ModelError: no")
    with pytest.raises(SippBenchError, match=r"[Rr]un its suite first|run the suite again") as caught:
        write_report({"empty": run}, tmp_path / "out")
    assert "empty" in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_no_run_at_all_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="at least one run folder"):
        build_report([], tmp_path)


@pytest.mark.usefixtures("undrawn")
def test_unwritable_output_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StoreError, match="Cannot write"):
        write_report({"run": small()}, tmp_path / "file")


@pytest.mark.usefixtures("undrawn")
def test_layers_that_stayed_dense_are_listed_with_the_reason(tmp_path: Path) -> None:
    run = small()
    keys = {name: run.cells[name].iloc[0] for name in ("id", "network", "data", "seed", "method", "keep")}
    run.skipped = pd.DataFrame([keys | {"layer": "attention.weight", "reason": "its calls are not seen"}])
    page = Page(write_report({"run": run}, tmp_path))
    assert ["run", "lenet-5", "attention.weight", "its calls are not seen", "1"] in page.rows
    assert len(pd.read_csv(tmp_path / "data" / "skipped.csv")) == 1


@pytest.mark.usefixtures("undrawn")
def test_measures_of_other_versions_are_shown_under_their_names(tmp_path: Path) -> None:
    run = small()
    run.cells = run.cells.assign(mean_corruption_error=np.linspace(0.1, 0.6, len(run.cells)), some_text="x")
    page = Page(write_report({"run": run}, tmp_path))
    assert "mean corruption error by requested keep" in page.text
    values = run.cells[run.cells["method"] == "magnitude"]["mean_corruption_error"]
    assert ["magnitude", f"{values.mean():.3g} ± {values.std():.3g}"] in page.rows
    assert "some text" not in page.text


@pytest.mark.usefixtures("undrawn")
def test_retraining_is_shown_before_and_after(tmp_path: Path) -> None:
    run = small()
    before = run.cells[run.cells["method"] == "magnitude"]["accuracy"]
    retrain(run)
    page = Page(write_report({"run": run}, tmp_path))
    assert "Before retraining: test accuracy (%)" in page.text
    assert ["magnitude", f"{100 * before.mean():.1f} ± {100 * before.std():.1f}"] in page.rows
    assert ["magnitude", "80.0 ± 0.0"] in page.rows, "the control"


@pytest.mark.usefixtures("undrawn")
def test_a_theory_run_is_included(tmp_path: Path) -> None:
    theory = Path(__file__).parents[2] / "reports" / "theory"
    without = Page(write_report({"run": small()}, tmp_path / "without"))
    assert "python -m theory_checks -o theory" in without.text
    page = Page(write_report({"run": small()}, tmp_path / "with", read_theory(theory)))
    findings = pd.read_csv(theory / "data" / "findings.csv")
    shown = {row[0]: row for row in page.rows if len(row) == 10}
    raw = json.loads((theory / "data" / "theory.json").read_bytes())["findings"]
    assert len(raw) == len(findings) == 18
    for finding in raw:
        row, interval = shown[finding["claim"]], finding["interval"]
        assert [row[2], row[3], row[4]] == [finding["verdict"], f"{finding['trials']:,}", f"{finding['violations']:,}"]
        assert row[5] == (f"{interval['low']:.4g} to {interval['high']:.4g}" if interval else "–")
        claim = claims()[finding["claim"]]
        assert [claim.number, claim.statement, claim.assumption, finding["detail"]] in page.rows
    assert "Decomposition of the sampling bound" in page.text
    assert (tmp_path / "with" / "figures" / "theory-power.png").read_bytes() == (
        theory / "figures" / "power.png"
    ).read_bytes()
    assert (tmp_path / "with" / "data" / "theory-matrix.csv").is_file()


def test_what_is_no_theory_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="is not the folder of a theory run"):
        read_theory(tmp_path)


@pytest.mark.usefixtures("undrawn")
def test_latencies_are_medians_of_all_pairs(tmp_path: Path) -> None:
    run = small()
    pairs = [[0.001 * (index + 1), 0.002] for index in range(len(run.timings))]
    run.timings = run.timings.assign(latency_dense_seconds=pairs, latency_pruned_seconds=[[0.004, 0.004]] * len(pairs))
    run.cells = run.cells.assign(corruption_errors=[{"fog": [0.1, 0.2]}] * len(run.cells))
    page = Page(write_report({"run": run}, tmp_path))
    own = [pair for cell, pair in zip(run.timings["id"], pairs, strict=True) if "--magnitude--" in cell]
    dense = np.array(own).ravel()
    row = next(row for row in page.rows if len(row) == 8 and row[0] == "magnitude" and row[1] == "20%")
    assert row[2] == f"{1000 * np.median(dense):.3g} ms"
    assert row[4] == "4 ms"
    assert row[6:] == [f"{np.median(0.004 / dense):.3f}", "6"]
    assert json.loads(pd.read_csv(tmp_path / "data" / "cells.csv")["corruption_errors"][0]) == {"fog": [0.1, 0.2]}
