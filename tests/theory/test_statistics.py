"""Exact tests, intervals and sample sizes, against brute force with binomial terms in fractions."""

import itertools
import math
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest

from sipp_bench.errors import OptionError
from theory_checks.claims import FULL, QUICK, Effort, claims
from theory_checks.evidence import statistics

RATES = (Fraction(0), Fraction(1, 1000), Fraction(1, 10), Fraction(1, 3), Fraction(1, 2), Fraction(9, 10), Fraction(1))
LEVELS = (Fraction(1, 2), Fraction(1, 20), Fraction(1, 1000), Fraction(1, 10**8))
# scipy's binomial and beta functions are good to about 1e-12 relative; the exact side has no error.
CLOSE = 1e-9


def tail(count: int, trials: int, rate: Fraction) -> Fraction:
    """Pr(Binomial(trials, rate) >= count), exactly."""
    return sum(
        (math.comb(trials, k) * rate**k * (1 - rate) ** (trials - k) for k in range(max(count, 0), trials + 1)),
        Fraction(0),
    )


@pytest.mark.identity
@pytest.mark.parametrize("trials", [1, 2, 7, 30])
def test_critical_count(trials: int) -> None:
    for rate, alpha in itertools.product(RATES, LEVELS):
        expected = next(c for c in range(trials + 2) if tail(c, trials, rate) <= alpha)
        assert statistics.critical_count(trials, float(rate), float(alpha)) == expected, (rate, alpha)


@pytest.mark.identity
@pytest.mark.parametrize(
    ("rate0", "rate1", "alpha", "beta"),
    [("0", "1/10", "1/100", "1/100"), ("1/10", "4/10", "1/1000", "1/20"), ("1/3", "1", "1/20", "1/10")],
)
def test_design_has_the_power_it_states_and_not_with_one_trial_less(
    rate0: str, rate1: str, alpha: str, beta: str
) -> None:
    r0, r1, a, b = map(Fraction, (rate0, rate1, alpha, beta))

    def suffices(trials: int) -> bool:
        c = next(c for c in range(trials + 2) if tail(c, trials, r0) <= a)
        return c <= trials and 1 - tail(c, trials, r1) <= b

    found = statistics.design(*map(float, (r0, r1, a, b)))
    assert suffices(found.trials)
    assert found.trials == 1 or not suffices(found.trials - 1)
    assert found.alpha == pytest.approx(float(tail(found.critical, found.trials, r0)), rel=CLOSE, abs=0)
    assert found.beta == pytest.approx(float(1 - tail(found.critical, found.trials, r1)), rel=CLOSE, abs=1e-15)
    assert found.alpha <= a
    assert found.rejects(found.critical)
    assert not found.rejects(found.critical - 1)


@pytest.mark.identity
def test_smallest_detectable_is_missed_with_beta() -> None:
    for trials, rate, alpha in itertools.product((5, 40), ("0", "1/10", "1/2"), ("1/20", "1/10000")):
        found = statistics.smallest_detectable(trials, float(Fraction(rate)), float(Fraction(alpha)), 0.01)
        c = next(c for c in range(trials + 2) if tail(c, trials, Fraction(rate)) <= Fraction(alpha))
        if c > trials:
            assert found == 1
        else:
            assert float(1 - tail(c, trials, Fraction(found))) == pytest.approx(0.01, rel=CLOSE)


@pytest.mark.identity
@pytest.mark.parametrize(("count", "trials"), [(0, 1), (0, 20), (3, 20), (10, 20), (20, 20)])
def test_intervals_have_their_confidence(count: int, trials: int) -> None:
    interval = statistics.clopper_pearson(count, trials, 0.9)
    low, high = Fraction(interval.low), Fraction(interval.high)
    if count:
        assert float(tail(count, trials, low)) == pytest.approx(0.05, rel=CLOSE)
    else:
        assert low == 0
    if count < trials:
        assert float(1 - tail(count + 1, trials, high)) == pytest.approx(0.05, rel=CLOSE)
        upper = Fraction(statistics.upper_bound(count, trials, 0.9))
        assert float(1 - tail(count + 1, trials, upper)) == pytest.approx(0.1, rel=CLOSE)
    else:
        assert high == 1
        assert statistics.upper_bound(count, trials, 0.9) == 1
    assert statistics.p_value(count, trials, 0.3) == pytest.approx(float(tail(count, trials, Fraction(0.3))), rel=CLOSE)


@pytest.mark.identity
def test_supported_delta_is_where_clean_trials_stop_being_likely() -> None:
    assert float((1 - Fraction(statistics.supported_delta(50, 0.95))) ** 50) == pytest.approx(0.05, rel=CLOSE)


@pytest.mark.identity
@pytest.mark.parametrize(
    ("draws", "probabilities"), [(6, ("1/2", "1/3", "1/6")), (9, ("98/100", "1/100", "1/100")), (4, ("1", "0"))]
)
def test_multinomial_p_values_are_valid(draws: int, probabilities: tuple[str, ...]) -> None:
    # Over all outcomes, with exact probabilities: Pr(p-value <= a) <= a for every a.
    p = [Fraction(text) for text in probabilities]
    law = []
    for counts in itertools.product(range(draws + 1), repeat=len(p)):
        if sum(counts) == draws:
            ways = math.factorial(draws) // math.prod(map(math.factorial, counts))
            chance = ways * math.prod((q**n for q, n in zip(p, counts, strict=True)), start=Fraction(1))
            value = statistics.multinomial_p_value(counts, [float(q) for q in p])
            assert 0 <= value <= 1
            assert chance > 0 or value == 0
            law.append((value, chance))
    assert sum(chance for _, chance in law) == 1
    reached = Fraction(0)
    for value, chance in sorted(law):
        reached += chance
        assert reached <= Fraction(value) * (1 + Fraction(1, 10**9))


@pytest.mark.identity
def test_multinomial_p_values_reject_other_probabilities() -> None:
    assert statistics.multinomial_p_value([700, 300], [0.5, 0.5]) < 1e-20
    assert statistics.multinomial_p_value([500, 500], [0.5, 0.5]) == 1
    assert statistics.multinomial_p_value([10, 1], [1.0, 0.0]) == 0


@pytest.mark.identity
@pytest.mark.parametrize("call", [
    lambda: statistics.critical_count(10, 1.5, 0.1),
    lambda: statistics.critical_count(10, 0.5, 0.0),
    lambda: statistics.critical_count(10, 0.5, math.nan),
    lambda: statistics.design(0.2, 0.2, 0.1, 0.1),
    lambda: statistics.design(0.2, 0.2 + 1e-9, 1e-9, 1e-3),
    lambda: statistics.clopper_pearson(3, 2),
    lambda: statistics.upper_bound(0, 0),
    lambda: statistics.share(0),
])  # fmt: skip
def test_nonsense_is_refused(call: Callable[[], object]) -> None:
    with pytest.raises(OptionError):
        call()


@pytest.mark.identity
@pytest.mark.parametrize("effort", [QUICK, FULL])
def test_false_alarms_of_a_whole_run_are_below_one_in_a_million_by_arithmetic(effort: Effort) -> None:
    # Each claim as a whole spends one decision's level (DecidedClaim) and identities spend none.
    assert len(claims()) <= effort.tests
    assert effort.tests * effort.level <= statistics.RUN_ALPHA * (1 + 1e-15)
    level = statistics.share(64)
    assert level * 64 <= statistics.RUN_ALPHA * (1 + 1e-15)
    designs = [statistics.describe(n, rate, 1.0, level) for n in (50, 2000, 20_000) for rate in (0.0, 0.01, 0.1, 0.2)]
    for one in designs:
        assert one.alpha <= level


@pytest.mark.statistical
def test_false_alarms_of_the_decision_rule_by_simulation() -> None:
    # The rule at a level that can be seen: 20 decisions share 0.2, all of them at the edge of what is claimed.
    rng = np.random.default_rng(0)
    runs, decisions, alpha = 20_000, 20, 0.2
    level = statistics.share(decisions, alpha)
    rates = np.resize([0.01, 0.1, 0.2, 0.5], decisions)
    designs = [statistics.describe(300, rate, 1.0, level) for rate in rates]
    counts = rng.binomial(300, rates, size=(runs, decisions))
    alarms = int((counts >= [one.critical for one in designs]).any(1).sum())
    exact = 1 - math.prod(1 - one.alpha for one in designs)
    assert exact <= alpha
    # Two-sided at 1e-9: the simulation has the rate that the arithmetic says.
    assert statistics.p_value(alarms, runs, exact) > 5e-10
    assert statistics.p_value(runs - alarms, runs, 1 - exact) > 5e-10
    # And the same rule sees a violation: every decision's rate is doubled.
    doubled = rng.binomial(300, np.minimum(2 * rates, 1), size=(200, decisions))
    assert (doubled >= [one.critical for one in designs]).any(1).all()
