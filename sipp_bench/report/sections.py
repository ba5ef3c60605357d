"""What the pages show of one network on one data set: its figures and tables, each made once."""

import dataclasses
import json
import re
from dataclasses import dataclass

import pandas as pd

from sipp_bench.report import beyond, bounds, figures, layers, tables
from sipp_bench.report.bound_figure import bound_picture
from sipp_bench.report.collect import Collected, Target
from sipp_bench.report.comparisons import of_target
from sipp_bench.report.figures import Picture
from sipp_bench.report.potential import potential_lacks, potential_table
from sipp_bench.report.tables import Table
from sipp_bench.report.thumbnails import class_names


@dataclass(frozen=True)
class Found:
    """What is found over the whole report, since tests are corrected for their number: see `comparisons`, `bounds`."""

    headlines: pd.DataFrame
    details: pd.DataFrame
    counts: pd.DataFrame


@dataclass(frozen=True)
class Section:
    """Figures and tables of one target; None or empty where the run has nothing to show."""

    label: str
    architecture: Table
    comparisons: Table
    accuracy: Picture
    difference: Picture | None
    accuracy_table: Table
    loss_table: Table
    measures: Picture | None
    measure_tables: list[Table]
    potential: Table | None
    potential_lacks: str
    classes: Picture | None
    classes_table: Table | None
    retraining: Picture | None
    retraining_tables: list[Table]
    layers: Picture
    layer_table: Table
    layer_bounds: Picture | None
    layer_bounds_table: Table | None
    compute: Picture | None
    compute_table: Table
    time: Picture
    time_table: Table
    latency_table: Table | None
    bounds: Picture | None
    distribution: Picture | None
    distribution_table: Table | None
    check_table: Table | None

    def pictures(self) -> list[Picture]:
        values = (getattr(self, entry.name) for entry in dataclasses.fields(self))
        return [value for value in values if isinstance(value, Picture)]


def section_of(report: Collected, found: Found, target: Target, position: int) -> Section:
    """Draw and format everything about one target; `position` makes the names of its figures unique."""
    counts = of_target(found.counts, target)

    def name(kind: str) -> str:
        return f"{position:02}-{slug(target.network)}-{slug(target.data)}-{kind}"

    checked = not target.checks.empty
    lists = [json.loads(text) for text in target.cells["class_accuracies"].dropna()] if _has_classes(target) else []
    classes = class_names(target.data, max(map(len, lists), default=0))
    return Section(
        label=target.label,
        architecture=layers.architecture_table(target),
        comparisons=tables.comparison_table(
            target, of_target(found.headlines, target), of_target(found.details, target)
        ),
        accuracy=figures.accuracy_picture(target, name("accuracy")),
        difference=figures.difference_picture(target, name("difference")),
        accuracy_table=tables.accuracy_table(target),
        loss_table=tables.loss_table(target),
        measures=beyond.measures_picture(target, name("measures")),
        measure_tables=[
            beyond.measure_table(target, column, measure)
            for column, measure in beyond.measures_of(target.cells).items()
        ],
        potential=potential_table(target),
        potential_lacks=potential_lacks(target),
        classes=beyond.classes_picture(target, name("classes"), classes),
        classes_table=beyond.classes_table(target, classes),
        retraining=beyond.retraining_picture(target, name("retraining")),
        retraining_tables=beyond.retraining_tables(target),
        layers=layers.layers_picture(target, name("layers")),
        layer_table=layers.layer_table(target),
        layer_bounds=layers.layer_bounds_picture(target, name("layer-bounds")),
        layer_bounds_table=layers.layer_bounds_table(target),
        compute=figures.compute_picture(target, name("multiply-adds")),
        compute_table=tables.compute_table(target),
        time=figures.time_picture(target, name("time")),
        time_table=tables.time_table(target),
        latency_table=tables.latency_table(target),
        bounds=bound_picture(target, lambda cell: report.blocks(target.run, cell), name("bounds")) if checked else None,
        distribution=None if counts.empty else bounds.distribution_picture(target, counts, name("bound-sizes")),
        distribution_table=None if counts.empty else bounds.distribution_table(target, counts),
        check_table=bounds.check_table(target, counts) if checked else None,
    )


def _has_classes(target: Target) -> bool:
    return "class_accuracies" in target.cells


def slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9]+", "-", text).strip("-").lower()[:60]
