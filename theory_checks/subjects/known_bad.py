"""Implementations that are wrong on purpose: a check that accepts all of them has checked nothing.

Each is sipp-bench with one piece exchanged.
"""

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sipp_bench.sensitivity.measure import Sensitivity, measure_sensitivity
from theory_checks.cases import oracle
from theory_checks.subjects.fresh import FRESH_POINTS
from theory_checks.subjects.identities import ALLOCATIONS, CHOICES
from theory_checks.subjects.networks import CERTIFICATES, COMPOSITIONS
from theory_checks.subjects.sampling import SAMPLING
from theory_checks.subjects.subject import REFERENCE, Subject, draw_block

Draw = Callable[[Tensor, Tensor, int, np.random.Generator], Tensor]
Measure = Callable[[nn.Module, Tensor], Sensitivity]


def _each_layer(measure_layer: Measure) -> Measure:
    """For networks: every layer measured by itself, on the inputs that it gets."""

    def measure(model: nn.Module, points: Tensor) -> Sensitivity:
        if isinstance(model, oracle.Layer):
            return measure_layer(model, points)
        layers = {}
        for name, (layer, x) in oracle.layer_inputs(model, points).items():
            layers[f"{name}.weight"] = replace(measure_layer(layer, x)["weight"], name=f"{name}.weight")
        return Sensitivity(layers, len(points), "max", {})

    return measure


def _with_values(change: Callable[[Tensor, Tensor, nn.Module, Tensor], Tensor]) -> Measure:
    """Sensitivities whose values (M, n) are replaced by change(values, weight, layer, points)."""

    def measure(layer: nn.Module, points: Tensor) -> Sensitivity:
        sens = measure_sensitivity(layer, points)
        entry = sens["weight"]
        weight = dict(layer.named_parameters())["weight"].detach()
        values = change(entry.values.flatten(1), weight.flatten(1), layer, points).to(entry.values)
        return replace(sens, layers={"weight": replace(entry, values=values.reshape(weight.shape))})

    return _each_layer(measure)


def _mean_over_points(values: Tensor, weight: Tensor, layer: Any, points: Tensor) -> Tensor:
    return oracle.contributions(layer, points).amax((1, 4)).mean(0)


def _first_patch(values: Tensor, weight: Tensor, layer: Any, points: Tensor) -> Tensor:
    return oracle.contributions(layer, points)[:, :1].amax((0, 1, 4))


def _bias_inside(values: Tensor, weight: Tensor, layer: Any, points: Tensor) -> Tensor:
    if layer.bias is None:
        return values
    g, z = oracle.contributions(layer, points), oracle.quadrant_sums(layer, points)
    own = (weight < 0).long().expand(*z.shape[:2], *weight.shape)
    bias = layer.bias.detach().double()
    extra = torch.stack([bias.clamp(min=0), (-bias).clamp(min=0)], -1)  # (M, sigma), as a weight on an input of 1
    for tau in (0, 1):
        total = z[..., tau].gather(-1, own)
        enlarged = (z[..., tau] + extra).gather(-1, own)
        g[..., tau] *= torch.where(enlarged > 0, total / enlarged, 0.0)
    return g.amax((0, 1, 4))


def _small_sums_are_zero(values: Tensor, weight: Tensor, layer: Any, points: Tensor) -> Tensor:
    z = oracle.quadrant_sums(layer, points)
    own = (weight < 0).long().expand(*z.shape[:2], *weight.shape)
    live = torch.stack([z[..., tau].gather(-1, own) > 1.2e-7 for tau in (0, 1)], -1)
    return (oracle.contributions(layer, points) * live).amax((0, 1, 4))


def _like(**changes: Any) -> Measure:
    """Sensitivities of the same layer with other settings, such as stride=1."""

    def measure(layer: nn.Module, points: Tensor) -> Sensitivity:
        other = copy.deepcopy(layer)
        for name, value in changes.items():
            if hasattr(other, name):
                current = getattr(other, name)
                setattr(other, name, type(current)([value] * len(current)) if isinstance(current, tuple) else value)
        if "padding" in changes and hasattr(other, "padding_mode"):
            other.padding_mode = "zeros"  # type: ignore[assignment]  # a plain string on every convolution
        return measure_sensitivity(other, points)

    return _each_layer(measure)


def _no_reweighting(s: Tensor, w: Tensor, draws: int, rng: np.random.Generator) -> Tensor:
    return torch.where(draw_block(s, w, draws, rng) != 0, w, 0)


def _without_replacement(s: Tensor, w: Tensor, draws: int, rng: np.random.Generator) -> Tensor:
    q = (s.double() / s.double().sum()).numpy()
    chosen = rng.choice(len(q), size=min(draws, int((q > 0).sum())), replace=False, p=q / q.sum())
    out = torch.zeros_like(w)
    out[chosen] = (w.double()[chosen] / (draws * torch.from_numpy(q)[chosen])).to(w.dtype)
    return out


def _draw_by(probabilities: Callable[[Tensor, Tensor], Tensor]) -> Draw:
    """Unbiased draws with other probabilities: the mean is right, the variance is not."""

    def draw(s: Tensor, w: Tensor, draws: int, rng: np.random.Generator) -> Tensor:
        return draw_block(torch.where(s > 0, probabilities(s, w), 0.0), w, draws, rng)

    return draw


def _dense_if_not_smaller(s: Tensor, w: Tensor, draws: int, rng: np.random.Generator) -> Tensor:
    drawn = draw_block(s, w, draws, rng)
    return w.clone() if bool((drawn[s > 0] != 0).all()) else drawn


def _one_draw_short(s: Tensor, w: Tensor, draws: int, rng: np.random.Generator) -> Tensor:
    return draw_block(s, w, draws - 1, rng) * ((draws - 1) / draws) if draws > 1 else draw_block(s, w, draws, rng)


_BAD: dict[str, dict[str, Any]] = {
    "no reweighting": {"draw": _no_reweighting},
    "draws without replacement": {"draw": _without_replacement},
    "draws by magnitude": {"draw": _draw_by(lambda s, w: w.abs().double())},
    "draws uniformly": {"draw": _draw_by(lambda s, w: torch.ones_like(s).double())},
    "dense if not smaller, after the draw": {"draw": _dense_if_not_smaller},
    "one draw short": {"draw": _one_draw_short},
    "magnitudes for sensitivities": {
        "sensitivity": _with_values(lambda v, w, *_: w.abs() / w.abs().amax().clamp(min=1e-300))
    },
    "mean over points": {"sensitivity": _with_values(_mean_over_points)},
    "first half of S only": {"sensitivity": lambda m, x: measure_sensitivity(m, x[: (len(x) + 1) // 2])},
    "first batch of S only": {"sensitivity": lambda m, x: measure_sensitivity(m, x[:64])},
    "one sign zeroed": {"sensitivity": _with_values(lambda v, w, *_: torch.where(w < 0, 0.0, v))},
    "first patch only": {"sensitivity": _with_values(_first_patch)},
    "sensitivities halved": {"sensitivity": _with_values(lambda v, *_: v / 2)},
    "sensitivities of 1": {"sensitivity": _with_values(lambda v, *_: (v > 0).to(v))},
    "negative activations ignored": {"sensitivity": lambda m, x: measure_sensitivity(m, x.clamp(min=0))},
    "bias inside Z": {"sensitivity": _with_values(_bias_inside)},
    "small sums are zero": {"sensitivity": _with_values(_small_sums_are_zero)},
    "stride ignored": {"sensitivity": _like(stride=1)},
    "padding ignored": {"sensitivity": _like(padding=0)},
    "bound halved": {"shrink": 0.5},
    "bound not capped": {"drop_epsilon": lambda s: float(s.sum())},
    "delta not split": {"split_delta": lambda delta, count: delta},
    **FRESH_POINTS,
    **CHOICES,
    **ALLOCATIONS,
    **CERTIFICATES,
    **COMPOSITIONS,
    **SAMPLING,
}

KNOWN_BAD: dict[str, Subject] = {name: replace(REFERENCE, name=name, **pieces) for name, pieces in _BAD.items()}
