"""Numbers that the decisions rest on, one by one by hand: a factor in any of them makes every check lenient."""

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch

from sipp_bench import bounds
from sipp_bench.compression import rounding
from theory_checks.cases import hard_cases
from theory_checks.cases.hard_cases import Bound, Instance
from theory_checks.evidence import drawn, statistics
from theory_checks.evidence.decided import Decision

CLOSE = 1e-10  # of scipy's sums of terms; the values by hand are exact


def exact_beta_binomial(count: int, trials: int, a: int, b: int) -> Fraction:
    """Pr(at least `count` of `trials` fresh scores fall below the a-th smallest of a + b - 1), by counting orders."""
    whole = math.comb(trials + a + b - 1, trials)
    terms = (math.comb(k + a - 1, k) * math.comb(trials - k + b - 1, trials - k) for k in range(count, trials + 1))
    return Fraction(sum(terms), whole)


@pytest.mark.identity
@pytest.mark.parametrize(
    ("count", "trials", "a", "b"),
    [(1, 1, 1, 5), (9, 9, 1, 3), (100, 1400, 1, 150), (1148, 1400, 1, 150), (900, 5000, 1, 180), (60, 200, 10, 91)],
)
def test_tails_of_the_beta_binomial_far_below_any_complement(count: int, trials: int, a: int, b: int) -> None:
    expected = float(exact_beta_binomial(count, trials, a, b))
    assert 0 < expected < 1
    assert statistics.beta_binomial_p_value(count, trials, a, b) == pytest.approx(expected, rel=CLOSE, abs=0)


@pytest.mark.identity
def test_the_tail_of_a_maximum_is_a_product() -> None:
    # The k largest of n + m values are all fresh: m / (n + m), (m - 1) / (n + m - 1), and so on.
    n, m, k = 150, 1400, 1148
    product = math.prod((Fraction(m - i, n + m - i) for i in range(k)), start=Fraction(1))
    assert statistics.beta_binomial_p_value(k, m, 1, n) == pytest.approx(float(product), rel=CLOSE, abs=0)
    assert statistics.beta_binomial_p_value(0, m, 1, n) == pytest.approx(1)
    assert statistics.beta_binomial_p_value(m + 1, m, 1, n) == 0


@pytest.mark.identity
def test_tails_of_the_binomial_far_below_any_complement() -> None:
    assert statistics.p_value(100, 100, 0.5) == pytest.approx(2.0**-100, rel=CLOSE, abs=0)
    assert statistics.p_value(99, 100, 0.5) == pytest.approx(101 * 2.0**-100, rel=CLOSE, abs=0)
    few = Decision("", 0, 200, 0.75, 1e-9, two_sided=True)
    assert few.p_value == pytest.approx(2 * 4.0**-200, rel=CLOSE, abs=0)
    low = statistics.clopper_pearson(300, 300, 1 - 1e-12).low
    assert float(Fraction(low) ** 300) == pytest.approx(0.5e-12, rel=1e-3)  # 1 - confidence has four digits


@pytest.mark.identity
def test_a_multinomial_p_value() -> None:
    # Two cells, two tails each: 4 * 2^-10; three cells: the rarest has Pr(3 of 3) = (1/10)^3, times 2 * 3.
    assert statistics.multinomial_p_value([10, 0], [0.5, 0.5]) == pytest.approx(4 * 2.0**-10, rel=CLOSE)
    assert statistics.multinomial_p_value([3, 0, 0], [0.1, 0.45, 0.45]) == pytest.approx(6e-3, rel=CLOSE)
    assert statistics.multinomial_p_value([200, 0], [0.5, 0.5]) == pytest.approx(4 * 2.0**-200, rel=CLOSE, abs=0)


@pytest.mark.identity
def test_roundings() -> None:
    assert rounding.unit(torch.float64) == 2.0**-53
    assert rounding.unit(torch.float32) == 2.0**-24
    assert rounding.unit(torch.bfloat16) == 2.0**-8
    assert rounding.gamma(1) == pytest.approx(2.0**-53, rel=1e-15)
    assert rounding.gamma(1000, torch.float32) == pytest.approx(1000 / (2**24 - 1000), rel=1e-15)
    # n + 4 roundings in float32, and as many of the oracle's own.
    expected = 104 / (2**24 - 104) + 104 / (2**53 - 104)
    assert rounding.sensitivity_rounding(100, torch.float32) == pytest.approx(expected, rel=1e-15)
    assert rounding.sensitivity_underflow(torch.float32) == 2.0**-124
    assert rounding.error_rounding(98) == pytest.approx(2 * 100 / (2**53 - 100), rel=1e-15)


@pytest.mark.identity
def test_exact_failure_probabilities() -> None:
    # 4 draws, q = 1/2: Zhat / Z = n / 2. Off by more than 0.6: n = 0 or 4, 2 / 16. With rho = 1/2, more than 1.2: none.
    assert hard_cases.violation_probability(4, 0.6, 2, 1) == pytest.approx(1 / 8, rel=1e-15)
    assert hard_cases.violation_probability(4, 0.4, 2, 1) == pytest.approx(10 / 16, rel=1e-15)
    assert hard_cases.violation_probability(4, 0.6, 2, 1, rho=0.5) == 0
    assert hard_cases.violation_probability(4, 0.3, 2, 1, rho=0.5) == pytest.approx(1 / 8, rel=1e-15)
    assert Instance(2, 1, 1.0, 4, 0.1, 0.6, 0.1001).false
    assert not Instance(2, 1, 1.0, 4, 0.1, 0.6, 0.1).false


@pytest.mark.identity
@pytest.mark.parametrize(
    ("sound", "members"), [(bounds.bernstein_epsilon, hard_cases.WHOLE), (bounds.mixture_epsilon, hard_cases.PARTS)]
)
def test_a_bound_that_fails_a_little_more_often_than_delta(sound: Bound, members: Any) -> None:
    """Shrunk just so much that the exact failure probability passes delta somewhere, by at most a tenth: C10, C13."""

    def shrunk(factor: float) -> tuple[list[Instance], list[str]]:
        return drawn.exact_failures(lambda *a: np.asarray(sound(*a)) * factor, [0.01], members)

    low, high = 0.7, 0.9  # false at the one, true at the other
    while shrunk(low)[0][0].ratio > 1.1:
        middle = (low + high) / 2
        low, high = (middle, high) if shrunk(middle)[0][0].ratio > 1 else (low, middle)
    (found,), (sentence,) = shrunk(low)
    assert 0.01 < found.probability <= 0.011
    assert "above delta = 0.01 " in sentence
    assert shrunk(high)[1] == []
