"""The closed forms against calculations that share nothing with them: mpmath, fractions, enumeration."""

import itertools
import math
from fractions import Fraction

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from sipp_bench import bounds
from sipp_bench.errors import OptionError

mpmath.mp.dps = 50
totals = st.floats(1e-3, 1e6)
deltas = st.floats(1e-12, 0.9)
# A dozen roundings of float64, each u = 1.1e-16 relative, none of them cancelling except T - 1 (tested apart).
CLOSE = 1e-14


def exact_epsilon(total: float, draws: float, delta: float) -> mpmath.mpf:
    """The root of 2 exp(-m eps^2 / (2 T (1 + eps/3))) = delta, from the quadratic m eps^2 - (2TL/3) eps - 2TL = 0."""
    t, m, log = mpmath.mpf(total), mpmath.mpf(draws), mpmath.log(2 / mpmath.mpf(delta))
    b = 2 * t * log / 3
    return (b + mpmath.sqrt(b * b + 8 * m * t * log)) / (2 * m)


@given(totals, st.floats(1, 1e9), deltas)
def test_bernstein_epsilon_solves_its_equation(total: float, draws: float, delta: float) -> None:
    eps = mpmath.mpf(bounds.bernstein_epsilon(total, draws, delta))
    tail = 2 * mpmath.exp(-mpmath.mpf(draws) * eps**2 / (2 * mpmath.mpf(total) * (1 + eps / 3)))
    # d ln(tail) / d ln(eps) lies within [-2 L, -L]: an error of CLOSE in eps moves the tail by 2 L CLOSE relative.
    log = math.log(2 / delta)
    assert abs(tail / mpmath.mpf(delta) - 1) < 2 * log * CLOSE * 2
    assert abs(eps / exact_epsilon(total, draws, delta) - 1) < CLOSE


def test_bernstein_epsilon_at_its_ends() -> None:
    assert bounds.bernstein_epsilon(2.0, 0, 0.1) == math.inf
    assert bounds.bernstein_epsilon(0.0, 0, 0.1) == 0
    assert bounds.bernstein_epsilon(0.0, 7, 0.1) == 0
    # By hand: T = 3 / ln 2, delta = 1 (nearly): not allowed; delta = 2/e makes L = 1, T = 3, m = 8: (1 + sqrt(49))/8.
    assert bounds.bernstein_epsilon(3.0, 8, 2 / math.e) == pytest.approx(1.0, rel=CLOSE)


@settings(max_examples=300)
@given(totals, st.floats(1e-3, 1e6), deltas)
def test_bernstein_draws_is_the_least(total: float, epsilon: float, delta: float) -> None:
    m = bounds.bernstein_draws(total, epsilon, delta)
    # The documented room: 1e-12 relative in epsilon, and what float64 itself adds.
    assert exact_epsilon(total, m, delta) <= mpmath.mpf(epsilon) * (1 + mpmath.mpf("1.1e-12"))
    if m > 1:
        assert exact_epsilon(total, m - 1, delta) > mpmath.mpf(epsilon) * (1 - mpmath.mpf("1.1e-12"))
    else:
        assert m == 1


@settings(max_examples=300)
@given(totals, st.integers(1, 10**6), deltas)
def test_bernstein_draws_inverts_epsilon(total: float, draws: int, delta: float) -> None:
    # eps(m) itself is a boundary: ceil in floats is one off there about every second time.
    assert bounds.bernstein_draws(total, bounds.bernstein_epsilon(total, draws, delta), delta) == draws


def test_bernstein_draws_refuses_and_vanishes() -> None:
    assert bounds.bernstein_draws(0.0, 0.5, 0.1) == 0
    with pytest.raises(OptionError, match="epsilon must be above 0"):
        bounds.bernstein_draws(1.0, 0.0, 0.1)
    with pytest.raises(OptionError, match="draws"):
        bounds.bernstein_draws(torch.tensor([1e6]), 1e-9, 0.05)


@given(totals, deltas)
def test_vacuity_draws_is_where_epsilon_is_one(total: float, delta: float) -> None:
    threshold = bounds.vacuity_draws(total, delta)
    assert threshold == pytest.approx(8 / 3 * total * math.log(2 / delta), rel=CLOSE)
    assert abs(exact_epsilon(total, threshold, delta) - 1) < CLOSE
    assert (
        bounds.bernstein_epsilon(total, threshold * 1.001, delta)
        < 1
        < bounds.bernstein_epsilon(total, threshold * 0.999, delta)
    )


@given(st.floats(1e-6, 1e4), st.integers(1, 10**6), deltas)
def test_mixture_epsilon_solves_its_equation(rest: float, draws: int, delta: float) -> None:
    eps = mpmath.mpf(bounds.mixture_epsilon(rest, draws, delta))
    t = mpmath.mpf(rest)
    v = t**2 / 4 if rest <= 2 else t - 1
    log = mpmath.log(2 / mpmath.mpf(delta))
    assert abs(draws * eps**2 / (2 * (v + t * eps / 3)) / log - 1) < 4 * CLOSE
    # THEORY C13: no larger than SiPPRand's bound for the same total.
    assert eps <= mpmath.mpf(bounds.bernstein_epsilon(rest, draws, delta)) * (1 + CLOSE)


def test_mixture_epsilon_ends() -> None:
    assert bounds.mixture_epsilon(0.3, 0, 0.05) == pytest.approx(0.3)
    assert bounds.mixture_epsilon(3.0, 0, 0.05) == 1
    assert bounds.mixture_epsilon(0.0, 0, 0.05) == 0
    assert bounds.mixture_epsilon(0.0, 5, 0.05) == 0
    # The variance bound is continuous where its two forms meet: T^2 / 4 = T - 1 at T = 2.
    below, above = bounds.mixture_epsilon(2.0, 9, 0.05), bounds.mixture_epsilon(math.nextafter(2.0, 3), 9, 0.05)
    assert above == pytest.approx(below, rel=1e-13)


@given(st.lists(st.integers(0, 6), min_size=1, max_size=4), st.integers(0, 5))
def test_expected_distinct_by_enumeration(parts: list[int], draws: int) -> None:
    assume(sum(parts) > 0)
    q = [Fraction(part, sum(parts)) for part in parts]
    expected = sum(
        math.prod(q[j] for j in outcome) * len(set(outcome))
        for outcome in itertools.product(range(len(q)), repeat=draws)
    )
    found = bounds.expected_distinct([float(x) for x in q], draws)
    assert isinstance(found, float)
    assert found == pytest.approx(float(expected), rel=1e-13, abs=1e-13)


def test_expected_distinct_broadcasts_and_keeps_tiny_chances() -> None:
    q = torch.tensor([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0]])
    assert bounds.expected_distinct(q, torch.tensor([2, 3])).tolist() == [1.5, 1.0]
    # 1 - (1 - q)^m would be 0 in float64.
    assert bounds.expected_distinct([1e-20], 3) == pytest.approx(3e-20, rel=1e-12, abs=0)
    with pytest.raises(OptionError, match="probabilities"):
        bounds.expected_distinct([1.5], 1)


@given(st.lists(st.floats(0, 1), max_size=20))
def test_deterministic_epsilon(s: list[float]) -> None:
    assert bounds.deterministic_epsilon(s) == pytest.approx(min(1, math.fsum(s)), abs=1e-14)
    table = torch.tensor([s, s], dtype=torch.float64)
    assert bounds.deterministic_epsilon(table, 1).tolist() == pytest.approx([min(1, math.fsum(s))] * 2, abs=1e-14)


def test_recombined_and_composed_error() -> None:
    assert bounds.recombined_error(0.1, 3.0, 5.0) == pytest.approx(0.5)
    assert bounds.recombined_error(torch.tensor([0.1, 0.2]), 3.0, 1.0).tolist() == pytest.approx([0.3, 0.6], rel=1e-6)
    assert bounds.composed_error(2.0, 0.1, 0.2) == pytest.approx(2 * (1.1 * 1.2 - 1))
    assert bounds.composed_error(1.0, 0.0, 1.0) == 1
    assert bounds.composed_error(4.0, 0.1, 0.2) == math.inf
    assert bounds.composed_error(math.inf, 0.0, 0.0) == math.inf


@given(st.integers(1, 10**6), deltas)
def test_wilks_rate(n: int, delta: float) -> None:
    exact = 1 - mpmath.mpf(delta) ** (mpmath.mpf(1) / n)
    assert abs(mpmath.mpf(bounds.wilks_rate(n, delta)) / exact - 1) < CLOSE


def test_wilks_rate_refuses() -> None:
    with pytest.raises(OptionError, match="at least 1"):
        bounds.wilks_rate(0, 0.1)
    with pytest.raises(OptionError, match="delta"):
        bounds.wilks_rate(5, 1.0)


@given(st.integers(0, 5000), st.integers(1, 999))
def test_conformal_rank_is_exact(n: int, thousandths: int) -> None:
    # k is the least integer with 1000 k >= (n + 1)(1000 - t), in whole numbers.
    k = bounds.conformal_rank(n, thousandths / 1000)
    needed = (n + 1) * (1000 - thousandths)
    assert 1000 * k >= needed > 1000 * (k - 1)
    assert (
        k
        == bounds.conformal_rank(n, Fraction(thousandths, 1000))
        == bounds.conformal_rank(n, np.float64(thousandths / 1000))
    )


def test_conformal_rank_where_floats_are_one_off() -> None:
    assert math.ceil((9 + 1) * (1 - 0.3)) == 7
    wrong = [
        (n, a / 100)
        for n in range(200)
        for a in range(1, 100)
        if math.ceil((n + 1) * (1 - a / 100)) != -(-(n + 1) * (100 - a) // 100)
    ]
    assert wrong, "the float formula is right everywhere: this test tests nothing"
    for n, alpha in wrong:
        assert bounds.conformal_rank(n, alpha) == -(-(n + 1) * (100 - round(alpha * 100)) // 100)


@given(st.lists(st.one_of(st.floats(-5, 5), st.sampled_from([1.0, 2.0, math.nan, math.inf])), max_size=30), deltas)
def test_conformal_quantile_is_the_sorted_rank(scores: list[float], alpha: float) -> None:
    k = bounds.conformal_rank(len(scores), alpha)
    ordered = [*sorted(math.inf if math.isnan(x) else x for x in scores), math.inf]
    expected = ordered[min(k, len(ordered)) - 1]
    assert bounds.conformal_quantile(scores, alpha) == expected
    assert bounds.conformal_quantile(torch.tensor(scores, dtype=torch.float64), alpha) == expected
    assert bounds.conformal_quantile(np.array(scores), alpha) == expected


def test_conformal_quantile_by_hand() -> None:
    assert bounds.conformal_quantile(range(1, 10), 0.3) == 7
    assert bounds.conformal_quantile(range(1, 10), 0.1) == 9
    assert bounds.conformal_quantile(range(1, 10), 0.09) == math.inf
    assert bounds.conformal_quantile([], 0.5) == math.inf
    assert bounds.conformal_quantile(torch.ones(3, requires_grad=True), 0.5) == 1
    for alpha in (0, 1, -0.1, math.nan, math.inf, "a"):
        with pytest.raises(OptionError, match="alpha"):
            bounds.conformal_quantile([1.0], alpha)  # type: ignore[arg-type]  # a string among them


@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        (bounds.bernstein_epsilon, (2.0, 40, 0.05)),
        (bounds.bernstein_draws, (2.0, 0.5, 0.05)),
        (bounds.vacuity_draws, (2.0, 0.05)),
        (bounds.mixture_epsilon, (2.5, 40, 0.05)),
        (bounds.recombined_error, (0.1, 2.0, 3.0)),
        (bounds.composed_error, (1.5, 0.1, 0.1)),
    ],
)
def test_kinds_of_input_agree(function, arguments) -> None:
    plain = function(*arguments)
    assert isinstance(plain, int if function is bounds.bernstein_draws else float)
    for position in range(len(arguments)):
        single = [*arguments]
        single[position] = np.array([arguments[position]] * 2)
        assert isinstance(function(*single), np.ndarray)
        assert function(*single).tolist() == pytest.approx([plain] * 2, rel=1e-15)
        single[position] = torch.tensor([arguments[position]] * 2, dtype=torch.float64)
        result = function(*single)
        assert result.dtype == (torch.int64 if function is bounds.bernstein_draws else torch.float64)
        assert result.tolist() == pytest.approx([plain] * 2, rel=1e-15)
        # Broadcast, columns against rows.
        assert function(
            *[torch.full((3, 1) if i == position else (4,), a, dtype=torch.float64) for i, a in enumerate(arguments)]
        ).shape == (3, 4)


@pytest.mark.parametrize("bad", [-1.0, math.nan])
def test_negative_numbers_and_nan_are_refused(bad: float) -> None:
    calls = [
        lambda: bounds.bernstein_epsilon(bad, 3, 0.05),
        lambda: bounds.bernstein_epsilon(torch.tensor([1.0, bad]), 3, 0.05),
        lambda: bounds.bernstein_epsilon(1.0, bad, 0.05),
        lambda: bounds.bernstein_draws(1.0, bad, 0.05),
        lambda: bounds.mixture_epsilon(bad, 3, 0.05),
        lambda: bounds.deterministic_epsilon([0.1, bad]),
        lambda: bounds.recombined_error(bad, 1.0, 1.0),
        lambda: bounds.expected_distinct([bad], 1),
    ]
    for call in calls:
        with pytest.raises(OptionError):
            call()


@pytest.mark.parametrize("delta", [0.0, 1.0, 1.5, -0.1, math.nan])
def test_delta_outside_its_range_is_refused(delta: float) -> None:
    for function in (bounds.bernstein_epsilon, bounds.bernstein_draws, bounds.mixture_epsilon):
        with pytest.raises(OptionError):
            function(1.0, 3.0, delta)
