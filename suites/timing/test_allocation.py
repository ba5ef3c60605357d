"""Splitting a budget (claim C5) against a general conic solver on the same problem."""

import math

import numpy as np
import pytest
import torch
from networks import Pair, call

from sipp_bench import allocate

CPU = torch.device("cpu")


def problem(blocks: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    rng = np.random.default_rng(0)
    nnz = rng.integers(10, 2000, blocks)
    totals = rng.uniform(1, 1 + np.sqrt(nnz))
    return totals, nnz, rng.uniform(0.1, 10, blocks), int(0.2 * nnz.sum())


def solve_by_cvxpy(totals: np.ndarray, nnz: np.ndarray, weights: np.ndarray, budget: int, delta: float) -> np.ndarray:
    import cvxpy as cp

    # eps(m) = 6 / (r - 1), r = sqrt(1 + 6 m / a), as a convex programme: m >= a (r^2 - 1) / 6.
    a = totals * math.log(2 / delta) / 3
    r = cp.Variable(len(totals))
    m = cp.multiply(a / 6, cp.square(r) - 1)
    objective = cp.Minimize(cp.sum(cp.multiply(6 * weights, cp.inv_pos(r - 1))))
    cp.Problem(objective, [cp.sum(m) <= budget, m <= nnz]).solve(solver=cp.CLARABEL)
    return np.asarray(a / 6 * (r.value**2 - 1))


def epsilon(m: np.ndarray, totals: np.ndarray, delta: float) -> np.ndarray:
    a = totals * math.log(2 / delta) / 3
    return (a + np.sqrt(a * a + 6 * a * m)) / m


@pytest.mark.parametrize("blocks", [2_000, 20_000])
def test_allocation_against_a_conic_solver(blocks: int, pair: Pair) -> None:
    totals, nnz, weights, budget = problem(blocks)
    ours = allocate(totals, nnz, budget, delta=0.05, weights=weights)
    theirs = solve_by_cvxpy(totals, nnz, weights, budget, 0.05)
    costs = [float((weights * epsilon(m, totals, 0.05)).sum()) for m in (ours, theirs)]
    pair(
        call(allocate, totals, nnz, budget, delta=0.05, weights=weights),
        call(solve_by_cvxpy, totals, nnz, weights, budget, 0.05), CPU, 3,
        table="allocation / cvxpy with Clarabel", row=f"{blocks} blocks", column="ratio",
        objective_excess=costs[0] / costs[1] - 1,
    )  # fmt: skip


def test_a_million_blocks(pair: Pair) -> None:
    totals, nnz, weights, budget = problem(1_000_000)
    some = problem(20_000)
    pair(
        call(allocate, totals, nnz, budget, delta=0.05, weights=weights),
        call(allocate, *some[:2], some[3], delta=0.05, weights=some[2]), CPU, 3,
        table="allocation, 1,000,000 / 20,000 blocks", row="allocate", column="ratio",
    )  # fmt: skip
