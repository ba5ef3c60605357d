"""Sampling and its bounds, wrong on purpose: pieces for `known_bad`, beside those of its own."""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import sipp_bench
from sipp_bench import bounds
from sipp_bench.compression.changes import Masked
from sipp_bench.compression.honoured import block_errors
from sipp_bench.compression.pruned import Pruned
from sipp_bench.machine.seeds import derived_seed
from theory_checks.subjects.subject import draw_block


def _one_draw_repeated(s: Tensor, w: Tensor, draws: int, rng: np.random.Generator) -> Tensor:
    """The mean is right, the variance m times too large."""
    return draw_block(s, w, 1, rng)


def _range_term_left_out(total: Any, draws: Any, delta: Any) -> Any:
    return np.sqrt(2 * total * np.log(2 / delta) / draws)


def _one_sided_log_term(bound: Callable[[Any, Any, Any], Any]) -> Callable[[Any, Any, Any], Any]:
    """L = ln(1 / delta)."""
    return lambda total, draws, delta: bound(total, draws, np.minimum(2 * np.asarray(delta), 0.999))


def _variance_halved(total: Any, draws: Any, delta: Any) -> Any:
    t, r, log_term = np.asarray(total, dtype=float), np.asarray(draws, dtype=float), np.log(2 / np.asarray(delta))
    v, a = np.where(t <= 2, t * t / 4, t - 1) / 2, t * log_term / 3
    return np.where(r > 0, (a + np.sqrt(a * a + 2 * v * log_term * r)) / np.maximum(r, 1), np.minimum(t, 1))


@dataclass(frozen=True)
class _Changed:
    """Something that prunes, with its results changed."""

    change: Callable[[float, int], Pruned]

    def prune(self, keep: float, seed: int = 0) -> Pruned:
        """See `sipp_bench.Fitted.prune`."""
        return self.change(keep, seed)


def _branch_after_the_draw(model: nn.Module, points: Tensor, method: str, **options: Any) -> Any:
    """Draws and drops, and keeps of each block what measures better: neither unbiased nor decided by s alone."""
    if method != "sipp-hybrid":
        return sipp_bench.fit(model, points, method=method, **options)
    drawn = sipp_bench.fit(model, points, method="sipp-rand", **options)
    dropped = sipp_bench.fit(model, points, method="sipp-det")

    def change(keep: float, seed: int) -> Pruned:
        one, other = drawn.prune(keep, seed), dropped.prune(keep, seed)
        assert one.guarantee is not None
        assert other.guarantee is not None
        changes, bounds = {}, {}
        for name, weight in model.named_parameters():
            if name not in one.masks:
                continue
            pair = [
                block_errors(
                    model, p.model, points, {name: p.guarantee.epsilon[name]}, {name: p.guarantee.epsilon[name]}
                )
                for p in (one, other)
                if p.guarantee is not None
            ]
            better = pair[0][name].largest < pair[1][name].largest
            rows = torch.where(weight.flatten(1) > 0, better[:, :1], better[:, 1:]).reshape(weight.shape)
            changes[name] = Masked.of(torch.where(rows, _weight(one, name), _weight(other, name)))
            bounds[name] = dataclasses.replace(
                one.guarantee.bounds[name],
                epsilon=torch.where(better, one.guarantee.epsilon[name], other.guarantee.epsilon[name]),
                drawn=torch.where(better, one.guarantee.draws[name], 0),
            )
        guarantee = dataclasses.replace(one.guarantee, bounds=bounds, claims=("C12", "C2", "C10"))
        return Pruned.from_changes(model, changes, one.layer_requests, one.requested, guarantee)

    return _Changed(change)


def _other_branch(model: nn.Module, points: Tensor, method: str, **options: Any) -> Any:
    """Reports the hybrid's bounds, but draws every block."""
    reported = sipp_bench.fit(model, points, method=method, **options)
    if method != "sipp-hybrid":
        return reported
    run = sipp_bench.fit(model, points, method="sipp-rand", **options)

    def change(keep: float, seed: int) -> Pruned:
        return dataclasses.replace(run.prune(keep, seed), guarantee=reported.prune(keep, seed).guarantee)

    return _Changed(change)


def _kept_reweighted(model: nn.Module, points: Tensor, method: str, **options: Any) -> Any:
    """The mixture scales the weights that it keeps by 1.1, as if they had been drawn."""
    fitted = sipp_bench.fit(model, points, method=method, **options)
    if method != "sipp-mixture":
        return fitted
    originals = {name: parameter.detach() for name, parameter in model.named_parameters()}

    def change(keep: float, seed: int) -> Pruned:
        pruned = fitted.prune(keep, seed)
        weights = {
            name: torch.where(_weight(pruned, name) == originals[name], 1.1 * originals[name], _weight(pruned, name))
            for name in pruned.changes
        }
        changes = {name: Masked.of(weight) for name, weight in weights.items()}
        return Pruned.from_changes(model, changes, pruned.layer_requests, pruned.requested, pruned.guarantee)

    return _Changed(change)


def _changed_weights(
    change: Callable[[dict[str, Tensor], Callable[[int], Pruned], int], dict[str, Tensor]],
) -> Callable[..., Any]:
    """`fit` whose methods that draw have their weights changed: (weights, prune by seed, seed) -> weights."""

    def fit(model: nn.Module, points: Tensor, method: str, **options: Any) -> Any:
        fitted = sipp_bench.fit(model, points, method=method, **options)

        def pruned(keep: float, seed: int) -> Pruned:
            one = fitted.prune(keep, seed)
            weights = change({name: _weight(one, name) for name in one.masks}, lambda s: fitted.prune(keep, s), seed)
            changes = {name: Masked.of(w) for name, w in weights.items()}
            return Pruned.from_changes(model, changes, one.layer_requests, one.requested, one.guarantee)

        return _Changed(pruned) if method in ("sipp-rand", "sipp-hybrid", "sipp-mixture") else fitted

    return fit


def _later_too_small(weights: dict[str, Tensor], prune: Callable[[int], Pruned], seed: int) -> dict[str, Tensor]:
    """All layers but the first times 0.98."""
    return {name: weight if i == 0 else 0.98 * weight for i, (name, weight) in enumerate(weights.items())}


def _larger_of_two(weights: dict[str, Tensor], prune: Callable[[int], Pruned], seed: int) -> dict[str, Tensor]:
    other = prune(derived_seed(seed, "the other of two draws"))
    return {
        name: torch.where(_weight(other, name).abs() > weight.abs(), _weight(other, name), weight)
        for name, weight in weights.items()
    }


def _drawn_alike(weights: dict[str, Tensor], prune: Callable[[int], Pruned], seed: int) -> dict[str, Tensor]:
    """What one generator, copied for every layer, gives to two layers that are alike."""
    return weights | ({"right.weight": weights["left.weight"]} if "right.weight" in weights else {})


def _simultaneous_ignored(model: nn.Module, points: Tensor, method: str, **options: Any) -> Any:
    options.pop("simultaneous", None)
    fitted = sipp_bench.fit(model, points, method=method, **options)

    def change(keep: float, seed: int) -> Pruned:
        pruned = fitted.prune(keep, seed)
        if pruned.guarantee is not None:
            pruned.guarantee = dataclasses.replace(pruned.guarantee, simultaneous=True)
        return pruned

    return _Changed(change)


def _weight(pruned: Pruned, name: str) -> Tensor:
    return dict(pruned.model.named_parameters())[name].detach()


SAMPLING: Mapping[str, dict[str, Any]] = {
    "one draw repeated": {"draw": _one_draw_repeated},
    "later layers drawn too small": {"fit": _changed_weights(_later_too_small)},
    "larger of two draws": {"fit": _changed_weights(_larger_of_two)},
    "layers drawn alike": {"fit": _changed_weights(_drawn_alike)},
    "range term left out": {"draw_epsilon": _range_term_left_out},
    "log term of one side": {"draw_epsilon": _one_sided_log_term(bounds.bernstein_epsilon)},
    "mixture's log term of one side": {"mixture_epsilon": _one_sided_log_term(bounds.mixture_epsilon)},
    "mixture's variance halved": {"mixture_epsilon": _variance_halved},
    "branch chosen after the draw": {"fit": _branch_after_the_draw},
    "the other branch run": {"fit": _other_branch},
    "mixture reweights what it keeps": {"fit": _kept_reweighted},
    "simultaneous bounds for each alone": {"fit": _simultaneous_ignored},
}
