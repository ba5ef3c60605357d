"""Wrong choices of weights and wrong splits of draws, for claims C3 to C6."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import sipp_bench
from sipp_bench import bounds
from sipp_bench.methods.allocation import allocate, allocate_whole
from sipp_bench.methods.protocol import fit_method
from sipp_bench.methods.scores import largest
from sipp_bench.methods.sipp import Plan, SippObservation
from sipp_bench.methods.sipp_det import SippDet
from sipp_bench.methods.splits import without_draws

Masks = dict[str, Tensor]
Choose = Callable[[SippObservation, dict[str, Tensor], int], Masks]


def _keeping(choose: Choose) -> Callable[..., Any]:
    """`fit` whose sipp-det keeps other weights; its guarantee is right for those."""

    class Other(SippDet):
        def plan(self, observation: SippObservation, weights: Any, budget: int) -> Plan:
            masks = choose(observation, weights, budget)
            return without_draws({name: mask.flatten(1) for name, mask in masks.items()}, observation)

    def fit(model: nn.Module, points: Tensor, method: str = "sipp-det", **options: Any) -> Any:
        if method != "sipp-det":
            return sipp_bench.fit(model, points, method, **options)
        return fit_method(Other(**options), model, points)

    return fit


def _by_magnitude(observation: SippObservation, weights: dict[str, Tensor], budget: int) -> Masks:
    return largest({name: weight.abs() for name, weight in weights.items()}, weights, budget)


def _by_layer(observation: SippObservation, weights: dict[str, Tensor], budget: int) -> Masks:
    return largest(observation.scores, weights, budget, "layer")


def _by_sensitivity(observation: SippObservation, weights: dict[str, Tensor], budget: int) -> Masks:
    return largest(observation.scores, weights, budget)


def _smaller_side(epsilon: Any, plus: Any, minus: Any) -> Any:
    return bounds.recombined_error(epsilon, torch.minimum(plus, minus), torch.zeros_like(plus))


def _by_output(epsilon: Any, plus: Any, minus: Any) -> Any:
    return epsilon * (plus - minus).abs()


def _even_split(totals: Any, nnz: Any, budget: float, **options: Any) -> Any:
    cap = np.asarray(nnz, dtype=float)
    return np.minimum(cap, budget / max(len(cap), 1))


def _by_total(totals: Any, nnz: Any, budget: float, **options: Any) -> Any:
    share = np.asarray(totals, dtype=float)
    return np.minimum(np.asarray(nnz, dtype=float), budget * share / share.sum())


def _floor(totals: Any, nnz: Any, budget: int, **options: Any) -> Any:
    """Whole draws by largest remainders of the continuous optimum, without the exchanges that make them optimal."""
    m = allocate(totals, nnz, budget, **options)
    whole = np.maximum(np.floor(m), 1)
    missing = int(min(budget, np.sum(nnz)) - whole.sum())
    order = np.argsort(whole - m, kind="stable")
    whole[[b for b in order if whole[b] < nnz[b]][: max(missing, 0)]] += 1
    return whole


def _unweighted(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda totals, nnz, budget, *, delta, weights=None: function(totals, nnz, budget, delta=delta)


def _rounded_down(total: float, epsilon: float, delta: float) -> int:
    return max(1, math.floor(2 * total * (1 + epsilon / 3) * math.log(2 / delta) / epsilon**2))


CHOICES: dict[str, dict[str, Any]] = {
    "largest magnitudes kept": {"fit": _keeping(_by_magnitude)},
    "every layer pruned alike": {"fit": _keeping(_by_layer)},
    "block weights ignored": {"fit": _keeping(_by_sensitivity)},
    "smaller side recombined": {"recombine": _smaller_side},
    "recombined by the output": {"recombine": _by_output},
}

ALLOCATIONS: dict[str, dict[str, Any]] = {
    "even split of draws": {"allocate": _even_split},
    "draws by total": {"allocate": _by_total},
    "over budget": {"allocate": lambda t, cap, budget, **o: allocate(t, cap, 1.01 * budget, **o)},
    "draws rounded, not exchanged": {"allocate_whole": _floor},
    "block weights forgotten": {"allocate": _unweighted(allocate), "allocate_whole": _unweighted(allocate_whole)},
    "draws rounded down": {"draws_for": _rounded_down},
    "one draw more than needed": {"draws_for": lambda *given: bounds.bernstein_draws(*given) + 1},
    "one-sided logarithm": {"draw_epsilon": lambda t, m, delta: bounds.bernstein_epsilon(t, m, min(2 * delta, 0.999))},
    "distinct draws counted as draws": {"distinct": lambda q, draws: float(min(draws, (np.asarray(q) > 0).sum()))},
}
