"""Runs in, a folder out: a site of static pages with its figures, its data, an explorer, and a Markdown version."""

import os
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import pandas as pd

from sipp_bench.errors import StoreError
from sipp_bench.machine.files import printable, refuse_way_out, sweep, write_atomically
from sipp_bench.report import layers, prose, tables
from sipp_bench.report.bounds import bound_counts, check_summary
from sipp_bench.report.collect import Collected, RunLike, collect
from sipp_bench.report.comparisons import details, headlines
from sipp_bench.report.explorer import explorer_files
from sipp_bench.report.render import PAGES, render_markdown, render_page
from sipp_bench.report.sections import Found, Section, section_of
from sipp_bench.report.summaries import accuracy_summary, layer_keeps, time_summary
from sipp_bench.report.theory_run import Theory, read_theory
from sipp_bench.report.thumbnails import SHOWN
from sipp_bench.store.export import to_csv
from sipp_bench.store.folder import load_run

AGAIN = ["run", "id", "into_run", "into_id", "checkpoint_sha256", "mask_sha256", "accuracy"]
"""What the data say of cells that are counted elsewhere."""


def build_report(
    run_dirs: Sequence[Path | str],
    output: Path | str,
    *,
    theory: Path | str | None = None,
    images: bool = True,
) -> Path:
    """Write the report on these run folders into `output`, and return the path of its first page, index.html.

    `output` gets the pages, figures/ (SVG and PNG), data/ (CSV), explorer/ and report.md; it opens from disk and from
    any server, and asks for nothing from elsewhere. Files of other names that are there stay. Each file is written
    atomically. theory: the folder of a theory run to include. images: show the test images whose predictions flipped,
    where the data is on this machine.

    Raises StoreError when there is no run, when one has no finished cell or is damaged, when `theory` is no theory
    run's folder, when `output` cannot be written, and when a link in it, or in a run folder on the way to it, leads
    out.
    """
    output = Path(output)
    # A run folder that somebody else made could have anything behind the links in it.
    own = next((path for path in map(Path, run_dirs) if _normal(output).is_relative_to(_normal(path))), output)
    for folder in _folders(output):
        refuse_way_out(own, folder)
    runs = {label: load_run(path) for label, path in _labels(run_dirs).items()}
    return write_report(runs, output, None if theory is None else read_theory(Path(theory)), images)


def write_report(runs: Mapping[str, RunLike], output: Path, theory: Theory | None = None, images: bool = True) -> Path:
    """`build_report` for runs that are loaded already, by label."""
    report = collect(runs)
    if report.done.empty:
        raise StoreError(
            f"Every cell of {', '.join(runs)} failed, so there is nothing to report. Look at the cells' "
            "traceback files, mend the cause and run the suite again."
        )
    found = Found(headlines(report), details(report), bound_counts(report))
    sections = [section_of(report, found, target, at) for at, target in enumerate(report.targets(), start=1)]
    data = _data(report, found, theory)
    context = _context(report, found, sections, theory, list(data))
    for folder in _folders(output):
        sweep(folder)
    for section in sections:
        for picture in section.pictures():
            write_atomically(output / "figures" / f"{picture.name}.png", picture.drawn.png)
            write_atomically(output / "figures" / f"{picture.name}.svg", picture.drawn.svg)
    for plate in theory.pictures if theory else ():
        write_atomically(output / "figures" / plate.file, plate.content)
    for name, text in data.items():
        write_atomically(output / "data" / name, text)
    for name, content in explorer_files(report, images).items():
        write_atomically(output / "explorer" / name, content)
    style = resources.files("sipp_bench.report") / "static" / "style.css"
    write_atomically(output / "style.css", style.read_text(encoding="utf-8"))
    write_atomically(output / "report.md", render_markdown(context))
    # The first page last: when it is there, everything that it leads to is.
    for file in reversed(PAGES):
        written = write_atomically(output / file, render_page(file, context))
    return written


def _folders(output: Path) -> list[Path]:
    """Those that a report has files in."""
    return [output, *(output / name for name in ("figures", "data", "explorer"))]


def _normal(path: Path) -> Path:
    return Path(os.path.normpath(path.absolute()))  # without following links, as `resolve` does


def _context(
    report: Collected, found: Found, sections: list[Section], theory: Theory | None, data: list[str]
) -> dict[str, Any]:
    """What the templates speak of."""
    runs = report.runs
    return {
        "title": "SiPP pruning report: " + ", ".join(dict.fromkeys(_suite_name(run) for run in runs.values())),
        "what_was_run": prose.what_was_run(report),
        "answers": prose.answers(report, found.headlines, found.details, found.counts),
        "failed": None if report.failed.empty else tables.failed_table(report),
        "skipped": layers.skipped_table(report),
        "targets": sections,
        "claims": {claim: prose.CLAIMS.get(claim, "") for claim in prose.in_claim_order(set(report.checks["claim"]))},
        "theory": theory,
        "timing": list(dict.fromkeys(prose.timing_conditions(run) for run in runs.values())),
        "architectures": [section.architecture for section in sections],
        "provenance": [
            (
                tables.facts_table(
                    f"Provenance of run {label}",
                    prose.provenance(label, run, report.all_cells.query("run == @label")),
                ),
                run.meta["suite"].get("text", ""),
            )
            for label, run in runs.items()
        ],
        "data_files": data,
        "images_shown": SHOWN,
    }


def _data(report: Collected, found: Found, theory: Theory | None) -> dict[str, str]:
    """File name -> CSV: the raw rows, and the summaries that the pages' numbers are formatted from."""
    frames: dict[str, pd.DataFrame] = {
        "cells.csv": report.cells,
        "layers.csv": report.layers,
        "checks.csv": report.checks,
        "timings.csv": report.timings,
        "skipped.csv": report.skipped,
        "accuracy-summary.csv": accuracy_summary(report.done),
        "layer-summary.csv": layer_keeps(report.layers),
        "time-summary.csv": time_summary(report.timings),
        "comparisons.csv": found.headlines,
        "comparisons-by-keep.csv": found.details,
        **({} if report.checks.empty else {"check-summary.csv": check_summary(report.checks, found.counts)}),
        **({} if found.counts.empty else {"bounds.csv": found.counts}),
        **({} if report.merged.again.empty else {"counted-once.csv": report.merged.again[AGAIN]}),
    }
    written = {name: to_csv(frame) for name, frame in frames.items()}
    return written | (theory.data if theory else {})


def _labels(run_dirs: Sequence[Path | str]) -> dict[str, Path]:
    """A short name for each run folder: the folder's name, numbered where several have the same."""
    labelled: dict[str, Path] = {}
    for path in map(Path, run_dirs):
        name = printable(path.resolve().name)
        taken = sum(1 for label in labelled if label == name or label.startswith(f"{name} ("))
        labelled[name if not taken else f"{name} ({taken + 1})"] = path
    return labelled


def _suite_name(run: RunLike) -> str:
    return str(run.meta["suite"].get("name", "unnamed suite"))
