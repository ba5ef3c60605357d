"""A made-up run, drawn from a seeded generator, with the tables of `sipp_bench.store.folder.Run`."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from sipp_bench.store.cell import Cell
from sipp_bench.store.folder import Store

LAYERS = {"conv1.weight": (20, 500), "fc1.weight": (50, 40000), "fc2.weight": (10, 500)}
MULTIPLY_ADDS = {"conv1.weight": 288000, "fc1.weight": 40000, "fc2.weight": 500}
METHODS = {
    "sipp-det": "sipp-det",
    "sipp-det-downstream": "sipp-det",
    "sipp-rand": "sipp-rand",
    "magnitude": "magnitude",
    "magnitude-layer": "magnitude",
    "random": "random",
}
CLAIMS = {"sipp-det": "C2", "sipp-rand": "C10", "sipp-hybrid": "C12", "sipp-mixture": "C13"}
SKILL = {"sipp-det": 0.10, "sipp-rand": 0.2, "sipp-hybrid": 0.12, "magnitude": 0.04, "random": 0.3}
SUITE = """name = "made-up"
description = "A suite for the tests of the report"
seeds = [0, 1, 2]
keep = [0.5, 0.2, 0.05]
points = 64
"""


@dataclass
class MadeUpRun:
    meta: dict[str, Any]
    cells: pd.DataFrame
    layers: pd.DataFrame
    checks: pd.DataFrame
    timings: pd.DataFrame
    skipped: pd.DataFrame
    arrays: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)

    classes: dict[str, dict[str, Any]] = field(default_factory=dict)

    def blocks(self, cell_id: str) -> Mapping[str, Mapping[str, Any]]:
        return self.arrays.get(cell_id, {})

    def predictions(self, cell_id: str) -> Mapping[str, Any]:
        return self.classes.get(cell_id, {})


def made_up_run(
    methods: Mapping[str, str] = METHODS,
    targets: Iterable[tuple[str, str]] = (("lenet-5", "mnist-digits"),),
    keeps: Iterable[float] = (0.5, 0.2, 0.05),
    seeds: Iterable[int] = (0, 1, 2),
    checked: bool = True,
) -> MadeUpRun:
    random = np.random.default_rng(7)
    cells, layers, checks, timings, arrays = [], [], [], [], {}
    for network, data in targets:
        for seed in seeds:
            for label, name in methods.items():
                fit_seconds = float(random.lognormal(-1, 0.2))
                for keep in keeps:
                    cell = _cell(random, network, data, seed, label, name, keep)
                    keys = {key: cell[key] for key in ("id", "network", "data", "seed", "method", "keep")}
                    cells.append(cell)
                    layers += [keys | row for row in _layers(random, name, keep)]
                    prune_seconds = float(random.lognormal(-3, 0.3))
                    timings.append({"id": cell["id"], "fit_seconds": fit_seconds, "prune_seconds": prune_seconds})
                    if checked and name in CLAIMS:
                        blocks = {layer: _blocks(random, shape[0], keep) for layer, shape in LAYERS.items()}
                        arrays[cell["id"]] = blocks
                        checks += [keys | row for row in _checks(CLAIMS[name], blocks)]
    columns = ["id", "network", "data", "seed", "method", "keep", "claim", "on", "layer", "blocks", "vacuous"]
    columns += ["exceeding", "points", "ratio_max", "exceeding_rate", "verdict"]
    return MadeUpRun(
        meta=_meta([cell["id"] for cell in cells]),
        cells=pd.DataFrame(cells),
        layers=pd.DataFrame(layers),
        checks=pd.DataFrame(checks, columns=None if checks else columns),
        timings=pd.DataFrame(timings).assign(evaluate_seconds=0.1, check_seconds=0.2),
        skipped=pd.DataFrame(columns=["id", "network", "data", "seed", "method", "keep", "layer", "reason"]),
        arrays=arrays,
    )


def _meta(cells: list[str]) -> dict[str, Any]:
    return {
        "format": 1,
        "suite": {"name": "made-up", "text": SUITE, "sha256": "5" * 64},
        "cells": cells,
        "machine": {"processor": "A made-up processor", "cores": 2, "threads": 1, "device": "cpu"},
        "versions": {"torch": "2.13.0", "sipp-bench": "0.1.0"},
        "commit": "0123456789abcdef",
        "dirty": True,
    }


def _cell(
    random: np.random.Generator, network: str, data: str, seed: int, label: str, name: str, keep: float
) -> dict[str, Any]:
    weights = sum(size for _, size in LAYERS.values())
    kept = round(keep * weights * (float(random.uniform(0.99, 1.01)) if name == "sipp-rand" else 1.0))
    collapse = 1 / (1 + (SKILL.get(name, 0.15) * (0.6 if "downstream" in label else 1) / max(keep, 1e-9)) ** 2.5)
    accuracy = round(0.1 + 0.86 * collapse + float(random.normal(0, 0.008)), 3)
    return {
        "id": f"{network}--{data}--{label}--s{seed}--k{keep}",
        "network": network, "data": data, "seed": seed, "method": label, "method_name": name, "keep": keep,
        "status": "done", "error": None,
        "accuracy": accuracy, "loss": 2.3 * (1 - accuracy), "dense_accuracy": 0.962, "dense_loss": 0.12,
        "validation_accuracy": accuracy + float(random.normal(0, 0.003)), "validation_loss": 0.5,
        "weights": weights, "requested": round(keep * weights), "kept": float(kept), "achieved_keep": kept / weights,
        "multiply_adds": round(sum(MULTIPLY_ADDS.values()) * keep**0.7),
        "dense_multiply_adds": sum(MULTIPLY_ADDS.values()),
        "mask_sha256": f"{random.integers(2**60):064x}", "num_points": 64,
        "checkpoint_sha256": f"c{seed:063x}", "delta": 0.1 if name == "sipp-rand" else 0.0,
    }  # fmt: skip


def _layers(random: np.random.Generator, name: str, keep: float) -> list[dict[str, Any]]:
    rows = []
    for layer, (_, weights) in LAYERS.items():
        requested = round(weights * min(1.0, keep * float(random.uniform(0.8, 1.2))))
        bound = float("nan") if name not in CLAIMS else float(random.uniform(0.2, 2))
        rows.append(
            {"layer": layer, "weights": weights, "requested": requested, "kept": requested - 1}
            | {"epsilon_max": 2 * bound, "epsilon_mean": bound, "vacuous": bound / 4}
        )
    return rows


def _blocks(random: np.random.Generator, neurons: int, keep: float) -> dict[str, Any]:
    epsilon = 1.2 * (1 - keep) * random.lognormal(0, 0.9, (neurons, 2))
    return {
        "epsilon": epsilon,
        "error_S": epsilon * random.uniform(0.05, 0.99, epsilon.shape),
        "error_fresh": epsilon * random.uniform(0.05, 1.1, epsilon.shape),
    }


def _checks(claim: str, blocks: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    rows = []
    for layer, arrays in blocks.items():
        for on in ("S", "fresh"):
            epsilon, error = arrays["epsilon"], arrays[f"error_{on}"]
            says = epsilon < 1
            exceeding = int((error > epsilon).sum())
            verdict = "measured" if on == "fresh" else "holds" if claim == "C2" else "not falsified"
            row: dict[str, Any] = {"claim": claim, "on": on, "layer": layer, "blocks": epsilon.size, "points": 64}
            row |= {"vacuous": int((~says).sum()), "exceeding": exceeding, "exceeding_rate": exceeding / epsilon.size}
            row |= {"bound_median": np.median(epsilon), "bound_max": epsilon.max()}
            row |= {"error_median": np.median(error), "error_max": error.max()}
            row |= {"ratio_max": (error[says] / np.maximum(epsilon[says], 1e-30)).max(initial=0) or float("nan")}
            row |= {"drawn": 0, "active": 64 * epsilon.size, "exceeding_certain": exceeding}
            rows.append(row | {"verdict": verdict if says.any() else "useless"})
    return rows


def predict(run: MadeUpRun, labels: Any, classes: int = 10) -> None:
    """Give every cell predictions and the measures that follow from them: at smaller keeps more of them flip."""
    random = np.random.default_rng(3)
    dense = np.where(random.random(len(labels)) < 0.05, (labels + 1) % classes, labels)
    columns: dict[str, list[Any]] = {}
    for cell in run.cells.to_dict("records"):
        flipped = random.random(len(labels)) < 0.3 * (1 - cell["keep"])
        pruned = np.where(flipped, random.integers(classes, size=len(labels)), dense)
        run.classes[cell["id"]] = {"labels": labels, "dense": dense, "pruned": pruned}
        right = pruned == labels
        by_class = [float(right[labels == label].mean()) for label in range(classes)]
        found = {
            "accuracy": right.mean(), "dense_accuracy": (dense == labels).mean(), "agreement": (dense == pruned).mean(),
            "flips": float((dense != pruned).sum()), "class_accuracies": by_class,
            "worst_class_accuracy": min(by_class), "worst_class": float(np.argmin(by_class)),
            "class_loss_changes": [1 - share for share in by_class], "calibration_error": 0.05,
        }  # fmt: skip
        for name, value in found.items():
            columns.setdefault(name, []).append(value)
    run.cells = run.cells.assign(**columns)


def retrain(run: MadeUpRun) -> None:
    """Turn the run into one of a protocol that retrains: what was final is now before retraining."""
    run.cells = run.cells.assign(
        pruned_accuracy=run.cells["accuracy"], pruned_loss=run.cells["loss"], accuracy=0.9, control_accuracy=0.8
    )
    run.classes = {
        cell: found | {"retrained": np.where(found["pruned"] != found["dense"], found["labels"], found["dense"])}
        for cell, found in run.classes.items()
    }


def store(run: MadeUpRun, path: Path) -> Path:
    """Write the run as a run folder, by the runner's own means."""
    with Store(path, run.meta | {"seeds": [0, 1, 2]}) as opened:
        for cell in run.cells.to_dict("records"):
            rows = {
                part: getattr(run, part)[getattr(run, part)["id"] == cell["id"]].to_dict("records")
                for part in ("layers", "checks", "timings")
            }
            timing = {key: value for key, value in rows.pop("timings")[0].items() if key != "id"}
            key = Cell(cell["network"], cell["data"], cell["seed"], cell["method"], cell["keep"])
            assert key.id == cell["id"]
            opened.write_cell(key, cell | rows, timing, run.arrays.get(cell["id"]), run.classes.get(cell["id"]))
    return path


def fail(run: MadeUpRun, cell: str, error: str) -> None:
    """Make one of the run's cells a failed one, as the store has it: no numbers, no rows in the other tables."""
    row = run.cells["id"] == cell
    numbers = run.cells.columns.intersection(["accuracy", "loss", "validation_accuracy", "achieved_keep", "kept"])
    run.cells.loc[row, numbers] = float("nan")
    run.cells.loc[row, "status"] = "failed"
    run.cells["error"] = run.cells["error"].astype(object).where(~row, error)
    run.layers = run.layers[run.layers["id"] != cell]
    run.checks = run.checks[run.checks["id"] != cell]


def set_accuracy(run: MadeUpRun, method: str, keep: float, test: list[float], validation: float) -> None:
    """Test accuracies of a method at a keep ratio, one a seed, and one validation accuracy for all."""
    rows = (run.cells["method"] == method) & (run.cells["keep"] == keep)
    run.cells.loc[rows, "accuracy"] = test
    run.cells.loc[rows, "validation_accuracy"] = validation
