"""Claims C3, C5 and C6: choices of weights and of draws, against brute force and a general solver."""

import itertools

import cvxpy as cp
import numpy as np
import pytest
from hypothesis import given, settings, target
from hypothesis import strategies as st
from theory.identities import PROPERTY, assert_holds

from sipp_bench.compression.rounding import gamma
from theory_checks.claims import c03_top_m, c05_allocation, c06_inversions
from theory_checks.claims.c05_allocation import Problem
from theory_checks.claims.c06_inversions import Setting
from theory_checks.evidence.finding import QUICK
from theory_checks.subjects.subject import REFERENCE

pytestmark = pytest.mark.identity


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    """Up to 8 blocks; T, caps and c over many decades; budgets from one draw a block to more than all caps."""
    blocks = draw(st.integers(1, 8))

    def numbers(low: float, high: float) -> list[float]:
        return [10 ** draw(st.floats(low, high)) for _ in range(blocks)]

    caps = np.floor(numbers(0, 4))
    totals = np.minimum(numbers(0, 3), caps)
    budget = np.floor(blocks + draw(st.floats(0, 1.1)) * (caps.sum() - blocks))
    delta = 10 ** -draw(st.floats(0.01, 16))
    return Problem(totals, caps, np.array(numbers(-3, 3)), float(budget), delta, draw(st.integers(0, 1000)))


@st.composite
def settings_of_bounds(draw: st.DrawFn) -> Setting:
    q = np.array(draw(st.lists(st.floats(0, 1), min_size=1, max_size=4).filter(lambda q: sum(q) > 0)))
    return Setting(
        10 ** draw(st.floats(0, 6)),
        int(10 ** draw(st.floats(0, 9))),
        10 ** -draw(st.floats(0.01, 16)),
        10 ** draw(st.floats(-3, 2)),
        tuple(float(x) for x in np.minimum(q / q.sum(), 1)),
        draw(st.integers(0, 5)),
    )


@PROPERTY
@given(problems())
def test_allocation_is_optimal(case: Problem) -> None:
    comparisons = list(c05_allocation.CLAIM.compare(REFERENCE, case))
    assert_holds(comparisons, case)
    target(next(c.worst for c in comparisons if c.law == "no duality gap"), label="cost / dual")


@PROPERTY
@given(settings_of_bounds())
def test_inversions(case: Setting) -> None:
    assert_holds(list(c06_inversions.CLAIM.compare(REFERENCE, case)), case)


@settings(PROPERTY, max_examples=15)
@given(st.integers(0, 2**31 - 1))
def test_top_m(seed: int) -> None:
    for case in c03_top_m.CLAIM.cases(QUICK, np.random.default_rng(seed)):
        assert_holds(list(c03_top_m.CLAIM.compare(REFERENCE, case)), case)
        if case.weights == "downstream":
            break


@pytest.mark.parametrize("seed", range(3))
def test_a_general_solver_finds_nothing_better(seed: int) -> None:
    rng = np.random.default_rng(seed)
    caps = np.floor(10 ** rng.uniform(0, 3, 12))
    case = Problem(caps ** rng.uniform(0, 1, 12), caps, 10 ** rng.uniform(-1, 1, 12), float(caps.sum() // 3), 0.05, 0)
    # e = eps(m) is the positive root of m e^2 = 6 A (1 + e / 3), so that m = 2 A / e + 6 A / e^2: convex in e.
    e = cp.Variable(12, pos=True)
    draws = cp.multiply(2 * case.a, cp.power(e, -1)) + cp.multiply(6 * case.a, cp.power(e, -2))
    least = case.epsilon(case.caps)
    problem = cp.Problem(cp.Minimize(case.c @ e), [cp.sum(draws) / case.budget <= 1, e >= least])
    problem.solve(solver="CLARABEL", tol_gap_rel=1e-10, tol_gap_abs=1e-10, tol_feas=1e-10)
    m = REFERENCE.allocate(case.totals, case.caps, case.budget, delta=case.delta, weights=case.c)
    # The solver's own tolerance, with room for its feasibility times the price.
    assert case.cost(m) == pytest.approx(problem.value, rel=1e-8)
    assert case.dual() == pytest.approx(problem.value, rel=1e-8)


def test_the_checks_own_arithmetic() -> None:
    rng = np.random.default_rng(1)
    totals, caps = 10 ** rng.uniform(0, 3, 20), np.full(20, 1000.0)
    case = Problem(totals, caps, np.ones(20), 4000.0, 0.01, 0)
    m = 10 ** rng.uniform(0, 3, 20)
    h = m * 1e-5
    central = (case.epsilon(m - h) - case.epsilon(m + h)) / (2 * h)
    # Error of a central difference: h^2 / 6 of a third derivative of at most 60 eps / m^3, and rounding over h.
    assert central == pytest.approx(case.slope(m), rel=100 * 1e-10 + gamma(16) / 1e-5)
    assert case.epsilon(m) == pytest.approx(np.asarray(REFERENCE.draw_epsilon(totals, m, 0.01)), rel=gamma(32))
    best = case.cheapest(0.01)
    for factor in (0.9, 1.1):
        other = np.minimum(best * factor, caps)
        assert (case.epsilon(best) + 0.01 * best <= case.epsilon(other) + 0.01 * other).all()


@pytest.mark.parametrize("budget", [3, 5, 8, 12])
def test_greedy_is_the_optimum_over_whole_draws(budget: int) -> None:
    caps = np.array([6.0, 2.0, 5.0])
    case = Problem(np.array([1.0, 1.5, 3.0]), caps, np.array([1.0, 0.2, 5.0]), float(budget), 0.1, 0)
    choices = itertools.product(*(range(1, int(cap) + 1) for cap in caps))
    best = min(case.cost(np.array(m, dtype=float)) for m in choices if sum(m) <= budget)
    assert case.greedy() == pytest.approx(best, rel=gamma(64))
