"""From the tables of runs to `models.Models`: trained networks, what was pruned from them, what was retrained."""

import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sipp_bench.report.beyond import measures_of
from sipp_bench.report.collect import Collected, RunLike, suite_table
from sipp_bench.report.models import Family, Flips, Layer, Model, Models, Number, Operation
from sipp_bench.report.thumbnails import class_names, draw_sheet, most_flipped
from sipp_bench.store.cell import default_label

PAIRS = 30
"""Of the kinds of flips, from one class to another, at most so many are listed."""

Predictions = Mapping[str, NDArray[Any]]


def gather_models(report: Collected, images: bool) -> tuple[Models, dict[str, bytes]]:
    """The models of all finished cells, and the sheets of images by file name. images: whether to draw them at all."""
    families: dict[str, Family] = {}
    models: list[Model] = []
    sheets: dict[str, bytes] = {}
    layers = dict(iter(report.layers.groupby(["run", "id"], sort=False)))
    timings = {(row["run"], row["id"]): row for row in report.timings.to_dict("records")}
    checks = dict(iter(report.checks.groupby(["run", "id"], sort=False)))
    measures = list(measures_of(report.done))
    for group, cells in report.done.groupby(["run", "network", "data", "seed"], sort=False):
        label, network, data, seed = (str(part) for part in group)
        run, key = report.runs[label], f"{label}/{network}/{data}/s{seed}"
        stored = {str(cell): dict(report.predictions(label, cell)) for cell in cells["id"]}
        family, sheet = _family(run, data, int(seed), cells, stored, images)
        if sheet is not None:
            family.sheet = f"images-{len(sheets) + 1:02}.png"
            sheets[family.sheet] = sheet
        families[key] = family
        models.append(_dense(key, cells.iloc[0], next((found for found in stored.values() if found), {})))
        suite = suite_table(run)
        options = {
            entry.get("label", default_label(entry.get("name"), _options(entry))): _options(entry)
            for entry in suite.get("method", [])
        }
        chained = (suite.get("protocol"), suite.get("protocol_options", {}).get("steps")) == ("cascade", "suite")
        earlier: dict[str, tuple[str, Predictions]] = {}
        for cell in cells.sort_values("keep", ascending=False, kind="stable").to_dict("records"):
            where, method = (label, cell["id"]), cell["method"]
            extra = {
                str(name): _number(value)
                for name, value in timings.get(where, {}).items()
                if str(name).endswith("_seconds") and not isinstance(value, list)
            } | _bounds(checks.get(where))
            parameters = {
                "method": cell["method_name"],
                "options": options.get(method, {}),
                "keep": cell["keep"],
                "seed": int(seed),
                "protocol": suite.get("protocol", "one-shot"),
            }
            base, before = earlier.get(str(method), (f"{key}/dense", {}))
            predictions = stored[cell["id"]] | ({"base": before["retrained"]} if "retrained" in before else {})
            models += _of_cell(key, cell, base, parameters, measures, extra, layers.get(where), predictions, family)
            if chained:
                earlier[method] = (models[-1].id, predictions)
    return Models(families=families, models=models), sheets


def _family(
    run: RunLike,
    data: str,
    seed: int,
    cells: pd.DataFrame,
    stored: Mapping[str, Predictions],
    images: bool,
) -> tuple[Family, bytes | None]:
    found = [predictions for predictions in stored.values() if predictions]
    family = Family(
        classes=[], test_points=0, positions=[], labels=[], dense=[], sheet=None, tile=(0, 0), columns=1, note=""
    )
    if not found:
        lists = [json.loads(text) for text in cells.get("class_accuracies", pd.Series(dtype=object)).dropna()]
        family.classes = class_names(data, max(map(len, lists), default=0))
        family.note = (
            "This run stored no predictions, so single flips cannot be shown. Run the suite again to have them."
        )
        return family, None
    labels, dense = found[0]["labels"], found[0]["dense"]
    last = [predictions.get("retrained", predictions["pruned"]) for predictions in found]
    positions = most_flipped(dense, last)
    family.classes = class_names(data, 1 + max(int(array.max()) for each in found for array in each.values()))
    family.test_points = len(labels)
    family.positions, family.labels = positions.tolist(), labels[positions].tolist()
    family.dense = dense[positions].tolist()
    if not len(positions):
        return family, None
    if not images:
        family.note = "The report was built without images."
        return family, None
    known = (run.meta.get("data") or {}).get(data, {})
    sheet, family.note = draw_sheet(data, seed, positions, labels, known)
    if sheet is None:
        return family, None
    family.tile, family.columns = (sheet.width, sheet.height), sheet.columns
    return family, sheet.png


def _dense(key: str, cell: "pd.Series[Any]", stored: Predictions) -> Model:
    metrics = {
        name.removeprefix("dense_"): _number(cell[name])
        for name in cell.index
        if str(name).startswith("dense_") and _number(cell[name]) is not None
    }
    accuracies = _class_accuracies(stored)
    if accuracies:
        metrics["worst_class_accuracy"] = min(value for value in accuracies if value is not None)
    return Model(
        id=f"{key}/dense",
        base=None,
        operation=Operation(name="train", parameters={"seed": int(cell["seed"])}),
        family=key,
        run=cell["run"],
        network=cell["network"],
        data=cell["data"],
        seed=int(cell["seed"]),
        method=None,
        keep=1.0,
        metrics=metrics | {"compression": 1.0, "compression_ratio": 1.0, "theoretical_speedup": 1.0},
        class_accuracies=accuracies,
        class_loss_changes=[],
        layers=[],
        flips=None,
    )


def _class_accuracies(stored: Predictions) -> list[Number]:
    """Of the dense network."""
    if not stored:
        return []
    right = stored["labels"] == stored["dense"]
    count = 1 + max(int(array.max()) for array in stored.values())
    of_class = [stored["labels"] == label for label in range(count)]
    return [float(right[rows].mean()) if rows.any() else None for rows in of_class]


def _of_cell(
    key: str,
    cell: Mapping[Any, Any],
    base: str,
    parameters: dict[str, Any],
    measures: list[str],
    extra: Mapping[str, Number],
    layers: pd.DataFrame | None,
    stored: Predictions,
    family: Family,
) -> Iterator[Model]:
    """The pruned network, and the retrained one where the protocol retrains. base: what was pruned.

    stored: with "base" where that is not the dense network.
    """
    columns = ["accuracy", "loss", "validation_accuracy", "validation_loss", "achieved_keep", "compression"]
    every = {name: _number(cell.get(name)) for name in [*columns, "multiply_add_reduction", *measures]}
    every |= extra
    pruned_accuracy = _number(cell.get("pruned_accuracy"))
    common: dict[str, Any] = {
        "family": key,
        "layers": [] if layers is None else [_layer(row) for row in layers.to_dict("records")],
        **{name: cell[name] for name in ("run", "network", "data", "method", "keep")},
        "seed": int(cell["seed"]),
    }
    lists = {name: _numbers(cell.get(name)) for name in ("class_accuracies", "class_loss_changes")}
    identifier = f"{key}/{cell['method']}/k{cell['keep']!r}"
    if pruned_accuracy is None:
        flips = _flips(stored, "dense", "pruned", family)
        operation = Operation(name="prune", parameters=parameters)
        own: dict[str, Any] = {"id": identifier, "base": base, "operation": operation, "metrics": every, "flips": flips}
        yield Model.model_validate(common | lists | own)
        return
    before: dict[str, Number] = {"accuracy": pruned_accuracy, "loss": _number(cell.get("pruned_loss"))}
    before |= {name: every.get(name) for name in ("achieved_keep", "compression", "multiply_add_reduction", *extra)}
    before |= {name: every[name] for name in ("compression_ratio", "theoretical_speedup") if name in every}
    own = {
        "id": identifier,
        "base": base,
        "operation": Operation(name="prune", parameters=parameters),
        "metrics": before,
        "flips": _flips(stored, "base" if "base" in stored else "dense", "pruned", family),
    }
    yield Model.model_validate(common | {name: [] for name in lists} | own)
    own = {
        "id": f"{identifier}/retrained",
        "base": identifier,
        "operation": Operation(name="retrain", parameters={"seed": int(cell["seed"])}),
        "metrics": every,
        "flips": _flips(stored, "pruned", "retrained", family),
    }
    yield Model.model_validate(common | lists | own)


def _options(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in entry.items() if name not in ("name", "label")}


def _layer(row: Mapping[Any, Any]) -> Layer:
    return Layer(
        layer=str(row["layer"]),
        weights=int(row["weights"]),
        requested=int(row["requested"]),
        kept=int(row["kept"]),
        epsilon_mean=_number(row.get("epsilon_mean")),
        epsilon_max=_number(row.get("epsilon_max")),
        vacuous=_number(row.get("vacuous")),
    )


def _bounds(checks: pd.DataFrame | None) -> dict[str, Number]:
    """The largest over layers of the median bound and of error / bound on S, and the share of vacuous bounds."""
    if checks is None:
        return {}
    on_s = checks[checks["on"] == "S"]
    if on_s.empty or not on_s["blocks"].sum():
        return {}
    found: dict[str, Number] = {"vacuous_share": float(on_s["vacuous"].sum() / on_s["blocks"].sum())}
    for name, column in (("bound_median", "bound_median"), ("error_over_bound", "ratio_max")):
        found[name] = _number(on_s[column].max()) if column in on_s else None
    return found


def _flips(stored: Predictions, base: str, name: str, family: Family) -> Flips | None:
    if base not in stored or name not in stored:
        return None
    before, after = stored[base], stored[name]
    changed = before != after
    kinds, counts = np.unique(np.stack([before[changed], after[changed]]), axis=1, return_counts=True)
    order = np.argsort(-counts, kind="stable")[:PAIRS]
    pairs = [(int(kinds[0, i]), int(kinds[1, i]), int(counts[i])) for i in order]
    return Flips(count=int(changed.sum()), pairs=pairs, shown=after[family.positions].tolist())


def _numbers(text: Any) -> list[Number]:
    return [_number(value) for value in json.loads(text)] if isinstance(text, str) else []


def _number(value: Any) -> Number:
    """A finite number, or None."""
    if value is None:
        return None
    number = float(value)
    return number if math.isfinite(number) else None
