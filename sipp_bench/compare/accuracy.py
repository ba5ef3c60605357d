"""Accuracies of two runs, paired by seed: one test a network, data set and method."""

import math
from collections.abc import Sequence, Set
from dataclasses import dataclass, field
from statistics import mean, median
from typing import Any

import pandas as pd
from scipy import stats

from sipp_bench.compare.findings import ALPHA, Finding, Status, holm
from sipp_bench.compare.paired import p_value, spread_of
from sipp_bench.store.folder import Run

MARGIN = 0.01
"""A group of seeds that cannot exclude a change of this much (one point of accuracy) decides nothing."""


@dataclass
class _Group:
    name: str
    base: dict[int, list[float]] = field(default_factory=dict)
    new: dict[int, list[float]] = field(default_factory=dict)
    lost: list[str] = field(default_factory=list)
    """Cells with an accuracy in BASE and none in NEW, though done."""

    @property
    def pairs(self) -> list[tuple[float, float]]:
        """By seed: the means over the keep ratios that both have."""
        return [(mean(self.base[seed]), mean(self.new[seed])) for seed in self.base]

    @property
    def differences(self) -> list[float]:
        """By seed: NEW minus BASE."""
        return [after - before for before, after in self.pairs]


def rows(table: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows of a table by column name."""
    return [{str(key): value for key, value in row.items()} for row in table.to_dict("records")]


def compare_accuracies(base: Run, new: Run, cells: Set[str]) -> list[Finding]:
    """One finding a (network, data, method) with cells done in both runs, of those given by their ids.

    Paired t-test over seeds on each seed's mean over keep ratios, Holm over the groups. Equal accuracies are "same"
    without a test. A group that is not rejected is "same" if its interval (1 - alpha over all groups) lies within one
    point of accuracy, else its seeds are too few: "undecided".
    """
    groups = _groups(base, new, cells)
    p_values = {name: p_value(group.differences) for name, group in groups.items() if group.pairs}
    adjusted = dict(zip(p_values, holm(list(p_values.values())), strict=True))
    findings = []
    for name, group in groups.items():
        _, data, _ = name
        if base.meta["data"].get(data) != new.meta["data"].get(data):
            findings.append(Finding("accuracy", group.name, "not comparable", "The data differ."))
        elif group.lost:
            message = f"No accuracy in NEW of {len(group.lost)} cells, the first {group.lost[0]}."
            findings.append(Finding("accuracy", group.name, "regression", message))
        elif name in adjusted:
            findings.append(_judged(group, p_values[name], adjusted[name], len(adjusted)))
    return findings


def _judged(group: _Group, p: float, p_adjusted: float, tests: int) -> Finding:
    pairs, differences = group.pairs, group.differences
    change = mean(differences)
    status: Status = "same"
    message = "Equal." if not any(differences) else f"{100 * change:+.2f} points, within noise."
    if p_adjusted <= ALPHA:
        status = "better" if change > 0 else "regression"
        message = f"{100 * change:+.2f} points of accuracy in the mean of {len(pairs)} seeds."
    elif any(differences) and (room := _room(differences, tests)) > MARGIN:
        status = "undecided"
        message = f"{100 * change:+.2f} points; {len(pairs)} seeds are too few to decide"
        message += f" (changes of up to {100 * room:.3g} points are possible)." if room < 1 else "."
    medians = median(before for before, _ in pairs), median(after for _, after in pairs)
    n = (len(pairs), len(pairs))
    return Finding("accuracy", group.name, status, message, n, medians, "accuracy", p, p_adjusted)


def _room(differences: Sequence[float], tests: int) -> float:
    """The largest change, in either direction, that the seeds leave possible; infinite where they show no spread."""
    spread, n = spread_of(differences), len(differences)
    if spread == 0:
        return math.inf
    return abs(mean(differences)) + float(stats.t.isf(ALPHA / tests / 2, n - 1)) * spread / math.sqrt(n)


def _groups(base: Run, new: Run, cells: Set[str]) -> dict[tuple[str, str, str], _Group]:
    afters = {row["id"]: row for row in rows(new.cells) if row["id"] in cells}
    groups: dict[tuple[str, str, str], _Group] = {}
    for row in rows(base.cells):
        after = afters.get(row["id"])
        if row["status"] != "done" or after is None or after["status"] != "done" or math.isnan(row["accuracy"]):
            continue
        key = (row["network"], row["data"], row["method"])
        group = groups.setdefault(key, _Group(f"{key[0]} on {key[1]}, {key[2]}"))
        if math.isnan(after["accuracy"]):
            group.lost.append(row["id"])
            continue
        group.base.setdefault(int(row["seed"]), []).append(row["accuracy"])
        group.new.setdefault(int(row["seed"]), []).append(after["accuracy"])
    return groups
