"""Run folders: cells that must be equal, accuracies paired by seed, and times.

What is deterministic must not change: where a cell's checkpoint is the same, the pruned weights, the counts and the
verdicts must be equal, and the bounds equal up to rounding (`epsilon_tolerance`). Any change is a regression, since no
program can say that it is meant: one that is meant goes into a new baseline, with the reason.

On another kind of processor sums are taken in another order. A network that is trained there has other weights, so that
accuracies decide, by seed. One and the same checkpoint has sensitivities that differ in their last digits, by which a
draw or a close call can fall otherwise: a change that rounding alone can be is undecided, any other a regression.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import pandas as pd

from sipp_bench.compare.accuracy import compare_accuracies, rows
from sipp_bench.compare.findings import Comparison, Finding, Kind, nothing, sort
from sipp_bench.compare.kinds import machines, other_kind
from sipp_bench.compare.timings import (
    LOST_REFERENCE,
    NOT_IN_TURNS,
    ONE_RUN,
    OTHER_MACHINE,
    Timing,
    as_moment,
    judge,
    took_turns,
)
from sipp_bench.store.folder import Run, load_run
from sipp_bench.store.records import read_json

_COUNTED = ("requested", "weights")
_CHOSEN = ("kept", "multiply_adds", "mask_sha256")
"""What follows from which weights were kept."""
_SETTINGS = ("method_name", "num_points", "delta")
_Samples = dict[tuple[Any, ...], float]
"""Of one timing in one run: by seed, or seed and keep ratio."""
_UNIT = 2.0**-24
"""Unit roundoff of float32, the precision of sensitivities."""


def compare(base_path: Path, new_path: Path) -> Comparison:
    """Two run folders, or folders of such folders, runs of one suite that were made one after the other.

    What is deterministic must be equal in all of them. Accuracies are those of the first run on either side. Times of
    several runs a side have one sample a run, the median over its cells, each cell relative to its median over all
    runs: ratios to the reference operation where all runs have it, else seconds, which decide only where the runs took
    turns on one machine. Raises StoreError for a folder that is none, or damaged.
    """
    sides = [[load_run(folder) for folder in _folders(path)] for path in (base_path, new_path)]
    base, new = sides[0][0], sides[1][0]
    common = set(base.cells["id"]) & set(new.cells["id"])
    if not common:
        return nothing(str(base_path), str(new_path), "cell", "BASE and NEW have no cell in common.")
    # Of one experiment: only these say anything by their accuracies and times.
    unlike = _other_settings(base, new)
    alike = common - unlike.keys()
    findings = [
        *_cells(base, new, unlike),
        *_repeated(base, [*sides[0][1:], *sides[1][1:]]),
        *compare_accuracies(base, new, alike),
        *judge(_timings(sides, alike)),
    ]
    # Where no network is the same, cells cannot decide anything.
    decided = any(finding.kind == "cell" and finding.status in ("same", "better") for finding in findings)
    subject: Kind = "cell" if decided or other_kind(base, new) is None else "accuracy"
    return Comparison(str(base_path), str(new_path), subject, sort(findings), _notes(base, new))


def _folders(path: Path) -> list[Path]:
    """The run folders in a folder of them; of anything else itself."""
    inner = [] if (path / "run.json").exists() else sorted(file.parent for file in path.glob("*/run.json"))
    return inner or [path]


def _repeated(first: Run, others: Iterable[Run]) -> list[Finding]:
    """Cells of further runs that are not as in the first of BASE."""
    return [
        replace(finding, name=f"{finding.name}, in {run.path}")
        for run in others
        for finding in _cells(first, run, _other_settings(first, run))
        if finding.status == "regression"
    ]


def epsilon_tolerance(a: float, b: float, fan_in: int) -> float:
    """How far one bound may be from another for rounding alone: 2 (n + 4) u max(a, b), n = fan_in, u = 2^-24.

    A sensitivity is a quotient w a / sum of n non-negative products, in float32: whatever the order of the sum it is
    within (n + 3) u relative of the exact one (Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed., 3.1),
    and so is a sum of sensitivities. No bound (claims C2, C10, C12, C13) has a relative change above that of the sum T
    it is made from: min(1, T) has not, nor have the roots of T and of v, since v' T / v is at most 2. The maximum and
    the mean over blocks keep that. Two computations are apart by twice as much; the fourth u is for float64 sums.
    Activations are taken as equal, which they are on one machine with one version of torch.
    """
    return 2 * (fan_in + 4) * _UNIT * max(abs(a), abs(b))


def _cells(base: Run, new: Run, unlike: Mapping[str, str]) -> list[Finding]:
    """One finding a cell, those of NEW alone last; `unlike`: reasons of those that are not of one experiment."""
    befores, afters = _by_id(base.cells), _by_id(new.cells)
    elsewhere = other_kind(base, new)
    layers, checks = [_grouped(run.layers) for run in (base, new)], [_grouped(run.checks) for run in (base, new)]
    findings = []
    for cell, before in befores.items():
        after = afters.get(cell)
        if after is None:
            findings.append(Finding("cell", cell, "regression", "Missing in NEW."))
        elif before["status"] == "failed" or after["status"] == "failed":
            findings.append(_failed(cell, before, after))
        elif cell in unlike:
            findings.append(Finding("cell", cell, "not comparable", unlike[cell]))
        elif before["checkpoint_sha256"] != after["checkpoint_sha256"]:
            reason = "The checkpoints differ: the networks that were pruned are not the same."
            if elsewhere is not None:
                reason = f"{elsewhere}: the checkpoints differ, as expected."
            findings.append(Finding("cell", cell, "not comparable", reason))
        else:
            counted, chosen = _layers(layers[0].get(cell, []), layers[1].get(cell, []), checks[0].get(cell, []))
            counted = [
                *_differing(_COUNTED, before, after),
                *_verdicts(checks[0].get(cell, []), checks[1].get(cell, [])),
                *counted,
            ]
            findings.append(_same_network(cell, counted, [*_differing(_CHOSEN, before, after), *chosen], elsewhere))
    extra = [cell for cell in afters if cell not in befores]
    return findings + [Finding("cell", cell, "not comparable", "Not in BASE.") for cell in extra]


def _differing(keys: Sequence[str], before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    return [f"{key} {_short(before[key])} -> {_short(after[key])}" for key in keys if _unlike(before[key], after[key])]


def _same_network(cell: str, counted: Sequence[str], chosen: Sequence[str], elsewhere: str | None) -> Finding:
    """chosen: changes that rounding can bring about where it is another's; counted: those that it cannot."""
    changes = "; ".join([*counted, *chosen])
    if not changes:
        return Finding("cell", cell, "same", "Equal.")
    if elsewhere is None or counted:
        return Finding("cell", cell, "regression", f"Changed: {changes}.")
    # Without the values, so that cells in which the same has changed are one line of the output.
    what = ", ".join(change.rpartition(" -> ")[0].rpartition(" ")[0] for change in chosen)
    return Finding("cell", cell, "undecided", f"{elsewhere}: rounding alone can change {what}.")


def _failed(cell: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> Finding:
    if after["status"] != "failed":
        return Finding("cell", cell, "better", "Failed in BASE, done in NEW.")
    if before["status"] != "failed":
        return Finding("cell", cell, "regression", f"Failed in NEW: {after['error']}")
    return Finding("cell", cell, "not comparable", "Failed in both.")


def _other_settings(base: Run, new: Run) -> dict[str, str]:
    """Cells that both have done by different rules of their suites, and what differs."""
    if base.meta["suite"]["sha256"] == new.meta["suite"]["sha256"]:
        return {}
    found, afters = {}, _by_id(new.cells)
    for cell, before in _by_id(base.cells).items():
        after = afters.get(cell)
        if after is None or "failed" in (before["status"], after["status"]):
            continue
        pairs = {key: (before[key], after[key]) for key in _SETTINGS}
        options = [read_json(run.path / "cells" / f"{cell}.json").get("options") for run in (base, new)]
        pairs["options"] = (options[0], options[1])
        differing = [f"{key} is {a} and {b}" for key, (a, b) in pairs.items() if _unlike(a, b)]
        if differing:
            found[cell] = f"The suites differ: {', '.join(differing)}."
    return found


def _verdicts(before: Iterable[Mapping[str, Any]], after: Iterable[Mapping[str, Any]]) -> list[str]:
    was, now = ({(row["claim"], row["on"], row["layer"]): row["verdict"] for row in found} for found in (before, after))
    return [
        f"{' '.join(key)}: {was.get(key, 'no verdict')} -> {now.get(key, 'no verdict')}"
        for key in {**was, **now}
        if was.get(key) != now.get(key)
    ]


def _layers(
    before: Iterable[Mapping[str, Any]], after: Iterable[Mapping[str, Any]], checks: Iterable[Mapping[str, Any]]
) -> tuple[list[str], list[str]]:
    """What has changed that no rounding can change, and what it can."""
    blocks = {row["layer"]: int(row["blocks"]) for row in checks}
    was, now = ({row["layer"]: row for row in found} for found in (before, after))
    counted, chosen = [f"layer {name} is in one run only" for name in was.keys() ^ now.keys()], []
    for name in was.keys() & now.keys():
        old, recent = was[name], now[name]
        counted += [f"{name} {text}" for text in _differing(("requested",), old, recent)]
        chosen += [f"{name} {text}" for text in _differing(("kept",), old, recent)]
        # Two blocks a neuron. Without checks the number of neurons is not recorded: the whole weight is an upper bound.
        fan_in = int(old["weights"]) * 2 // max(1, blocks.get(name, 2))
        for key in ("epsilon_max", "epsilon_mean"):
            a, b = float(old[key]), float(recent[key])
            if not (a == b or (math.isnan(a) and math.isnan(b)) or abs(a - b) <= epsilon_tolerance(a, b, fan_in)):
                chosen.append(f"{name} {key} {a:.6g} -> {b:.6g}")
    return sorted(counted), sorted(chosen)


def _timings(sides: Sequence[Sequence[Run]], common: set[str]) -> list[Timing]:
    """One a network, data, method and part of the work. The fit of a method is one sample a seed, not one a keep.

    As ratios to the reference operation that is timed in every cell; runs of before it have seconds only, in which a
    difference of one run a side decides nothing.
    """
    beside = [all(_has_reference(run, common) for run in runs) for runs in sides]
    found = [[_samples(run, common, ratios=all(beside)) for run in runs] for runs in sides]
    several = min(map(len, sides)) > 1
    found_on = [machines(run) for runs in sides for run in runs]
    same_machine = all(each == found_on[0] for each in found_on) and len(found_on[0]) == 1
    in_turns = took_turns(*([as_moment(run.meta.get("started")) for run in runs] for runs in sides))
    doubt = None if all(beside) or (several and in_turns) else NOT_IN_TURNS if several else ONE_RUN
    lost = LOST_REFERENCE if beside[0] and not beside[1] else None
    reason = None if all(beside) or same_machine or lost else OTHER_MACHINE
    timings = []
    for name in dict.fromkeys(name for runs in found for run in runs for name in run):
        base, new = ([run.get(name, {}) for run in runs] for runs in found)
        missing = sum(not each for each in new)
        some = f"Missing in {missing} of {len(new)} runs of NEW." if all(base) and 0 < missing < len(new) else lost
        samples = _one_a_run(base, new) if several else (tuple(base[0].values()), tuple(new[0].values()))
        unit = "of the reference" if all(beside) else "s"
        timings.append(Timing(name, *samples, unit, reason, doubt, some))
    return timings


def _one_a_run(base: list[_Samples], new: list[_Samples]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Of each run the median over what it measured, each relative to its median over all runs of both sides.

    The middle is the same whichever runs are called BASE, so that the samples are exchangeable where the code is equal.
    """
    every = {key for run in (*base, *new) for key in run}
    middle = {key: median(run[key] for run in (*base, *new) if key in run) for key in every}
    scale = median(middle.values()) if middle else 1.0

    def sample(run: _Samples) -> float:
        return scale * median(value / middle[key] for key, value in run.items())

    first, second = ([sample(run) for run in runs if run] for runs in (base, new))
    return tuple(first), tuple(second)


def _has_reference(run: Run, common: set[str]) -> bool:
    done = common & set(run.cells["id"][run.cells["status"] == "done"])
    return bool((run.timings["reference_seconds"][run.timings["id"].isin(done)] > 0).all())


def _samples(run: Run, common: set[str], ratios: bool) -> dict[str, _Samples]:
    cells = _by_id(run.cells)
    found: dict[str, _Samples] = {}
    for row in rows(run.timings):
        if row["id"] not in common:
            continue
        cell = cells[row["id"]]
        for part in ("fit", "prune", "protocol", "evaluate", "check"):
            seconds = float(row[f"{part}_seconds"]) / (float(row["reference_seconds"]) if ratios else 1.0)
            key = (cell["seed"],) if part == "fit" else (cell["seed"], cell["keep"])
            if math.isfinite(seconds) and seconds > 0:
                name = f"{cell['network']} on {cell['data']}, {cell['method']}: {part}"
                found.setdefault(name, {}).setdefault(key, seconds)
    return found


def _notes(base: Run, new: Run) -> tuple[str, ...]:
    notes = []
    if (elsewhere := other_kind(base, new)) is not None:
        notes.append(f"{elsewhere}: networks that are trained there differ. Accuracies are compared by seed.")
    if machines(base) != machines(new):
        notes.append("The machines differ: seconds are not compared.")
    was, now = ((run.meta["resumed"] or [run.meta])[-1].get("versions") or {} for run in (base, new))
    notes += [f"{name} {was.get(name)} -> {now.get(name)}" for name in {**was, **now} if was.get(name) != now.get(name)]
    if base.meta["suite"]["sha256"] != new.meta["suite"]["sha256"]:
        notes.append("The suite files differ.")
    return tuple(notes)


def _by_id(table: pd.DataFrame) -> dict[str, dict[str, Any]]:
    return {row["id"]: row for row in rows(table)}


def _grouped(table: pd.DataFrame) -> dict[str, list[dict[str, Any]]]:
    grouped: dict[str, list[dict[str, Any]]] = {}
    for row in rows(table):
        grouped.setdefault(row["id"], []).append(row)
    return grouped


def _unlike(a: Any, b: Any) -> bool:
    """Whether two values of a table differ; NaN and None stand for what is not there."""
    return not (a == b or (_absent(a) and _absent(b)))


def _short(value: Any) -> str:
    return value[:12] if isinstance(value, str) else f"{value:.15g}" if isinstance(value, float) else str(value)


def _absent(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))
