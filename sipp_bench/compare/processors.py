"""What another kind of processor changes, measured: checkpoints, masks, accuracies, and what `compare` says of them.

    python -m sipp_bench.compare.processors reports/baselines/processors.json BASE NEW [BASE NEW ...]

Each pair is two runs of one suite with the same code on two kinds of processor: run folders, or what a report published
of a run (its data/NAME.run.json, with cells.csv beside it). Other instructions of one processor are another kind, too:

    export ATEN_CPU_CAPABILITY=default MKL_CBWR=COMPATIBLE ONEDNN_MAX_CPU_ISA=SSE41 SIPP_BENCH_CACHE=FOLDER
    sipp-bench run processors

with a folder of its own for each kind, or checkpoints are not trained anew. The unit is the seed of a network:
methods and keep ratios of one network are not independent of each other. All accuracies are kept in the file, by seed.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

import numpy as np
import pandas as pd

from sipp_bench.compare.findings import ALPHA, holm
from sipp_bench.compare.paired import p_value
from sipp_bench.errors import OptionError, StoreError
from sipp_bench.machine.files import read_regular, write_atomically
from sipp_bench.store.folder import load_run

GOOD = 0.02
"""A pruned network within so much of the dense one counts as good: what a reader would use."""
_GROUP = ["network", "data", "method", "keep"]
Pair = dict[str, Any]


def read_pair(base: Path, new: Path) -> Pair:
    """The two runs, and of each (network, data, method, keep) the seeds with accuracies by seed, dense ones too.

    Raises StoreError for what is no run, OptionError for runs without a cell in common.
    """
    (first, one), (second, other) = _read(base), _read(new)
    both = one.merge(other, on=[*_GROUP, "seed"], suffixes=("", "_new")).dropna(subset=["accuracy", "accuracy_new"])
    if both.empty:
        raise OptionError(f"{base} and {new} have no cell in common: give two runs of one suite.")
    rows = []
    for key, group in both.sort_values([*_GROUP, "seed"]).groupby(_GROUP):
        same = group["checkpoint_sha256"] == group["checkpoint_sha256_new"]
        rows.append(
            dict(zip(_GROUP, key, strict=True))
            | {"seeds": group["seed"].tolist()}
            | {name: [round(value, 6) for value in group[name].tolist()] for name in _ACCURACIES}
            | {"same_checkpoint": same.tolist()}
            | {"same_mask": (group["mask_sha256"] == group["mask_sha256_new"]).tolist()}
        )
    return {"base": first, "new": second, "groups": rows}


_ACCURACIES = ("accuracy", "accuracy_new", "dense_accuracy", "dense_accuracy_new")


def summarise(pair: Pair) -> dict[str, Any]:
    """The figures of one pair, JSON-ready; differences are NEW minus BASE, of accuracy, in points (1 / 100).

    seeds_apart is the standard deviation of differences between the two kinds at one seed over that between two seeds
    of one kind, both pooled over the groups: 1 where the processor changes as much as another seed does.
    """
    groups = pair["groups"]
    cells = [flag for group in groups for flag in group["same_checkpoint"]]
    masks = [
        mask for g in groups for same, mask in zip(g["same_checkpoint"], g["same_mask"], strict=True) if same
    ]  # fmt: skip
    dense = {
        (g["network"], g["data"], seed): 100 * (new - base)
        for g in groups
        for seed, base, new in zip(g["seeds"], g["dense_accuracy"], g["dense_accuracy_new"], strict=True)
    }
    good = [g for g in groups if mean(g["accuracy"]) >= mean(g["dense_accuracy"]) - GOOD]
    rejected = _rejected(groups)
    return {
        "cells": len(cells),
        "cells_with_the_same_checkpoint": sum(cells),
        "of_these_with_the_same_mask": sum(masks),
        "networks": len(dense),
        "seeds": max(len(group["seeds"]) for group in groups),
        "dense": _sizes(list(dense.values())),
        "means": _sizes([_change(group) for group in groups]),
        "means_of_good": _sizes([_change(group) for group in good]),
        "means_of_others": _sizes([_change(group) for group in groups if group not in good]),
        "seeds_apart": _seeds_apart(groups),
        "tests": len(rejected),
        "tests_rejected": sum(rejected),
    }


def _change(group: dict[str, Any]) -> float:
    return float(100 * (mean(group["accuracy_new"]) - mean(group["accuracy"])))


def _sizes(differences: Sequence[float]) -> dict[str, float | int] | None:
    """How large differences are, without their signs."""
    if not differences:
        return None
    sizes = np.abs(differences)
    large = float(np.quantile(sizes, 0.95))
    return {"n": len(sizes), "median": median(sizes.tolist()), "quantile_95": large, "largest": float(sizes.max())}


def _seeds_apart(groups: Sequence[dict[str, Any]]) -> float | None:
    changes, spreads = [], []
    for group in groups:
        if len(group["seeds"]) > 1:
            pairs = zip(group["accuracy"], group["accuracy_new"], strict=True)
            changes.append(mean((new - base) ** 2 for base, new in pairs))
            spreads.append(stdev(group["accuracy"]) ** 2 + stdev(group["accuracy_new"]) ** 2)
    return float(np.sqrt(mean(changes) / mean(spreads))) if any(spreads) else None


def _rejected(groups: Sequence[dict[str, Any]]) -> list[bool]:
    """What `compare` calls a change of accuracy: a test a network, data and method, on means over the keep ratios."""
    methods: dict[tuple[str, ...], list[list[float]]] = {}
    for group in groups:
        change = [new - base for base, new in zip(group["accuracy"], group["accuracy_new"], strict=True)]
        methods.setdefault((group["network"], group["data"], group["method"]), []).append(change)
    p_values = [p_value([mean(each) for each in zip(*changes, strict=True)]) for changes in methods.values()]
    return [p <= ALPHA for p in holm(p_values)]


def _read(path: Path) -> tuple[dict[str, Any], pd.DataFrame]:
    """What a run was on, and its finished cells."""
    if path.is_dir():
        run = load_run(path)
        meta, cells, name = dict(run.meta), run.cells, path.name
    else:
        name = path.name.removesuffix(".run.json")
        meta = json.loads(read_regular(path))
        table = path.parent / "cells.csv"
        if not table.is_file():
            raise StoreError(f"{path} has no cells.csv beside it. Give a run folder, or the file in a report's data/.")
        cells = pd.read_csv(table)
        cells = cells[cells["run"] == name]
    found = {"run": name} | {key: meta.get(key) for key in ("machine", "versions", "commit", "started")}
    return found, cells[cells["status"] == "done"]


if __name__ == "__main__":
    if len(sys.argv) < 4 or len(sys.argv) % 2:
        sys.exit(f"Usage: {(__doc__ or '').splitlines()[2].strip()}")
    read = [read_pair(Path(base), Path(new)) for base, new in zip(sys.argv[2::2], sys.argv[3::2], strict=True)]
    result = {
        "format": 1,
        "alpha": ALPHA,
        "good": GOOD,
        "pairs": [{"summary": summarise(pair), **pair} for pair in read],
    }
    write_atomically(sys.argv[1], json.dumps(result, separators=(",", ":")) + "\n")
    for pair in read:
        print(pair["base"]["run"], pair["new"]["run"], json.dumps(summarise(pair), indent=1))
