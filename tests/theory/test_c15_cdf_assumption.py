"""Claim C15 on blocks whose assumption is known in closed form."""

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch

from theory_checks.claims.c15_cdf_assumption import BLOCKS, CLAIM, DELTA_S, UniformBlock
from theory_checks.evidence import statistics
from theory_checks.evidence.finding import QUICK, Verdict
from theory_checks.subjects.known_bad import KNOWN_BAD
from theory_checks.subjects.subject import REFERENCE

pytestmark = pytest.mark.statistical


@pytest.mark.parametrize("seed", range(2))
def test_the_library_is_not_falsified_and_never_a_plain_pass(seed: int) -> None:
    finding = CLAIM.check(REFERENCE, QUICK, seed)
    assert finding.verdict is Verdict.CONDITIONAL, finding.detail
    assert not finding.verdict.passed
    assert "assumption holds" in finding.detail
    assert finding.violations > 0, "no S failed: the trial is not a hard one"


@pytest.mark.parametrize("name", CLAIM.rejects)
def test_known_bad_subjects_are_rejected(name: str) -> None:
    assert CLAIM.check(KNOWN_BAD[name], QUICK, 0).verdict is Verdict.FALSIFIED


def test_consequences_on_fresh_points_are_compared() -> None:
    """A bound of dropping that is too small breaks no rate of S, only what follows from it."""
    subject = replace(REFERENCE, drop_epsilon=lambda s: REFERENCE.drop_epsilon(s) / 3)
    finding = CLAIM.check(subject, QUICK, 0)
    assert finding.verdict is Verdict.FALSIFIED
    assert "r > epsilon of K s" in finding.detail


def test_cdf_in_plain_cases() -> None:
    two = UniformBlock((1, 1), Fraction(0), Fraction(2))
    # a1 / (a1 + a2) <= t: the triangle a1 <= t/(1-t) a2, of area t / (2 (1 - t)) for t <= 1/2.
    assert two.cdf(0, Fraction(1, 3)) == Fraction(1, 4)
    assert two.cdf(0, Fraction(1, 2)) == Fraction(1, 2)
    # a1 > a2 + a3 has probability 1/6.
    assert UniformBlock((1, 1, 1), Fraction(0), Fraction(2)).cdf(0, Fraction(1, 2)) == Fraction(5, 6)
    assert UniformBlock((1, 2, 4), Fraction(1, 4), Fraction(2)).supremum(2) == Fraction(16, 19)


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_closed_forms_agree_with_draws(block: UniformBlock) -> None:
    g = block.contributions(block.draw(1, 20_000, np.random.default_rng(0))[0])
    for j in range(len(block.weights)):
        supremum = block.supremum(j)
        assert float(g[:, j].max()) <= float(supremum) * (1 + 1e-12)
        assert float(block.contributions(block.corners())[:, j].max()) == pytest.approx(float(supremum), rel=1e-12)
        assert block.cdf(j, supremum) == 1
        for t in (supremum / block.K, supremum * Fraction(3, 4)):
            below = int((g[:, j] <= float(t)).sum())
            interval = statistics.clopper_pearson(below, len(g), 1 - 1e-6)
            assert interval.low <= float(block.cdf(j, t)) <= interval.high


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_n_is_the_least_that_the_claim_allows(block: UniformBlock) -> None:
    failure = len(block.weights) * block.worst_cdf**block.points
    assert failure <= DELTA_S < failure / block.worst_cdf
    assert torch.equal(block.layer(3).weight[0], block.layer(3).weight[2])
