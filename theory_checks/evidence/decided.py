"""Exact decisions about rates, and a claim that is decided by them and by identities along the way."""

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from theory_checks.evidence import statistics
from theory_checks.evidence.finding import Claim, Effort, Finding, Verdict
from theory_checks.evidence.statistics import Interval
from theory_checks.subjects.subject import Subject

# Probability to miss the smallest violation that the number of trials is derived from.
BETA = 1e-3


@dataclass(frozen=True)
class Decision:
    """An exact binomial test of one claimed rate on `trials` independent trials.

    two_sided: whether the claim is "= rate", so that too few count as well; else it is "<= rate".
    """

    name: str
    count: int
    trials: int
    rate: float
    level: float
    two_sided: bool

    @property
    def p_value(self) -> float:
        """Of this count or one that is further off; twice the smaller tail for a two-sided test."""
        above = statistics.p_value(self.count, self.trials, self.rate)
        if not self.two_sided:
            return above
        below = statistics.p_value(self.trials - self.count, self.trials, 1 - self.rate)
        return min(1.0, 2 * min(above, below))

    @property
    def rejects(self) -> bool:
        """Whether the count falsifies the claimed rate."""
        return self.p_value <= self.level

    @property
    def interval(self) -> Interval:
        """Clopper-Pearson at the usual 95 %, for reading; the decision has its own, stricter level."""
        return statistics.clopper_pearson(self.count, self.trials)

    @property
    def detectable(self) -> float:
        """The smallest rate above the claimed one that is missed at most with BETA."""
        level = self.level / 2 if self.two_sided else self.level
        return statistics.smallest_detectable(self.trials, self.rate, level, BETA)

    @property
    def ratio(self) -> float:
        """The count by the largest that is accepted, or, of a two-sided test, the smallest accepted by the count.

        Above 1 exactly where the test rejects.
        """
        level = self.level / 2 if self.two_sided else self.level
        most = statistics.critical_count(self.trials, self.rate, level) - 1
        ratio = self.count / most if most > 0 else (math.inf if self.count > most else 0.0)
        if self.two_sided:
            fewest = self.trials - statistics.critical_count(self.trials, 1 - self.rate, level) + 1
            ratio = max(ratio, fewest / self.count if self.count > 0 else (math.inf if fewest > 0 else 0.0))
        return ratio

    def __str__(self) -> str:
        sign = "=" if self.two_sided else "<="
        return f"{self.name}: {self.count} of {self.trials}, claimed {sign} {self.rate:.4g}"


@dataclass(frozen=True)
class Outcome:
    """What a check saw: decisions about rates, multinomial p-values by name, identities that were violated."""

    decisions: Sequence[Decision]
    p_values: Mapping[str, float] = field(default_factory=dict)
    violations: Sequence[str] = ()
    detail: str = ""
    data: Mapping[str, Any] = field(default_factory=dict)


class DecidedClaim(Claim):
    """A claim decided by several exact tests, which share one decision's level (a union bound): a false alarm of the
    claim as a whole has probability at most `effort.level`.

    The first decision is the claim's main one, whose numbers the finding shows; `data` has all of them. A subject that
    raises an exception is falsified: it does not compute what the claim speaks of.
    """

    tests: ClassVar[int]
    verdict: ClassVar[Verdict] = Verdict.NOT_FALSIFIED

    @abstractmethod
    def observe(self, subject: Subject, effort: Effort, level: float, seed: int) -> Outcome:
        """Run the trials. level: of each of the claim's `tests` decisions."""

    def check(self, subject: Subject, effort: Effort, seed: int) -> Finding:
        try:
            outcome = self.observe(subject, effort, effort.level / self.tests, seed)
        except Exception as error:
            reason = f"{subject.name} raised {type(error).__name__}: {error}"
            return Finding(self.number, Verdict.FALSIFIED, 0, 1, math.inf, reason)
        made = len(outcome.decisions) + len(outcome.p_values)
        if made != self.tests:
            raise AssertionError(f"{self.number} made {made} decisions, but shares its level among {self.tests}.")
        return self._finding(outcome, effort)

    def _finding(self, outcome: Outcome, effort: Effort) -> Finding:
        level = effort.level / self.tests
        failed = [str(d) for d in outcome.decisions if d.rejects]
        failed += [f"{name}: p = {p:.2g}" for name, p in outcome.p_values.items() if p <= level]
        failed += outcome.violations
        main = outcome.decisions[0]
        data = {
            "decisions": [
                {
                    "name": d.name, "count": d.count, "trials": d.trials, "claimed": d.rate, "two_sided": d.two_sided,
                    "p_value": d.p_value, "low": d.interval.low, "high": d.interval.high, "detectable": d.detectable,
                }
                for d in outcome.decisions
            ],
            "p_values": dict(outcome.p_values),
            **outcome.data,
        }  # fmt: skip
        return Finding(
            claim=self.number,
            verdict=Verdict.FALSIFIED if failed else self.verdict,
            trials=main.trials,
            violations=main.count,
            worst=math.inf if outcome.violations else max(d.ratio for d in outcome.decisions),
            detail=("Falsified by " + "; ".join(failed) if failed else str(main) + ". " + outcome.detail).strip(),
            interval=main.interval,
            alpha=effort.level,
            beta=BETA,
            detectable=main.detectable,
            data=data,
        )


def trials_for(effort: Effort, rate: float, wrong: float, level: float) -> int:
    """Trials that tell `wrong`, above or below `rate`, from `rate` at this level with BETA; never below effort's."""
    if wrong > rate:
        return max(effort.trials, statistics.design(rate, wrong, level, BETA).trials)
    return max(effort.trials, statistics.design(1 - rate, 1 - wrong, level, BETA).trials)
