"""Where a series took a step: the largest two-sample t over all places, corrected over all series of a page."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

ALPHA = 0.01
"""The chance of any mark on a page without a step: Benjamini and Hochberg's rate, which then is just that."""
SIDE = 3
"""So many values at least are on either side of a step: a single strange run is none."""
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

    Statistic: max over t of |mean after t - mean before t| / its standard error by the pooled variance, Student's t
    with n - 2 degrees of freedom at each place; p-value: that of the largest, times the number of places (Bonferroni's
    bound). False discovery rate alpha over the series (Benjamini and Hochberg, J. R. Statist. Soc. B 57, 1995). A
    series with a step is cut there and its parts are tested again, all parts together, until none has one. Where values
    before and after are all the same, as accuracies of unchanged code are, a change of any size is a step.

    Assumes independent noise of about normal shape; tests/history/test_steps.py measures others. A machine that is busy
    over several runs gives more marks than alpha in seconds; ratios to a reference hardly see it.
    """
    found = []
    parts = [(number, 0, np.asarray(values, dtype=np.float64)) for number, values in enumerate(series)]
    while parts := [part for part in parts if len(part[2]) >= 2 * SIDE]:
        tested = [_largest_t(values) for _, _, values in parts]
        adjusted = stats.false_discovery_control([p for p, _ in tested])
        rest = []
        for (number, start, values), (_, place), p in zip(parts, tested, adjusted, strict=True):
            if p <= alpha:
                found.append(Step(number, start + place, float(p)))
                rest += [(number, start, values[:place]), (number, start + place, values[place:])]
        parts = rest
    return sorted(found, key=lambda step: (step.series, step.place))


def _largest_t(values: NDArray[np.float64]) -> tuple[float, int]:
    """p-value of the largest |t|, 0 for a step without noise, 1 without a change; and the place after which it is."""
    n = len(values)
    before = np.arange(SIDE, n - SIDE + 1)
    centred = values - values.mean()
    # The mean is 0, so that the sum after is minus that before.
    sums, sizes = np.cumsum(centred)[before - 1], 1 / before + 1 / (n - before)
    total, nothing = float((centred**2).sum()), n * (_ROUNDING * float(np.abs(values).max())) ** 2
    if total <= nothing:
        return 1.0, SIDE
    within = total - sums**2 * sizes
    if within.min() <= nothing:
        return 0.0, int(before[within.argmin()])
    t = np.abs(sums) * np.sqrt(sizes * (n - 2) / within)
    return min(1.0, 2 * len(before) * float(stats.t.sf(t.max(), n - 2))), int(before[t.argmax()])
