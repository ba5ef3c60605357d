"""What a claim is: a statement, an assumption, a trial, and a finding that ends in exactly one verdict."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, ClassVar

from theory_checks.evidence.statistics import Interval
from theory_checks.subjects.subject import Subject


class Kind(StrEnum):
    """How a claim can be checked."""

    IDENTITY = "identity"  # no probability: one violation beyond rounding is a bug
    STATISTICAL = "statistical"  # a rate over independent trials
    CONDITIONAL = "conditional"  # holds under an assumption about the data that can only be audited


class Verdict(StrEnum):
    """THEORY section 5; never merged. Only `HOLDS` and `NOT_FALSIFIED` are passes."""

    HOLDS = "holds"
    NOT_FALSIFIED = "not falsified"
    CONDITIONAL = "conditional"
    USELESS = "useless"
    CANNOT_FAIL = "cannot fail"
    FALSIFIED = "falsified"

    @property
    def passed(self) -> bool:
        """Whether something was checked that could have failed, and did not."""
        return self in (Verdict.HOLDS, Verdict.NOT_FALSIFIED)


@dataclass(frozen=True)
class Finding:
    """What checking one claim gave.

    trials: independent trials (identities: cases); violations among them; worst: the largest measured / allowed seen,
    above 1 (or above 1 plus rounding for identities) only in violations; interval: for the violation rate;
    alpha, beta, detectable: of a statistical test (the smallest true rate that it misses at most with beta).
    detail: one sentence for people. data: numbers for the report, JSON-ready.
    """

    claim: str
    verdict: Verdict
    trials: int
    violations: int
    worst: float
    detail: str
    interval: Interval | None = None
    alpha: float | None = None
    beta: float | None = None
    detectable: float | None = None
    data: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Effort:
    """How much work a check may do. cases: of an identity. trials: least of a statistical test. tests: statistical
    decisions in the whole run, among which alpha is split.
    """

    name: str
    cases: int
    trials: int
    tests: int
    alpha: float = 1e-6

    @property
    def level(self) -> float:
        """alpha of a single decision."""
        return self.alpha / self.tests


QUICK = Effort("quick", cases=60, trials=2_000, tests=64)
FULL = Effort("full", cases=600, trials=20_000, tests=64)


class Claim(ABC):
    """One claim of THEORY.md; a subclass's docstring has the statement and the idea of its proof.

    rejects: names of the known-bad subjects that this claim must reject.
    """

    number: ClassVar[str]
    title: ClassVar[str]
    statement: ClassVar[str]
    kind: ClassVar[Kind]
    assumption: ClassVar[str] = "none"
    rejects: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def check(self, subject: Subject, effort: Effort, seed: int) -> Finding:
        """Try to falsify the claim on synthetic and adversarial cases, all derived from `seed`."""
