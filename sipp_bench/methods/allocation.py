"""A budget in, counts per block out: claim C5 for draws, exact apportionment for everything else."""

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sipp_bench.errors import OptionError

Array = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]


def allocate(totals: Any, nnz: Any, budget: float, *, delta: float, weights: Any = None) -> Any:
    """Draws per block that minimise the weighted sum of C10's bounds under a budget (claim C5).

        minimise sum_b c_b eps_b(m_b)   subject to   sum_b m_b <= B,   0 < m_b <= nnz_b

    totals: T_b, shape (blocks,); nnz: the caps, usually each block's number of weights; budget: B >= 0;
    weights: c_b >= 0, default 1. Returns float64 draws (blocks,), a tensor if `totals` is one; blocks with T = 0 or
    c = 0 get 0. With a budget at or above the sum of the caps every active block gets its cap.

    With a = T L / 3 and r = sqrt(1 + 6 m / a), eps(m) = 6 / (r - 1), so that c eps'(m) = -lambda reads
    r (r - 1)^2 = 18 c / (lambda a): a cubic in r for each block, and one root in lambda for all of them.
    Raises OptionError for negative or non-finite input, shapes that differ, and delta outside (0, 1).
    """
    t, cap, c = _checked(totals, nnz, budget, delta, weights)
    draws = _optimal_draws(t, cap, c, float(budget), math.log(2 / delta))
    return torch.from_numpy(draws).to(totals.device) if isinstance(totals, Tensor) else draws


def allocate_whole(totals: Any, nnz: Any, budget: int, *, delta: float, weights: Any = None) -> Counts:
    """As `allocate`, with whole draws that use up the budget: the exact optimum over integers (claim C5).

    eps(0) is infinite, so no active block gets a second draw before every other has its first; where there are fewer
    draws than active blocks, those get one that gain most over being dropped (eps = 1 with none), larger c first.
    What blocks with c > 0 have no room for goes to those with c = 0, split among them as if c were 1.
    """
    t, cap, c = _checked(totals, nnz, budget, delta, weights)
    log_term = math.log(2 / delta)
    cap = np.floor(cap)
    whole = np.zeros(t.shape, dtype=np.int64)
    active = (t > 0) & (cap > 0)
    for blocks, c_blocks in ((active & (c > 0), c), (active & (c == 0), np.ones_like(c))):
        left = budget - int(whole.sum())
        whole[blocks] = _whole_draws(t[blocks], cap[blocks], c_blocks[blocks], left, log_term)
    return whole


def _whole_draws(t: Array, cap: Array, c: Array, budget: float, log_term: float) -> Counts:
    """The integer optimum for blocks that are all active."""
    budget = int(min(budget, cap.sum()))
    if budget < t.size:
        whole = np.zeros(t.shape, dtype=np.int64)
        whole[np.lexsort((t, -c))[:budget]] = 1
        return whole
    draws = _optimal_draws(t, cap, c, float(budget), log_term, least=1)
    return _round_optimally(draws, t, cap, c, budget, log_term)


def apportion(sizes: Any, budget: int) -> Counts:
    """Whole counts proportional to `sizes` that add up to `budget`, none above its size (largest remainders)."""
    size = np.asarray(sizes, dtype=np.int64)
    if not 0 <= budget <= size.sum():
        raise OptionError(f"A budget of {budget} can't be shared among {int(size.sum())} weights.")
    # Whole-number arithmetic: no quota is off by rounding, however large the network. Python's integers, since the
    # product can pass 2**63.
    products = [int(s) * int(budget) for s in size]
    total = max(int(size.sum()), 1)
    counts = np.array([p // total for p in products], dtype=np.int64)
    remainders = np.array([p % total for p in products], dtype=np.float64)
    missing = budget - int(counts.sum())
    counts[np.argsort(-remainders, kind="stable")[:missing]] += 1
    return counts


def _checked(totals: Any, nnz: Any, budget: float, delta: float, weights: Any) -> tuple[Array, Array, Array]:
    t, cap = _array(totals), _array(nnz)
    c = np.ones_like(t) if weights is None else _array(weights)
    if not t.shape == cap.shape == c.shape or t.ndim != 1:
        raise OptionError(
            f"totals, nnz and weights need one number a block; their shapes are {t.shape}, {cap.shape}, {c.shape}."
        )
    for name, values in (("totals", t), ("nnz", cap), ("weights", c)):
        if not np.isfinite(values).all() or (values < 0).any():
            raise OptionError(f"{name} must be finite numbers of at least 0.")
    if not budget >= 0:
        raise OptionError(f"The budget must be a number of at least 0, not {budget}.")
    if not 0 < delta < 1:
        raise OptionError(f"delta is a failure probability: it must be above 0 and below 1, not {delta}.")
    return t, cap, c


def _array(values: Any) -> Array:
    if isinstance(values, Tensor):
        values = values.detach().cpu().numpy()
    return np.asarray(values, dtype=np.float64)


def _epsilon(m: Array, t: Array, log_term: float) -> Array:
    """C10's bound, infinite at m = 0; for blocks with T > 0."""
    a = t * log_term / 3
    with np.errstate(divide="ignore"):
        return (a + np.sqrt(a * a + 6 * a * m)) / m


def _optimal_draws(t: Array, cap: Array, c: Array, budget: float, log_term: float, least: float = 0) -> Array:
    """The continuous optimum with least <= m <= cap."""
    draws = np.zeros_like(t)
    live = (t > 0) & (cap > 0) & (c > 0)
    if not live.any() or budget == 0:
        return draws
    if budget >= cap[live].sum():
        draws[live] = cap[live]
        return draws
    from scipy.optimize import brentq

    a, cap, c = t[live] * log_term / 3, cap[live], c[live]

    def at(log_lambda: float) -> Array:
        return np.clip(_draws_at(18 * (c / a) * math.exp(-log_lambda), a), least, cap)

    def excess(log_lambda: float) -> float:
        return float(at(log_lambda).sum()) - budget

    # Some block is below its cap at the lower end only if all are at it; at the upper end each has at most B / blocks.
    lowest = np.log(18 * (c / a) / _kappa(cap, a)).min() - 1e-3
    highest = np.log(18 * (c / a) / _kappa(np.full_like(a, budget / a.size), a)).max() + 1e-3
    log_lambda = brentq(excess, lowest, highest, xtol=1e-14, rtol=8.9e-16)
    m = at(log_lambda)
    free = (least < m) & (m < cap)
    if free.any():
        # The root in lambda leaves a relative error of about 1e-15 in the sum; hand it to the blocks between the ends.
        m[free] *= (budget - m[~free].sum()) / m[free].sum()
    draws[live] = np.clip(m, least, cap)
    return draws


def _kappa(m: Array, a: Array) -> Array:
    """r (r - 1)^2 for r = sqrt(1 + 6 m / a), without cancellation for small m."""
    u = 6 * m / a
    t: Array = u / (np.sqrt(1 + u) + 1)
    kappa: Array = t * t * (t + 1)
    return kappa


def _draws_at(kappa: Array, a: Array) -> Array:
    """m with r (r - 1)^2 = kappa, by Newton's method on t^2 (t + 1) = kappa, t = r - 1 > 0.

    The start is above the root, where the cubic is convex and rising: every step stays above and converges.
    """
    t = np.minimum(np.sqrt(kappa), np.cbrt(kappa))
    for _ in range(8):
        t -= (t * t * (t + 1) - kappa) / np.maximum(t * (3 * t + 2), np.finfo(np.float64).tiny)
    m: Array = a * t * (t + 2) / 6
    return m


def _round_optimally(draws: Array, t: Array, cap: Array, c: Array, budget: int, log_term: float) -> Counts:
    """From the continuous to the integer optimum: largest remainders, then exchanges while one still gains.

    For a sum of convex functions, no single exchange that gains means that the whole is optimal.
    """
    m = np.floor(draws)
    remainders = np.where(m < cap, draws - m, -np.inf)
    m[np.argsort(-remainders, kind="stable")[: max(0, budget - int(m.sum()))]] += 1
    while True:
        gain = np.where(m < cap, c * (_epsilon(m, t, log_term) - _epsilon(m + 1, t, log_term)), -np.inf)
        loss = _loss(m, t, c, log_term)
        take, give = np.argsort(-gain, kind="stable"), np.argsort(loss, kind="stable")
        useful = gain[take] > loss[give] * (1 + 1e-12)
        pairs = int(np.argmin(useful)) if not useful.all() else useful.size
        # A block's own gain never exceeds its own loss, so that takers and givers of the useful pairs are distinct.
        if pairs == 0:
            return m.astype(np.int64)
        m[take[:pairs]] += 1
        m[give[:pairs]] -= 1


def _loss(m: Array, t: Array, c: Array, log_term: float) -> Array:
    """What taking one draw away costs; infinite for a block's only draw."""
    lower = np.maximum(m - 1, 1)
    return np.where(m > 1, c * (_epsilon(lower, t, log_term) - _epsilon(m, t, log_term)), np.inf)
