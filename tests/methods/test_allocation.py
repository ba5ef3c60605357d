"""The split of a budget against a general convex solver, the KKT conditions, brute force and greedy."""

import heapq
import itertools
import math
from fractions import Fraction

import cvxpy as cp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sipp_bench.errors import OptionError
from sipp_bench.methods.allocation import allocate, allocate_whole, apportion

DELTA = 0.05
LOG = math.log(2 / DELTA)


def epsilon(m, total):
    """C10's bound, in one line of its own."""
    a = np.asarray(total) * LOG / 3
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(np.asarray(m) > 0, (a + np.sqrt(a * a + 6 * a * m)) / m, np.inf)


def slope(m, total):
    """-d eps / d m by differentiating a (6/eps^2 + 2/eps) = m: eps' = -1 / (a (12/eps^3 + 2/eps^2))."""
    a, e = np.asarray(total) * LOG / 3, epsilon(m, total)
    return 1 / (a * (12 / e**3 + 2 / e**2))


def instance(seed: int, blocks: int, spread: float = 1.0):
    rng = np.random.default_rng(seed)
    nnz = rng.integers(1, 400, blocks).astype(float)
    totals = np.clip(10 ** rng.uniform(-spread, spread, blocks), None, None)
    weights = 10 ** rng.uniform(-spread, spread, blocks)
    return totals, nnz, weights


@pytest.mark.parametrize("share", [0.02, 0.2, 0.5, 0.95])
@pytest.mark.parametrize("seed", range(4))
def test_continuous_optimum_is_a_general_solvers(seed: int, share: float) -> None:
    totals, nnz, weights = instance(seed, 60)
    totals = np.clip(totals, 1, nnz)  # claim C1: 1 <= T <= the block's weights
    budget = share * nnz.sum()
    # In eps the problem is smooth and convex: m = a (6/e^2 + 2/e).
    a = totals * LOG / 3
    floor = epsilon(nnz, totals)
    scaled = cp.Variable(60)  # e = floor * scaled, so that the solver sees numbers near 1
    e = cp.multiply(floor, scaled)
    draws = cp.multiply(6 * a / floor**2, cp.power(scaled, -2)) + cp.multiply(2 * a / floor, cp.power(scaled, -1))
    problem = cp.Problem(cp.Minimize(weights @ e), [cp.sum(draws) / budget <= 1, scaled >= 1])
    problem.solve(solver="CLARABEL", tol_gap_rel=1e-10, tol_gap_abs=1e-10, tol_feas=1e-10)
    ours = allocate(totals, nnz, budget, delta=DELTA, weights=weights)
    # Optimal on both sides: within 1e-8 relative of what a general solver finds.
    assert float(weights @ epsilon(ours, totals)) == pytest.approx(problem.value, rel=1e-8, abs=0)
    assert ours.sum() <= budget * (1 + 1e-12)


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 200), st.floats(0.001, 0.999), st.sampled_from([0.5, 3.0, 6.0]))
def test_continuous_optimum_satisfies_kkt(seed: int, blocks: int, share: float, spread: float) -> None:
    totals, nnz, weights = instance(seed, blocks, spread)
    budget = share * nnz.sum()
    m = allocate(totals, nnz, budget, delta=DELTA, weights=weights)
    assert (m > 0).all()
    assert (m <= nnz).all()
    # The budget is used up, to the rounding of a sum of `blocks` numbers.
    assert m.sum() == pytest.approx(budget, rel=1e-12)
    gains = weights * slope(m, totals)
    inside = m < nnz * (1 - 1e-9)
    # One multiplier: the same marginal gain wherever m is inside, at least as much at the caps. The gain falls as a
    # power of m of between 1.5 and 2, and m is found to about 1e-12.
    price = np.median(gains[inside])
    assert gains[inside] == pytest.approx(price, rel=1e-9, abs=0)
    assert (gains[~inside] >= price * (1 - 1e-8)).all()


def test_blocks_that_need_nothing_get_nothing() -> None:
    m = allocate([3.0, 0.0, 2.0, 4.0], [10, 10, 10, 0], 8.0, delta=DELTA, weights=[1.0, 1.0, 0.0, 1.0])
    assert m.tolist() == [8.0, 0.0, 0.0, 0.0]


@pytest.mark.parametrize("function", [allocate, allocate_whole])
def test_budget_at_its_ends(function) -> None:
    totals, nnz = [3.0, 0.0, 2.0], [10, 7, 4]
    assert function(totals, nnz, 0, delta=DELTA).tolist() == [0, 0, 0]
    for budget in (14, 15, 1e30, math.inf):
        assert function(totals, nnz, budget, delta=DELTA).tolist() == [10, 0, 4]
    assert function([], [], 5, delta=DELTA).tolist() == []
    assert function([0.0], [5], 5, delta=DELTA).tolist() == [0]


def test_symmetric_blocks_share_evenly_and_scaling_of_weights_changes_nothing() -> None:
    assert allocate([2.0] * 4, [50] * 4, 30, delta=DELTA) == pytest.approx([7.5] * 4, rel=1e-12)
    totals, nnz, weights = instance(3, 30)
    one = allocate(totals, nnz, 900, delta=DELTA, weights=weights)
    assert allocate(totals, nnz, 900, delta=DELTA, weights=weights * 1e6) == pytest.approx(one, rel=1e-11)


@pytest.mark.parametrize("extreme", [1e-6, 1e6, 1e-30, 1e-100])
def test_extreme_ratios(extreme: float) -> None:
    totals = np.array([1.0, 2.0, 3.0, 1.0])
    weights = np.array([1.0, extreme, 1.0, extreme])
    m = allocate(totals, [100.0] * 4, 150.0, delta=DELTA, weights=weights)
    assert np.isfinite(m).all()
    assert (m > 0).all()
    assert m.sum() == pytest.approx(150, rel=1e-12)
    gains = weights * slope(m, totals)
    inside = m < 100
    assert gains[inside] == pytest.approx(np.median(gains[inside]), rel=1e-7, abs=0)


def test_tensor_in_tensor_out() -> None:
    totals = torch.tensor([1.0, 2.0, 3.0])
    m = allocate(totals, torch.tensor([9, 9, 9]), 12, delta=DELTA)
    assert isinstance(m, torch.Tensor)
    assert m.dtype == torch.float64
    assert m.tolist() == allocate(totals.numpy(), [9, 9, 9], 12, delta=DELTA).tolist()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"totals": [-1.0], "nnz": [1], "budget": 1, "delta": 0.1}, "totals"),
        ({"totals": [math.nan], "nnz": [1], "budget": 1, "delta": 0.1}, "totals"),
        ({"totals": [1.0], "nnz": [math.inf], "budget": 1, "delta": 0.1}, "nnz"),
        ({"totals": [1.0], "nnz": [1, 2], "budget": 1, "delta": 0.1}, "one number a block"),
        ({"totals": [[1.0]], "nnz": [[1]], "budget": 1, "delta": 0.1}, "one number a block"),
        ({"totals": [1.0], "nnz": [1], "budget": -1, "delta": 0.1}, "budget"),
        ({"totals": [1.0], "nnz": [1], "budget": math.nan, "delta": 0.1}, "budget"),
        ({"totals": [1.0], "nnz": [1], "budget": 1, "delta": 0.0}, "delta"),
        ({"totals": [1.0], "nnz": [1], "budget": 1, "delta": math.nan}, "delta"),
        ({"totals": [1.0], "nnz": [1], "budget": 1, "delta": 0.1, "weights": [-1.0]}, "weights"),
    ],
)
@pytest.mark.parametrize("function", [allocate, allocate_whole])
def test_refusals(function, arguments, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        function(**arguments)


def best_by_enumeration(totals, nnz, weights, budget: int) -> float:
    choices = itertools.product(*(range(1, int(cap) + 1) for cap in nnz))
    return min(
        math.fsum(c * float(epsilon(m, t)) for c, m, t in zip(weights, draws, totals, strict=True))
        for draws in choices
        if sum(draws) == budget
    )


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_whole_draws_equal_brute_force(data) -> None:
    blocks = data.draw(st.integers(1, 4))
    nnz = data.draw(st.lists(st.integers(1, 6), min_size=blocks, max_size=blocks))
    totals = [data.draw(st.floats(0.5, cap + 0.5)) for cap in nnz]
    weights = data.draw(st.lists(st.sampled_from([0.01, 0.5, 1.0, 1.0, 30.0]), min_size=blocks, max_size=blocks))
    budget = data.draw(st.integers(blocks, sum(nnz)))
    m = allocate_whole(totals, nnz, budget, delta=DELTA, weights=weights)
    assert m.sum() == budget
    assert ((m >= 1) & (m <= nnz)).all()
    found = math.fsum(c * float(epsilon(d, t)) for c, d, t in zip(weights, m, totals, strict=True))
    assert found <= best_by_enumeration(totals, nnz, weights, budget) * (1 + 1e-11)


def greedy(totals, nnz, weights, budget: int) -> float:
    """One draw each, then always the largest marginal gain: exact for a sum of convex functions."""
    m = np.ones(len(totals), dtype=int)
    gain = lambda b: weights[b] * float(epsilon(m[b], totals[b]) - epsilon(m[b] + 1, totals[b]))  # noqa: E731
    heap = [(-gain(b), b) for b in range(len(totals)) if nnz[b] > 1]
    heapq.heapify(heap)
    for _ in range(budget - len(totals)):
        _, b = heapq.heappop(heap)
        m[b] += 1
        if m[b] < nnz[b]:
            heapq.heappush(heap, (-gain(b), b))
    return math.fsum(weights * epsilon(m, totals))


@pytest.mark.parametrize("spread", [0.3, 2.0, 6.0])
@pytest.mark.parametrize("share", [0.03, 0.3, 0.9])
def test_whole_draws_equal_greedy(share: float, spread: float) -> None:
    totals, nnz, weights = instance(11, 40, spread)
    budget = max(40, int(share * nnz.sum()))
    m = allocate_whole(totals, nnz, budget, delta=DELTA, weights=weights)
    assert m.sum() == budget
    assert math.fsum(weights * epsilon(m, totals)) == pytest.approx(greedy(totals, nnz, weights, budget), rel=1e-11)


def test_fewer_draws_than_blocks_go_to_the_larger_weights() -> None:
    m = allocate_whole([2.0] * 5, [9] * 5, 2, delta=DELTA, weights=[1.0, 5.0, 0.0, 4.0, 2.0])
    assert m.tolist() == [0, 1, 0, 1, 0]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_whole_draws_use_up_the_budget_whatever_the_weights(data) -> None:
    # Blocks with c = 0 take what no other can use: a method that samples would else keep too few weights.
    blocks = data.draw(st.integers(1, 12))
    nnz = data.draw(st.lists(st.integers(0, 9), min_size=blocks, max_size=blocks))
    totals = data.draw(st.lists(st.sampled_from([0.0, 1.0, 1.5, 4.0]), min_size=blocks, max_size=blocks))
    weights = data.draw(st.lists(st.sampled_from([0.0, 0.0, 1.0, 1e-5, 7.0]), min_size=blocks, max_size=blocks))
    budget = data.draw(st.integers(0, 110))
    m = allocate_whole(totals, nnz, budget, delta=DELTA, weights=weights)
    room = sum(cap for cap, t in zip(nnz, totals, strict=True) if t > 0)
    assert m.sum() == min(budget, room)
    assert (m <= nnz).all()
    assert not m[np.array(totals) == 0].any()
    if m[np.array(weights) == 0].any():
        full = (np.array(weights) > 0) & (np.array(totals) > 0)
        assert (m[full] == np.array(nnz)[full]).all()


def test_a_million_blocks() -> None:
    rng = np.random.default_rng(0)
    nnz = rng.integers(1, 300, 1_000_000).astype(float)
    totals = rng.uniform(1, 20, 1_000_000)
    weights = 10 ** rng.uniform(-3, 3, 1_000_000)
    m = allocate(totals, nnz, 3e7, delta=DELTA, weights=weights)
    assert m.sum() == pytest.approx(3e7, rel=1e-11)
    whole = allocate_whole(totals, nnz, 30_000_000, delta=DELTA, weights=weights)
    assert whole.sum() == 30_000_000
    assert weights @ epsilon(whole, totals) >= weights @ epsilon(m, totals) * (1 - 1e-12)
    # No exchange of one draw gains: for a sum of convex functions, the optimum. Rounding in a difference of two eps
    # is 300 times u at most.
    gain = weights * (epsilon(whole, totals) - epsilon(whole + 1, totals))
    loss = weights * (epsilon(whole - 1, totals) - epsilon(whole, totals))
    assert gain[whole < nnz].max() <= loss[whole > 1].min() * (1 + 1e-11)
    assert apportion(nnz.astype(int), 12_345_678).sum() == 12_345_678


@given(st.lists(st.integers(0, 10**12), min_size=1, max_size=40), st.floats(0, 1))
def test_apportion_is_exact(sizes: list[int], share: float) -> None:
    total = sum(sizes)
    budget = min(total, int(share * total))
    counts = apportion(sizes, budget)
    assert sum(counts.tolist()) == budget
    for size, count in zip(sizes, counts.tolist(), strict=True):
        assert 0 <= count <= size
        assert abs(count - Fraction(size * budget, max(total, 1))) < 1


def test_apportion_by_hand() -> None:
    assert apportion([3, 3, 3], 4).tolist() == [2, 1, 1]  # a tie goes to the first
    assert apportion([1, 1, 1], 0).tolist() == [0, 0, 0]
    assert apportion([5, 0, 2], 7).tolist() == [5, 0, 2]
    assert apportion([10, 6, 1], 3).tolist() == [2, 1, 0]  # quotas 1.76, 1.06, 0.18
    # Products of 2^62 and more don't overflow, and a quota is not off by a rounding.
    assert apportion([2**61, 2**61 - 1], 2**61).tolist() == [2**60, 2**60]
    for budget in (-1, 4):
        with pytest.raises(OptionError, match="can't be shared"):
            apportion([1, 2], budget)
