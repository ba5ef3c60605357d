"""The closed forms of THEORY.md and nothing else; each function names its claim.

Arguments may be numbers or tensors and are broadcast against each other; everything is computed in float64. Numbers
in give a float (or int) out; a tensor among them gives a float64 (or int64) tensor on its device.
"""

import math
from collections.abc import Iterable
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sipp_bench.errors import OptionError


def deterministic_epsilon(s_pruned: Any, dim: int | None = None) -> Any:
    """Claim C2: a block that drops the weights P has relative error at most eps = min(1, sum over P of s), on S.

    s_pruned: sensitivities of the dropped weights (any shape; empty gives 0); summed over all, or over `dim` alone.
    """
    s = torch.as_tensor(s_pruned, dtype=torch.float64)
    if s.numel() and (bool((s < 0).any()) or bool(s.isnan().any())):
        raise OptionError("Sensitivities are numbers of at least 0: a negative one or NaN was given.")
    if dim is None:
        return float(s.sum().clamp(max=1))
    return s.sum(dim).clamp(max=1)


def bernstein_epsilon(total: Any, draws: Any, delta: Any) -> Any:
    """Claim C10: with m draws, Pr(|Zhat - Z| > eps Z) <= delta for each active (x, p, tau) of S, where

        eps(m) = (T L / 3 + sqrt((T L / 3)^2 + 2 T L m)) / m,   L = ln(2 / delta).

    Infinite for m = 0 and T > 0; 0 for T = 0 (a block that is never active on S). Not capped at 1.
    """
    t, m, d = _tensors(total, draws, delta)
    log_term = _log_term(d)
    a = t * log_term / 3
    eps = (a + (a * a + 2 * t * log_term * m).sqrt()) / m
    return _as_given(torch.where(t == 0, 0.0, eps), total, draws, delta)


def bernstein_draws(total: Any, epsilon: Any, delta: Any) -> Any:
    """Claims C10 and C6: the least m with eps(m) <= epsilon, ceil(2 T (1 + eps/3) L / eps^2).

    Least up to 1e-12 relative in epsilon, the room for rounding. 0 for T = 0. Raises OptionError for epsilon = 0 and
    for more than 2^63 draws.
    """
    t, eps, d = _tensors(total, epsilon, delta)
    if bool((eps <= 0).any()):
        raise OptionError("epsilon must be above 0: no number of draws makes the error exactly 0.")
    m = (2 * t * (1 + eps / 3) * _log_term(d) / eps**2).ceil()
    allowed = eps * (1 + 1e-12)
    # The quotient can be one off in floating point, in either direction.
    m = torch.where((m > 1) & (bernstein_epsilon(t, (m - 1).clamp(min=1), d) <= allowed), m - 1, m)
    m = torch.where((t > 0) & (bernstein_epsilon(t, m.clamp(min=1), d) > allowed), m + 1, m)
    return _as_given(torch.where(t == 0, 0.0, m.clamp(min=1)), total, epsilon, delta, integer=True)


def vacuity_draws(total: Any, delta: Any) -> Any:
    """Claim C10: m* = (8/3) T L. Only with more draws is eps(m) < 1, better than dropping the block."""
    t, d = _tensors(total, delta)
    return _as_given(8 / 3 * t * _log_term(d), total, delta)


def mixture_epsilon(rest_total: Any, rest_draws: Any, delta: Any) -> Any:
    """Claim C13: the k largest s of a block are kept and r = m - k >= 1 draws are made from the rest R:

        eps = (T_R L / 3 + sqrt((T_R L / 3)^2 + 2 v L r)) / r,   v = T_R^2 / 4 if T_R <= 2 else T_R - 1.

    rest_total: T_R, the sum of s over R. With r = 0 the rest is dropped and eps = min(1, T_R), claim C2's.
    """
    t, r, d = _tensors(rest_total, rest_draws, delta)
    log_term = _log_term(d)
    v = torch.where(t <= 2, t * t / 4, t - 1)
    a = t * log_term / 3
    eps = (a + (a * a + 2 * v * log_term * r).sqrt()) / r
    return _as_given(torch.where(r > 0, eps, t.clamp(max=1)), rest_total, rest_draws, delta)


def expected_distinct(q: Any, draws: Any) -> Any:
    """Claim C6: expected number of distinct weights in m draws with replacement, sum over j of 1 - (1 - q_j)^m.

    q: probabilities (..., n), summed over the last dimension; draws: broadcast against the rest.
    """
    p, m = _tensors(q, draws)
    if bool((p < 0).any()) or bool((p > 1).any()):
        raise OptionError("q holds probabilities: each must be within [0, 1].")
    exponent = torch.log1p(-p) * m.unsqueeze(-1)
    # log1p(-1) * 0 is NaN: no draws, no weights.
    distinct = torch.where(m.unsqueeze(-1) == 0, 0.0, -torch.expm1(exponent)).sum(-1)
    return float(distinct) if distinct.ndim == 0 else distinct


def recombined_error(epsilon: Any, plus: Any, minus: Any) -> Any:
    """Claim C4 for pure dropping: |yhat_i - y_i| <= eps max(Z^{++} + Z^{--}, Z^{-+} + Z^{+-}); y without bias.

    plus: Z^{++} + Z^{--}; minus: Z^{-+} + Z^{+-}. For reweighted blocks the sum of the two replaces the maximum.
    """
    eps, up, down = _tensors(epsilon, plus, minus)
    return _as_given(eps * torch.maximum(up, down), epsilon, plus, minus)


def composed_error(delta_factor: Any, xi: Any, epsilon: Any) -> Any:
    """Claim C18: xi' <= Delta (xi + eps + xi eps), valid while xi' <= 1; infinite beyond.

    delta_factor: Delta, the cancellation factor.
    """
    d, x, eps = _tensors(delta_factor, xi, epsilon)
    out = d * (x + eps + x * eps)
    return _as_given(torch.where(out <= 1, out, math.inf), delta_factor, xi, epsilon)


def wilks_rate(n: int, delta: float) -> float:
    """Claim C14: with probability >= 1 - delta over S, Pr_x(g_j(x) > s_j) <= 1 - delta^(1/n).

    For one weight; n: the number of points in S.
    """
    if n < 1:
        raise OptionError(f"n is a number of points, at least 1, not {n}.")
    _check_delta(torch.tensor(delta, dtype=torch.float64))
    return -math.expm1(math.log(delta) / n)


def conformal_rank(n: int, alpha: float | Fraction) -> int:
    """Claim C17: k = ceil((n + 1)(1 - alpha)), exactly; a decimal such as 0.3 means 3/10."""
    try:
        level = alpha if isinstance(alpha, Fraction) else Fraction(str(alpha))
    except ValueError:
        level = Fraction(0)
    if not 0 < level < 1:
        raise OptionError(f"alpha must be above 0 and below 1, not {alpha}.")
    return math.ceil((n + 1) * (1 - level))


def conformal_quantile(scores: Iterable[float] | Tensor, alpha: float | Fraction) -> float:
    """Claim C17: the k-th smallest score, k = ceil((n+1)(1-alpha)); infinity when k > n. NaN counts as infinity.

    For n calibration scores exchangeable with a fresh one, Pr(fresh <= quantile) >= 1 - alpha.
    """
    values = np.asarray(scores.detach().cpu() if isinstance(scores, Tensor) else list(scores), dtype=np.float64).ravel()
    k = conformal_rank(values.size, alpha)
    if k > values.size:
        return math.inf
    return float(np.partition(np.where(np.isnan(values), np.inf, values), k - 1)[k - 1])


def _tensors(*arguments: Any) -> list[Tensor]:
    given = [argument.device for argument in arguments if isinstance(argument, Tensor)]
    device = given[0] if given else None
    tensors = [torch.as_tensor(argument, dtype=torch.float64, device=device) for argument in arguments]
    for tensor in tensors:
        if bool(tensor.isnan().any()) or bool((tensor < 0).any()):
            raise OptionError("The bounds take numbers of at least 0: a negative one or NaN was given.")
    return tensors


def _as_given(result: Tensor, *arguments: Any, integer: bool = False) -> Any:
    if integer and bool((result >= 2.0**63).any()):
        raise OptionError("More than 2^63 draws would be needed: ask for a larger epsilon.")
    if any(isinstance(argument, Tensor) for argument in arguments):
        return result.long() if integer else result
    if any(isinstance(argument, np.ndarray) for argument in arguments):
        return result.long().numpy() if integer else result.numpy()
    return int(result) if integer else float(result)


def _log_term(delta: Tensor) -> Tensor:
    """L = ln(2 / delta)."""
    _check_delta(delta)
    return torch.log(2 / delta)


def _check_delta(delta: Tensor) -> None:
    if not bool(((delta > 0) & (delta < 1)).all()):
        raise OptionError("delta is a failure probability: it must be above 0 and below 1.")
