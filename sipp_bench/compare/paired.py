"""Two things measured on the same seeds: their difference, its interval, its p-value, and one word for it.

The unit is one independent seed. Differences d_1..d_n of n seeds with mean m and sample standard deviation s: the
95 % interval is m ± t(0.975; n - 1) s / sqrt(n), the test the paired t-test of m = 0. Both take differences for
normally distributed; three seeds cannot say whether they are, and few of them decide much.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Literal

from scipy import stats

LEVEL = 0.05
"""Of a verdict after Holm's correction, and 1 minus the confidence of the intervals beside it."""
CHANCE_LEVEL = 0.01
"""One-sided level of the test whether a network is better than guessing."""
_ROUNDING = 1e-12
"""Accuracies are counts over n: a spread below this is none."""

Verdict = Literal["ahead", "behind", "undecided", "at chance", "one seed"]
VERDICTS: tuple[Verdict, ...] = ("ahead", "behind", "undecided", "at chance", "one seed")


@dataclass(frozen=True)
class Paired:
    """What n paired differences say: their mean, its 95 % interval, the two-sided p-value.

    low and high are NaN where there is no spread to make an interval from: one seed, or equal differences.
    """

    n: int
    difference: float
    low: float
    high: float
    p: float


def paired(differences: Sequence[float]) -> Paired:
    """The mean of the differences with its interval and test; all NaN but p = 1 for no differences."""
    n = len(differences)
    if n == 0:
        return Paired(0, math.nan, math.nan, math.nan, 1.0)
    middle, spread = mean(differences), spread_of(differences)
    reach = float(stats.t.isf(LEVEL / 2, n - 1)) * spread / math.sqrt(n) if spread else math.nan
    return Paired(n, middle, middle - reach, middle + reach, p_value(differences))


def p_value(differences: Sequence[float]) -> float:
    """Two-sided p-value of the paired t-test; 1 for differences of 0, and for one seed.

    Differences that are all the same have no spread for it to measure, which happens to accuracies, being counts: the
    sign test stands in, 2^(1 - n).
    """
    if not any(differences):
        return 1.0
    spread = spread_of(differences)
    if spread == 0:
        return 2.0 ** (1 - len(differences))
    t = mean(differences) / (spread / math.sqrt(len(differences)))
    return float(2 * stats.t.sf(abs(t), len(differences) - 1))


def spread_of(differences: Sequence[float]) -> float:
    """Sample standard deviation, 0 below the rounding of accuracies and for one seed."""
    spread = stdev(differences) if len(differences) > 1 else 0.0
    return spread if spread > _ROUNDING else 0.0


def verdict(found: Paired, p_adjusted: float, at_chance: bool) -> Verdict:
    """One word: at chance where both sides guess, one seed where there is no test, else what the corrected test says.

    p_adjusted: `found.p` after Holm's correction over its family (`findings.holm`).
    """
    if at_chance:
        return "at chance"
    if found.n < 2:
        return "one seed"
    if p_adjusted > LEVEL:
        return "undecided"
    return "ahead" if found.difference > 0 else "behind"


def guesses(accuracy: float, points: int, classes: int) -> bool:
    """Whether so many right answers could be guesses: Pr(Bin(points, 1/classes) >= right) above CHANCE_LEVEL.

    Exact, for test sets of about equal classes. A network that has collapsed to one class is right on that class's
    share of the points, 1/classes of a balanced set.
    """
    right = round(accuracy * points)
    return float(stats.binom.sf(right - 1, points, 1 / classes)) > CHANCE_LEVEL
