"""Two sets of samples of one timing: slower, faster, the same, or too few to tell."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from statistics import median

from scipy import stats

from sipp_bench.compare.findings import ALPHA, THRESHOLD, Finding, Status, holm

_EXACT = 50
"""Up to so many samples a side the test is exact; beyond, the normal approximation is as good."""


OTHER_MACHINE = (
    "Seconds of different or undescribed machines do not compare, and no reference operation was timed beside them."
)
ONE_RUN = (
    "But one run a side cannot tell slower code from a busier machine by seconds alone: time a reference operation "
    "beside it, or compare two folders of runs that took turns."
)
NOT_IN_TURNS = (
    "But the runs did not take turns, or do not say when they were, so that it may be the machine that changed."
)
LOST_REFERENCE = "Timed beside a reference operation in BASE, but not in NEW."


@dataclass(frozen=True)
class Timing:
    """The samples of one timing in BASE and in NEW, and their unit.

    reason: why they do not compare, if so; doubt: why a difference between them need not be one of the code, if so;
    lost: what of the measurement BASE has and NEW has not, if anything.
    """

    name: str
    base: tuple[float, ...]
    new: tuple[float, ...]
    unit: str
    reason: str | None = None
    doubt: str | None = None
    lost: str | None = None


def judge(timings: Sequence[Timing]) -> list[Finding]:
    """One finding a timing, in order. A difference needs both: medians more than 10 % apart, and a two-sided
    Mann-Whitney test that rejects at alpha, corrected by Holm over all timings here that are without doubt.

    No samples in NEW is a regression, and so is a lost reference; none in BASE is not comparable. The test takes
    samples for independent. Ratios to a reference beside them are, nearly; seconds of one run are not, since a busier
    machine makes all of them longer. A difference of such samples is "undecided", with the doubt said.
    """
    tested = [timing for timing in timings if timing.base and timing.new and not (timing.reason or timing.lost)]
    findings: dict[int, Finding] = {}
    for family in ([t for t in tested if t.doubt is None], [t for t in tested if t.doubt is not None]):
        p_values = [_p_value(timing.base, timing.new) for timing in family]
        for timing, p, p_adjusted in zip(family, p_values, holm(p_values), strict=True):
            findings[id(timing)] = _judged(timing, p, p_adjusted, len(family))
    return [findings[id(timing)] if id(timing) in findings else _untested(timing) for timing in timings]


def as_moment(text: object) -> datetime | None:
    """An ISO date and time, in UTC where it does not say; None for anything else."""
    try:
        when = datetime.fromisoformat(str(text))
    except ValueError:
        return None
    return when if when.tzinfo else when.replace(tzinfo=UTC)


def took_turns(base: Sequence[datetime | None], new: Sequence[datetime | None]) -> bool:
    """Whether runs that began then had never more than two of one side in a row; not, where one does not say."""
    moments = [(when, side) for side, runs in enumerate((base, new)) for when in runs]
    known = sorted((when, side) for when, side in moments if when is not None)
    sides = [side for _, side in known]
    in_a_row = any(a == b == c for a, b, c in zip(sides, sides[1:], sides[2:], strict=False))
    return len(known) == len(moments) and not in_a_row


def smallest_p(base: int, new: int) -> float:
    """The smallest p-value that so many samples can give: two of the binomial(base + new, base) orders."""
    return min(1.0, 2 / math.comb(base + new, base))


def _p_value(base: Sequence[float], new: Sequence[float]) -> float:
    # The exact distribution is that without ties.
    exact = max(len(base), len(new)) <= _EXACT and len({*base, *new}) == len(base) + len(new)
    return float(stats.mannwhitneyu(base, new, method="exact" if exact else "asymptotic").pvalue)


def _judged(timing: Timing, p: float, p_adjusted: float, tests: int) -> Finding:
    before, after = median(timing.base), median(timing.new)
    ratio = after / before if before > 0 else math.inf if after > 0 else 1.0
    status: Status = "same"
    message = "No difference beyond noise and 10 %."
    if max(ratio, 1 / ratio if ratio > 0 else math.inf) > 1 + THRESHOLD:
        if p_adjusted <= ALPHA:
            status = "regression" if ratio > 1 else "better"
            message = f"{_times(ratio)} as {'slow' if ratio > 1 else 'fast'}."
            if timing.doubt is not None:
                status, message = "undecided", f"{message} {timing.doubt}"
        elif smallest_p(len(timing.base), len(timing.new)) * tests > ALPHA:
            status = "undecided"
            message = "The medians are more than 10 % apart, but the samples are too few to tell that from noise."
    n = (len(timing.base), len(timing.new))
    return Finding("timing", timing.name, status, message, n, (before, after), timing.unit, p, p_adjusted)


def _times(ratio: float) -> str:
    """1.15 and 1 / 1.15 are both "1.15 times"."""
    return f"{max(ratio, 1 / ratio if ratio > 0 else math.inf):.3g} times"


def _untested(timing: Timing) -> Finding:
    n = (len(timing.base), len(timing.new))
    if not timing.base:
        return Finding("timing", timing.name, "not comparable", "Not measured in BASE.", n)
    if timing.lost or not timing.new:
        message = timing.lost or "Measured in BASE, but not in NEW."
        return Finding("timing", timing.name, "regression", message, n)
    return Finding("timing", timing.name, "not comparable", str(timing.reason), n)
