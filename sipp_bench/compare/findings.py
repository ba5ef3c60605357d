"""What a comparison finds, one finding a thing compared, and what all of them amount to."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

ALPHA = 0.01
"""False alarms of all tests of one family (the accuracies, the timings) together: Holm's correction."""
THRESHOLD = 0.10
"""A timing must also be this much slower or faster: a difference that is certain may still be of no interest."""

Kind = Literal["cell", "accuracy", "timing"]
KINDS: tuple[Kind, ...] = ("cell", "accuracy", "timing")
Status = Literal["regression", "not comparable", "undecided", "better", "same"]
STATUSES: tuple[Status, ...] = ("regression", "not comparable", "undecided", "better", "same")
"""Worst first."""


@dataclass(frozen=True)
class Finding:
    """One thing that was compared. The numbers are None where there was nothing to count or test.

    n: samples of BASE and of NEW; medians: of these samples, in `unit`; p: of the test; p_adjusted: after Holm's
    correction, which is what is compared with alpha.
    """

    kind: Kind
    name: str
    status: Status
    message: str
    n: tuple[int, int] | None = None
    medians: tuple[float, float] | None = None
    unit: str | None = None
    p: float | None = None
    p_adjusted: float | None = None


@dataclass(frozen=True)
class Comparison:
    """All findings, worst first. `subject` is the kind that decides whether the two could be compared at all."""

    base: str
    new: str
    subject: Kind
    findings: tuple[Finding, ...]
    notes: tuple[str, ...] = ()
    """What differs around the results: machine, versions."""

    @property
    def counts(self) -> dict[Status, int]:
        """How many findings of each status, worst first, zeros included."""
        counted = Counter(finding.status for finding in self.findings)
        return {status: counted[status] for status in STATUSES}

    @property
    def exit_code(self) -> int:
        """1 for any regression; 2 where nothing of the subject could be compared or decided; else 0."""
        if self.counts["regression"]:
            return 1
        decided = any(
            finding.kind == self.subject and finding.status in ("same", "better") for finding in self.findings
        )
        return 0 if decided else 2

    @property
    def verdict(self) -> str:
        """The exit code as words."""
        return ("same or better", "regression", "not comparable")[self.exit_code]


def sort(findings: Sequence[Finding]) -> tuple[Finding, ...]:
    """Worst first, otherwise as they come."""
    return tuple(sorted(findings, key=lambda finding: STATUSES.index(finding.status)))


def nothing(base: str, new: str, subject: Kind, reason: str) -> Comparison:
    """The comparison of two things that have nothing to compare."""
    return Comparison(base, new, subject, (Finding(subject, "everything", "not comparable", reason),))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values: rejecting those of at most alpha makes a false alarm in any with probability alpha.

    Holds whatever the dependence between the tests (Holm, Scand. J. Statist. 6, 1979).
    """
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p, kind="stable")
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(np.maximum.accumulate(p[order] * (len(p) - np.arange(len(p)))), 1)
    return [float(value) for value in adjusted]
