"""Claims without probability: cases, comparisons with room for rounding, and a finding."""

import warnings
from abc import abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

from theory_checks.evidence.finding import Claim, Effort, Finding, Kind, Verdict
from theory_checks.subjects.subject import Subject

Case = TypeVar("Case")


@dataclass(frozen=True)
class Comparison:
    """measured <= bound + slack, entry by entry; slack is the room for rounding. NaN holds nowhere."""

    law: str
    measured: Any
    bound: Any
    slack: Any = 0.0

    @property
    def holds(self) -> bool:
        """Whether the law holds in every entry."""
        measured, limit = self._sides()
        return bool((measured <= limit).all())

    @property
    def worst(self) -> float:
        """The largest measured / (bound + slack): above 1 only in violations; infinite for NaN."""
        measured, limit = self._sides()
        ratio = torch.where(measured <= 0, 0.0, measured / limit.clamp(min=0))
        ratio = torch.where(
            measured <= limit, ratio.clamp(max=1), ratio.clamp(min=1).nan_to_num(torch.inf, posinf=torch.inf)
        )
        return float(ratio.max()) if ratio.numel() else 0.0

    def _sides(self) -> tuple[Tensor, Tensor]:
        sides = [torch.as_tensor(side, dtype=torch.float64) for side in (self.measured, self.bound, self.slack)]
        measured, bound, slack = torch.broadcast_tensors(*sides)
        return measured.detach(), (bound + slack).detach()


def close(law: str, found: Any, expected: Any, slack: Any) -> Comparison:
    """Both sides are the same number, up to rounding."""
    one, other = (torch.as_tensor(side, dtype=torch.float64) for side in (found, expected))
    return Comparison(law, (one - other).abs(), 0.0, slack)


def _quietly(comparisons: Iterator[Comparison]) -> list[Comparison]:
    """All of them, without torch's remark that some paddings cost a copy."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Using padding='same' with even kernel", UserWarning)
        return list(comparisons)


class IdentityClaim(Claim, Generic[Case]):
    """A claim that every case must satisfy; a subclass makes cases and compares."""

    kind: ClassVar[Kind] = Kind.IDENTITY

    @abstractmethod
    def cases(self, effort: Effort, rng: np.random.Generator) -> Iterable[Case]:
        """At least `effort.cases` cases, all from `rng`."""

    @abstractmethod
    def compare(self, subject: Subject, case: Case) -> Iterator[Comparison]:
        """Everything that the claim says about one case."""

    def check(self, subject: Subject, effort: Effort, seed: int) -> Finding:
        """One violation falsifies; so does a subject that raises."""
        rng = np.random.default_rng([seed, int(self.number[1:])])
        laws: Counter[str] = Counter()
        broken: Counter[str] = Counter()
        trials = violations = 0
        worst, first = 0.0, ""
        for case in self.cases(effort, rng):
            trials += 1
            reasons = []
            try:
                for comparison in _quietly(self.compare(subject, case)):
                    laws[comparison.law] += 1
                    worst = max(worst, comparison.worst)
                    if not comparison.holds:
                        broken[comparison.law] += 1
                        reasons.append(comparison.law)
            except Exception as error:  # whatever the code under test raises on a valid case is a violation
                worst = float("inf")
                broken[type(error).__name__] += 1
                reasons.append(f"{type(error).__name__}: {error}")
            if reasons:
                violations += 1
                first = first or f"{reasons[0]} ({case})"
        verdict = Verdict.FALSIFIED if violations else Verdict.HOLDS
        detail = (
            f"{violations} of {trials} cases violate it, the first one: {first}."
            if violations
            else f"{trials} cases, {sum(laws.values())} comparisons: none violated beyond rounding."
        )
        data = {"compared": dict(laws), "violated": dict(broken)}
        return Finding(self.number, verdict, trials, violations, worst, detail, data=data)
