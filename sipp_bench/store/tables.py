"""The tables of a run, which `store.load_run` makes of its files: column -> type, in order."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from sipp_bench.store import schema as run_schema

KEYS = {"id": "str", "network": "str", "data": "str", "seed": "int64", "method": "str", "keep": "float64"}
"""What says which cell a row is about."""
_CELLS = (
    KEYS
    | {"method_name": "str", "status": "str", "error": "object"}
    | dict.fromkeys(("accuracy", "loss", "dense_accuracy", "dense_loss"), "float64")
    | dict.fromkeys(("validation_accuracy", "validation_loss", "dense_validation_accuracy"), "float64")
    # Whole numbers, but missing from failed cells, which a column of integers can't say.
    | dict.fromkeys(("weights", "requested", "kept", "achieved_keep"), "float64")
    | dict.fromkeys(("multiply_adds", "dense_multiply_adds", "num_points", "delta"), "float64")
    # `measures.cell`; missing from run folders of before.
    | dict.fromkeys(("top5_accuracy", "dense_top5_accuracy", "agreement", "flips"), "float64")
    | dict.fromkeys(("worst_class", "worst_class_accuracy", "loss_gap"), "float64")
    | dict.fromkeys(("calibration_error", "dense_calibration_error"), "float64")
    | dict.fromkeys(("compression_ratio", "theoretical_speedup"), "float64")
    | dict.fromkeys(("class_accuracies", "class_loss_changes"), "object")  # lists, one number a class
    | dict.fromkeys(("file_bytes_dense", "file_bytes_csr", "file_bytes_bitmap"), "float64")
    # `measures.asked`: where the suite asks for them.
    | dict.fromkeys(("corrupted_accuracy", "dense_corrupted_accuracy", "excess_error"), "float64")
    | dict.fromkeys(("split_percentile", "twin_accuracy", "twin_agreement"), "float64")
    | dict.fromkeys(("corruption_errors", "excess_errors", "split_accuracies"), "object")
    # Of protocols that retrain: before retraining, and of the control. `accuracy` is that after the last epoch.
    | dict.fromkeys(("pruned_accuracy", "pruned_loss", "control_accuracy", "control_loss"), "float64")
    | {"mask_sha256": "object", "checkpoint_sha256": "object", "retrained_sha256": "object"}
)
_LAYERS = (
    KEYS
    | {"layer": "str"}
    | dict.fromkeys(("weights", "requested", "kept"), "int64")
    | dict.fromkeys(("epsilon_max", "epsilon_mean", "vacuous"), "float64")
)
_CHECKS = (
    KEYS
    | {"claim": "str", "on": "str", "layer": "str"}
    | dict.fromkeys(("blocks", "vacuous", "exceeding", "points"), "int64")
    | dict.fromkeys(("bound_median", "bound_max", "error_median", "error_max", "ratio_max"), "float64")
    | {"verdict": "str"}
    # Of the blocks that were drawn, and of those that were not: a draw may exceed its bound now and then.
    | dict.fromkeys(("drawn", "exceeding_certain", "active"), "int64")
    | {"exceeding_rate": "float64"}
)
SKIPPED = KEYS | {"layer": "str", "reason": "str"}
_SECONDS = ("fit_seconds", "prune_seconds", "evaluate_seconds", "check_seconds", "protocol_seconds")
# `reference_seconds` of `measures.latency`, timed in every cell; missing from run folders of before.
_LATENCIES = ("latency_dense_seconds", "latency_pruned_seconds")  # lists of samples
_TIMINGS = (
    {"id": "str"} | dict.fromkeys((*_SECONDS, "reference_seconds"), "float64") | dict.fromkeys(_LATENCIES, "object")
)
TABLES = {"cells": _CELLS, "layers": _LAYERS, "checks": _CHECKS, "timings": _TIMINGS}
"""The tables of a `Run`: column -> type, in order."""
LISTS = frozenset(
    {"class_accuracies", "class_loss_changes", "corruption_errors", "excess_errors", "split_accuracies", *_LATENCIES}
)
"""Columns with a list of numbers in each row."""


def make_tables(
    path: Path, cells: Sequence[Mapping[str, Any]], timings: Sequence[dict[str, Any]]
) -> dict[str, pd.DataFrame]:
    """Name -> table, of the cells and times read from the run folder `path`; with all columns, if without a row.

    Raises StoreError, naming the file, for a column of numbers with something else in it.
    """
    rows = {"cells": cells, "layers": _rows_of("layers", cells), "checks": _rows_of("checks", cells)}
    tables = {name: _table(path, found, TABLES[name]) for name, found in (rows | {"timings": timings}).items()}
    return tables | {"skipped": _table(path, _skipped(cells), SKIPPED)}


def _rows_of(part: str, cells: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    # Early rows of layers have a `keep` of their own, which is not the cell's.
    return [row | {key: cell[key] for key in KEYS} for cell in cells for row in cell.get(part, ())]


def _skipped(cells: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [
        {key: cell[key] for key in KEYS} | {"layer": layer, "reason": reason}
        for cell in cells
        for layer, reason in (cell.get("skipped") or {}).items()
    ]


def _table(path: Path, rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str]) -> pd.DataFrame:
    table = {}
    for name, dtype in columns.items():
        values = [row.get(name) for row in rows]
        if dtype == "float64":  # null is NaN, and float() reads "Infinity"
            files = (run_schema.cell_path(path, row["id"]) for row in rows)
            values = [run_schema.number(file, value) for file, value in zip(files, values, strict=True)]
        table[name] = pd.Series(values, dtype=dtype)
    return pd.DataFrame(table)
