"""Where a series took a step: the largest two-sample t over all places, corrected over all series of a page."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from scipy import stats

ALPHA = 0.01
"""The chance of any mark on a page without a step: Benjamini and Hochberg's rate, which then is just that."""
SIDE = 3
"""So many values at least are on either side of a step: a single strange run is none."""
_DRAWS = 19_999
_ROUNDING = 1e-9
"""A spread below this share of the values is none."""


@dataclass(frozen=True)
class Step:
    """Series number, the place of the first value after the step, and the p-value after correction."""

    series: int
    place: int
    p_adjusted: float


def find_steps(series: Sequence[Sequence[float]], alpha: float = ALPHA) -> list[Step]:
    """Every step of every series, by series and place.

    Statistic: max over t of |mean after t - mean before t| / its standard error by the pooled variance. Its p-value is
    from 19,999 series of normal noise of the same length (location and scale do not matter), with a fixed seed. False
    discovery rate alpha over the series (Benjamini and Hochberg, J. R. Statist. Soc. B 57, 1995). A series with a step
    is cut there and its parts are tested again, all parts together, until none has one. Where values before and after
    are all the same, as accuracies of unchanged code are, a change of any size is a step.

    Assumes independent noise of about normal shape; tests/history/test_steps.py measures others. A machine that is busy
    over several runs gives more marks than alpha in seconds; ratios to a reference hardly see it.
    """
    found = []
    parts = [(number, 0, np.asarray(values, dtype=np.float64)) for number, values in enumerate(series)]
    while parts := [part for part in parts if len(part[2]) >= 2 * SIDE]:
        tested = [_largest_t(values[None]) for _, _, values in parts]
        p_values = [_p_value(len(part[2]), float(t[0])) for part, (t, _) in zip(parts, tested, strict=True)]
        rest = []
        for (number, start, values), (_, places), p in zip(
            parts, tested, stats.false_discovery_control(p_values), strict=True
        ):
            if p <= alpha:
                place = int(places[0])
                found.append(Step(number, start + place, float(p)))
                rest += [(number, start, values[:place]), (number, start + place, values[place:])]
        parts = rest
    return sorted(found, key=lambda step: (step.series, step.place))


def _p_value(length: int, t: float) -> float:
    # What was seen is one more draw: p is never 0, and valid for any number of draws.
    return float((1 + (_null(length) >= t).sum()) / (1 + _DRAWS))


@cache
def _null(length: int) -> NDArray[np.float64]:
    return _largest_t(np.random.default_rng(0).standard_normal((_DRAWS, length)))[0]


def _largest_t(rows: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.intp]]:
    """Of each row: the largest |t|, infinite for a step without noise, 0 without a change; and its place."""
    n = rows.shape[1]
    before = np.arange(SIDE, n - SIDE + 1)
    after = n - before
    centred = rows - rows.mean(axis=1, keepdims=True)
    sums = np.cumsum(centred, axis=1)[:, before - 1]
    # The mean is 0, so that the sum after is minus that before.
    difference = sums / before + sums / after
    between = sums**2 * (1 / before + 1 / after)
    total = (centred**2).sum(axis=1, keepdims=True)
    nothing = (_ROUNDING * np.abs(rows).max(axis=1, keepdims=True)) ** 2 * n
    within = np.where(total - between > nothing, total - between, 0.0)
    error = np.sqrt(within / (n - 2) * (1 / before + 1 / after))
    with np.errstate(divide="ignore", invalid="ignore"):
        t = np.where(total > nothing, np.abs(difference) / error, 0.0)
    return t.max(axis=1), before[t.argmax(axis=1)]
