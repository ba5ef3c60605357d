"""Claim C9: draws by sensitivity are unbiased, with a variance that is known exactly."""

import itertools
import json
import math
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from sampling_claims import SMALL, rejects, shrunk

from theory_checks.cases import hard_cases
from theory_checks.claims import QUICK, Effort, Verdict, claims
from theory_checks.evidence import drawn
from theory_checks.subjects.known_bad import KNOWN_BAD
from theory_checks.subjects.subject import REFERENCE

CLAIM = claims()["C9"]
pytestmark = pytest.mark.statistical


@pytest.mark.parametrize(("seed", "effort"), [(0, QUICK), (1, SMALL), (2, SMALL)])
def test_the_reference_is_not_falsified(seed: int, effort: Effort) -> None:
    finding = CLAIM.check(REFERENCE, effort, seed)
    assert finding.verdict is Verdict.NOT_FALSIFIED, finding.detail
    assert finding.violations == 0
    json.dumps(finding.data)


@pytest.mark.parametrize("name", CLAIM.rejects)
def test_known_bad_subjects_are_rejected(name: str) -> None:
    assert rejects(CLAIM, name)


def test_the_variance_bound_is_tight() -> None:
    assert shrunk(CLAIM, 0.99).verdict is Verdict.FALSIFIED
    assert shrunk(CLAIM, 1.01).verdict is Verdict.NOT_FALSIFIED


@pytest.mark.parametrize(("weights", "active", "draws"), [(3, 1, 4), (5, 2, 3), (4, 4, 2)])
def test_the_variance_bound_is_attained_by_exact_arithmetic(weights: int, active: int, draws: int) -> None:
    # g = s = 1 / active, T = weights / active: Zhat / Z = T / m times the draws that hit, in fractions.
    total, q = Fraction(weights, active), Fraction(1, weights)
    mean = second = Fraction(0)
    for counts in itertools.product(range(draws + 1), repeat=weights):
        if sum(counts) == draws:
            ways = math.factorial(draws) // math.prod(map(math.factorial, counts))
            ratio = total * sum(counts[:active]) / draws
            mean += ways * q**draws * ratio
            second += ways * q**draws * ratio**2
    assert mean == 1
    assert second - mean**2 == (total - 1) / draws
    block = hard_cases.windows(weights, active, np.random.default_rng(0))
    assert block.total == pytest.approx(float(total), rel=1e-14)
    assert block.variance(draws) == pytest.approx(float((total - 1) / draws), rel=1e-13, abs=1e-14)


def test_moments_by_enumeration_see_a_wrong_outcome() -> None:
    block = hard_cases.linear(np.array([1.0, 2.0, 0.5]), np.array([[1.0, -1.0, 2.0], [3.0, 1.0, 0.0]]), "signed")
    q = block.s / block.total
    right = drawn.exact_moments(block, {}, q, 2)
    assert drawn.close(right.mean, 1.0, right.slack)
    assert drawn.close(right.covariance, -0.5, right.slack)
    assert not drawn.close(right.mean, 1.0 + 1e-9, right.slack)
    wrong = drawn.exact_moments(block, {(1, 1, 0): np.ones(3)}, q, 2)
    assert not drawn.close(wrong.mean, 1.0, wrong.slack)


def test_a_wrong_law_is_seen_without_wrong_counts() -> None:
    # One draw repeated m times has whole counts and the right mean: the law of the outcomes gives it away.
    finding = CLAIM.check(KNOWN_BAD["one draw repeated"], SMALL, 1)
    assert finding.violations == 0
    assert min(finding.data["p_values"].values()) < 1e-20


def test_a_subject_that_raises_is_falsified() -> None:
    def broken(*given: object) -> None:
        raise ZeroDivisionError("on purpose")

    assert CLAIM.check(replace(REFERENCE, draw=broken), SMALL, 0).verdict is Verdict.FALSIFIED
