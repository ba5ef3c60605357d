"""C5: the optimal allocation of draws."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sipp_bench.compression.rounding import gamma, unit
from theory_checks.evidence.finding import Effort
from theory_checks.evidence.identity import Comparison, IdentityClaim, close
from theory_checks.subjects.subject import Subject

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Problem:
    """minimise sum c eps(m) subject to sum m <= budget, 0 < m <= cap, over blocks with totals T."""

    totals: Array
    caps: Array
    c: Array
    budget: float
    delta: float
    seed: int

    def __str__(self) -> str:
        return f"{len(self.totals)} blocks, budget {self.budget:g} of {self.caps.sum():g}, seed {self.seed}"

    @property
    def a(self) -> Array:
        """A = T L / 3, in which eps(m) = (A + sqrt(A^2 + 6 A m)) / m."""
        a: Array = self.totals * (np.log(2 / self.delta) / 3)
        return a

    def epsilon(self, m: Array) -> Array:
        """C10's bound, uncapped."""
        a = self.a
        eps: Array = (a + np.sqrt(a * a + 6 * a * m)) / m
        return eps

    def slope(self, m: Array) -> Array:
        """-eps'(m). With R = sqrt(A^2 + 6 A m), eps = 6 A / (R - A) and R - A = 6 A m / (R + A), so that it is
        18 A^2 / (R (R - A)^2) = (R + A)^2 / (2 R m^2), a form without cancellation.
        """
        root = np.sqrt(self.a**2 + 6 * self.a * m)
        slope: Array = (root + self.a) ** 2 / (2 * root * m**2)
        return slope

    def cost(self, m: Array) -> float:
        """The objective."""
        return float(self.c @ self.epsilon(m))

    def cheapest(self, price: float) -> Array:
        """The m within (0, cap] that minimise c eps(m) + price m, by bisection on the slope, which falls in m."""
        low, high = np.full_like(self.caps, -200.0), np.log(self.caps)
        for _ in range(70):
            middle = (low + high) / 2
            more = self.c * self.slope(np.exp(middle)) > price
            low, high = np.where(more, middle, low), np.where(more, high, middle)
        return np.where(self.c * self.slope(self.caps) >= price, self.caps, np.exp(high))

    def dual(self) -> float:
        """The largest of the lower bounds min_m sum c eps(m) + price (sum m - budget), each one valid at any price."""
        if self.budget >= self.caps.sum():
            return self.cost(self.caps)
        low, high = -200.0, 200.0
        for _ in range(70):
            middle = (low + high) / 2
            over = self.cheapest(np.exp(middle)).sum() > self.budget
            low, high = (middle, high) if over else (low, middle)
        price = float(np.exp(high))
        m = self.cheapest(price)
        return self.cost(m) + price * float(m.sum() - self.budget)

    def greedy(self) -> float:
        """The optimum over whole draws of at least 1: one each, then always the largest marginal gain.

        A block's gains fall, so that the largest ones of all blocks together are a beginning of each block's.
        """
        owner = np.repeat(np.arange(len(self.caps)), self.caps.astype(int) - 1)
        first = np.cumsum(self.caps - 1) - (self.caps - 1)
        m = np.arange(len(owner)) - first[owner] + 1
        every = Problem(self.totals[owner], m, self.c[owner], self.budget, self.delta, self.seed)
        gains = every.c * (every.epsilon(m) - every.epsilon(m + 1))
        taken = np.argsort(-gains, kind="stable")[: int(self.budget) - len(self.caps)]
        return self.cost(1.0 + np.bincount(owner[taken], minlength=len(self.caps)).astype(np.float64))


class Allocation(IdentityClaim[Problem]):
    """minimise sum c_b eps(m_b) subject to sum m_b <= B and 0 < m_b <= cap_b over active blocks, eps that of C10
    without a cap: convex, so that the allocation is optimal exactly if one price fits all blocks (KKT: c |eps'| is
    the same wherever m < cap, and at least that at the caps) and the duality gap is 0. Over whole draws, greedy by
    marginal gain is exact.

    Proof idea: eps(m) = 6 A / (sqrt(A^2 + 6 A m) - A) is convex and falls in m; a sum of convex functions under one
    linear constraint. The check derives eps' by itself, solves the dual by bisection, and tries random exchanges.
    """

    number = "C5"
    title = "Optimal allocation of draws"
    statement = "The split of draws minimises sum_b c_b eps(m_b) under the budget and the caps; whole draws: as greedy."
    rejects = (
        "even split of draws",
        "over budget",
        "draws by total",
        "draws rounded, not exchanged",
        "block weights forgotten",
    )

    def cases(self, effort: Effort, rng: np.random.Generator) -> Iterable[Problem]:
        """Up to 60 blocks, T from 1 to the cap, caps and weights over up to six decades, budgets small to ample."""
        for _ in range(effort.cases):
            blocks = int(rng.integers(1, 60))
            caps = np.floor(10 ** rng.uniform(0, float(rng.choice([1, 3, 4])), blocks))
            totals = caps ** rng.uniform(0, 1, blocks)
            c = (
                10 ** (float(rng.choice([1, 3])) * rng.uniform(-1, 1, blocks))
                if rng.random() < 0.8
                else np.ones(blocks)
            )
            share = float(rng.choice([rng.uniform(0.001, 1), rng.uniform(0.3, 1), 1.2]))
            budget = max(blocks, np.floor(share * caps.sum()))
            delta = float(10 ** rng.uniform(-16, -0.1))
            yield Problem(totals, caps, c, float(budget), delta, int(rng.integers(2**31)))

    def compare(self, subject: Subject, case: Problem) -> Iterator[Comparison]:
        """Feasible; stationary; no gap; no exchange gains; convex; whole draws as good as greedy's."""
        m = np.asarray(subject.allocate(case.totals, case.caps, case.budget, delta=case.delta, weights=case.c), float)
        blocks, u = len(m), unit()
        yield Comparison("within the budget", m.sum(), case.budget, case.budget * gamma(blocks + 8))
        yield Comparison("0 < m", np.nextafter(0, 1), m)
        yield Comparison("m <= cap", m, case.caps)
        cost = case.cost(m)
        # Each cost is off by at most 16 roundings of eps, which has no cancellation, and those of a sum over blocks. In
        # the dual's term price * (sum m - B) the sum's roundings count by price * B <= 2 cost (-m eps' <= 2 eps).
        yield Comparison("no duality gap", cost, case.dual(), cost * 4 * gamma(blocks + 16))
        yield from self._stationary(case, m, u)
        yield from self._exchanges(case, m, cost)
        low, high = (10 ** np.random.default_rng([case.seed, k]).uniform(-2, 5, blocks) for k in (0, 1))
        chord = (case.epsilon(low) + case.epsilon(high)) / 2
        bound = np.asarray(subject.draw_epsilon(case.totals, (low + high) / 2, case.delta))
        yield Comparison("eps is convex", bound, chord, chord * gamma(16))
        whole = np.asarray(
            subject.allocate_whole(case.totals, case.caps, int(case.budget), delta=case.delta, weights=case.c), float
        )
        yield close("whole draws use up the budget", whole.sum(), min(case.budget, case.caps.sum()), 0)
        yield Comparison("whole draws are whole", np.abs(whole - np.round(whole)), 0)
        yield Comparison("whole draws within [1, cap]", np.maximum(whole - case.caps, 1 - whole), 0)
        greedy = case.greedy()
        # An exchange is worth it from 1e-12 relative of a marginal gain on, which is at most the objective.
        yield Comparison(
            "whole draws as good as greedy's", case.cost(whole), greedy, greedy * (1e-12 + gamma(blocks + 64))
        )

    def _stationary(self, case: Problem, m: Array, u: float) -> Iterator[Comparison]:
        """One price: c |eps'(m)| is the same below the caps, and at least as large at them."""
        inside = m < case.caps * (1 - 8 * u)
        if not inside.any():
            return
        prices = case.c * case.slope(m)
        middle = float(np.median(prices[inside]))
        # m is found to a few u by Newton's method, the price as a root to 1e-14 in its logarithm, and what rounding
        # leaves of the budget goes to the blocks inside; the slope's exponent in m is between -1.5 and -2.
        left = case.budget / m[inside].sum()
        slack = 2 * (1e-14 + gamma(64) + gamma(len(m) + 8) * left)
        yield close("one price below the caps", prices[inside] / middle, np.ones(int(inside.sum())), slack)
        yield Comparison("at least the price at the caps", middle, prices[~inside], middle * slack)

    def _exchanges(self, case: Problem, m: Array, cost: float) -> Iterator[Comparison]:
        """Random exchanges between two blocks that stay feasible; more draws for one where the budget has room."""
        rng = np.random.default_rng(case.seed)
        best = np.inf
        for _ in range(20):
            take, give = rng.integers(len(m), size=2)
            amount = min(case.caps[take] - m[take], m[give]) * 10 ** rng.uniform(-6, -0.01)
            other = m.copy()
            other[take] += amount
            other[give] -= amount
            if take != give and amount > 0:
                best = min(best, case.cost(other))
        if np.isfinite(best):
            yield Comparison("no exchange gains", cost, best, cost * gamma(len(m) + 64))


CLAIM = Allocation()
