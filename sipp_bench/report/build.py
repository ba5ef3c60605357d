"""Runs in, a folder out: one self-contained page, its figures, its data as CSV, and a Markdown version."""

import base64
import html
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
from markupsafe import Markup

from sipp_bench.errors import StoreError
from sipp_bench.files import write_atomically
from sipp_bench.report import prose, tables
from sipp_bench.report.bound_figure import bound_picture
from sipp_bench.report.collect import Collected, RunLike, Target, collect
from sipp_bench.report.figures import (
    Picture,
    accuracy_picture,
    compute_picture,
    difference_picture,
    layers_picture,
    time_picture,
)
from sipp_bench.report.summaries import accuracy_summary, check_summary, layer_keeps, time_summary
from sipp_bench.store import load_run


@dataclass(frozen=True)
class TargetPage:
    """What the page shows of one target; None where the run has nothing to show."""

    label: str
    best: tables.Table
    accuracy: Picture
    difference: Picture | None
    accuracy_table: tables.Table
    loss_table: tables.Table
    layers: Picture
    layer_table: tables.Table
    compute: Picture | None
    compute_table: tables.Table
    time: Picture
    time_table: tables.Table
    bounds: Picture | None
    vacuity_table: tables.Table | None
    check_table: tables.Table | None

    def pictures(self) -> list[Picture]:
        drawn = (self.accuracy, self.difference, self.layers, self.compute, self.time, self.bounds)
        return [picture for picture in drawn if picture is not None]


def build_report(run_dirs: Sequence[Path | str], output: Path | str) -> Path:
    """Write the report on these run folders into `output`, and return the path of its page, index.html.

    `output` gets index.html (self-contained), report.md, figures/*.png and data/*.csv; files of other names
    that are there stay. Each file is written atomically. Raises StoreError when there is no run, when one has
    no finished cell or is damaged, and when `output` cannot be written.
    """
    return write_report({label: load_run(path) for label, path in _labels(run_dirs).items()}, Path(output))


def write_report(runs: Mapping[str, RunLike], output: Path) -> Path:
    """`build_report` for runs that are loaded already, by label."""
    report = collect(runs)
    if report.done.empty:
        raise StoreError(
            f"Every cell of {', '.join(runs)} failed, so there is nothing to report. Look at the cells' "
            "traceback files, mend the cause and run the suite again."
        )
    targets = [_target_page(report, target, position) for position, target in enumerate(report.targets())]
    context = {
        "title": "SiPP pruning report: " + ", ".join(dict.fromkeys(_suite_name(run) for run in runs.values())),
        "what_was_run": prose.what_was_run(report),
        "answers": prose.answers(report),
        "failed": None if report.failed.empty else tables.failed_table(report),
        "targets": targets,
        "claims": {claim: prose.CLAIMS.get(claim, "") for claim in prose.in_claim_order(set(report.checks["claim"]))},
        "timing": [prose.timing_conditions(run) for run in runs.values()],
        "provenance": [
            (
                tables.facts_table(
                    f"Provenance of run {label}",
                    prose.provenance(label, run, report.cells[report.cells["run"] == label]),
                ),
                run.meta["suite"].get("text", ""),
            )
            for label, run in runs.items()
        ],
        "data_files": list(_data(report)),
    }
    for page in targets:
        for picture in page.pictures():
            write_atomically(output / "figures" / f"{picture.name}.png", picture.png)
    for name, frame in _data(report).items():
        write_atomically(output / "data" / name, frame.to_csv(index=False, lineterminator="\n"))
    write_atomically(output / "report.md", _markdown().get_template("report.md.jinja").render(context))
    # The page last: when it is there, everything that it speaks of is.
    return write_atomically(output / "index.html", _html().get_template("report.html.jinja").render(context))


def _target_page(report: Collected, target: Target, position: int) -> TargetPage:
    def name(kind: str) -> str:
        return f"{position + 1:02}-{_slug(target.network)}-{_slug(target.data)}-{kind}"

    checked = not target.checks.empty
    return TargetPage(
        label=target.label,
        best=tables.best_table(target),
        accuracy=accuracy_picture(target, name("accuracy")),
        difference=difference_picture(target, name("difference")),
        accuracy_table=tables.accuracy_table(target),
        loss_table=tables.loss_table(target),
        layers=layers_picture(target, name("layers")),
        layer_table=tables.layer_table(target),
        compute=compute_picture(target, name("multiply-adds")),
        compute_table=tables.compute_table(target),
        time=time_picture(target, name("time")),
        time_table=tables.time_table(target),
        bounds=bound_picture(target, report.runs[target.run], name("bounds")) if checked else None,
        vacuity_table=tables.vacuity_table(target) if checked else None,
        check_table=tables.check_table(target) if checked else None,
    )


def _data(report: Collected) -> dict[str, pd.DataFrame]:
    """File name -> table: the raw rows, and the summaries that the page's numbers are formatted from."""
    return {
        "cells.csv": report.cells,
        "layers.csv": report.layers,
        "checks.csv": report.checks,
        "timings.csv": report.timings,
        "accuracy-summary.csv": accuracy_summary(report.done),
        "layer-summary.csv": layer_keeps(report.layers),
        "time-summary.csv": time_summary(report.timings),
        **({} if report.checks.empty else {"check-summary.csv": check_summary(report.checks)}),
    }


def _labels(run_dirs: Sequence[Path | str]) -> dict[str, Path]:
    """A short name for each run folder: the folder's name, numbered where several have the same."""
    labelled: dict[str, Path] = {}
    for path in map(Path, run_dirs):
        name = path.resolve().name
        taken = sum(1 for label in labelled if label == name or label.startswith(f"{name} ("))
        labelled[name if not taken else f"{name} ({taken + 1})"] = path
    return labelled


def _suite_name(run: RunLike) -> str:
    return str(run.meta["suite"].get("name", "unnamed suite"))


def _slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9]+", "-", text).strip("-").lower()[:40]


def _html() -> jinja2.Environment:
    environment = _environment(autoescape=True)
    environment.filters["data_uri"] = lambda content: Markup(
        f"data:image/png;base64,{base64.b64encode(content).decode()}"
    )
    return environment


def _markdown() -> jinja2.Environment:
    environment = _environment(autoescape=False)
    environment.filters["md"] = _escape_markdown
    return environment


def _environment(autoescape: bool) -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.PackageLoader("sipp_bench.report"),
        autoescape=autoescape,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _escape_markdown(text: Any) -> str:
    """Text as text: no HTML, no table column, no link and no emphasis of its own."""
    return re.sub(r"([\\`*_\[\]|#])", r"\\\1", html.escape(str(text), quote=False)).replace("\n", " ")
