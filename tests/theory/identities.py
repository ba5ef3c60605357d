"""What the tests of the identity claims share."""

from dataclasses import replace
from typing import Any

import numpy as np
from hypothesis import HealthCheck, settings

from theory_checks.evidence.finding import QUICK
from theory_checks.evidence.identity import Comparison, IdentityClaim
from theory_checks.subjects.subject import Subject

FEW = replace(QUICK, cases=12)
PROPERTY = settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.too_slow])


def first_violation(claim: IdentityClaim[Any], subject: Subject, seed: int = 0) -> Comparison | None:
    """What rejects a subject first, among the cases of the quick profile.

    Exceptions get through: a known-bad subject is to be caught by its numbers, not by a crash.
    """
    for case in claim.cases(QUICK, np.random.default_rng(seed)):
        for comparison in claim.compare(subject, case):
            if not comparison.holds:
                return comparison
    return None


def assert_holds(comparisons: list[Comparison], case: object) -> float:
    """Every comparison holds; the largest measured / allowed."""
    for comparison in comparisons:
        assert comparison.holds, f"{comparison.law}: {comparison.worst} times what is allowed, {case}"
    return max((comparison.worst for comparison in comparisons), default=0.0)
