"""What the checks of a user's network share: points, fit, pruned copies, and an independent look at the blocks."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

import sipp_bench as sb
from sipp_bench.compression.guarantee import Guarantee
from sipp_bench.compression.pruned import Pruned
from sipp_bench.compression.quantities import BlockError
from sipp_bench.errors import OptionError
from sipp_bench.methods import Fitted
from sipp_bench.network.blocks import block_sums
from sipp_bench.network.forward import no_look
from sipp_bench.network.points import call_model, iterate_batches, model_device
from sipp_bench.network.tracing import tracing
from sipp_bench.sensitivity.measure import Sensitivity, measure_sensitivity
from theory_checks.cases import oracle
from theory_checks.certificate.composition import Distribution, cancellation, folded
from theory_checks.evidence.finding import Effort
from theory_checks.on_network.capture import BATCH, layer_batches
from theory_checks.on_network.fresh_look import FreshLook
from theory_checks.on_network.held import Held
from theory_checks.on_network.steady import mixes_points, require_repeatable


class NotApplicable(Exception):  # noqa: N818  # not an error: the reason why a claim says nothing here
    """A claim does not speak of this network, method or keep ratio; the message is the reason."""


@dataclass
class Context:
    """One call of `verify`: what was given, and what several checks need, computed once.

    draws: sets of draws over the whole network (claim C11); trials on single blocks are `effort.trials`. own_draws:
    what the method's own draws gave, by keep ratio (`drawn_blocks`).
    """

    model: nn.Module
    points: Held
    fresh: Held
    method: str
    options: Mapping[str, Any]
    delta: float
    alpha: float
    seed: int
    effort: Effort
    draws: int
    own_draws: dict[float, object] = field(default_factory=dict)
    _pruned: dict[float, Pruned] = field(default_factory=dict)
    _errors: dict[float, Mapping[str, Tensor]] = field(default_factory=dict)

    @cached_property
    def fitted(self) -> Fitted:
        """The method, after its look at S."""
        return sb.fit(self.model, self.points.points(BATCH), self.method, batch_size=BATCH, **self.options)

    @cached_property
    def sensitivity(self) -> Sensitivity:
        """On S, in the definition's sense (the largest patch), whatever the method makes of it."""
        return measure_sensitivity(self.model, self.points.points(BATCH), batch_size=BATCH)

    @cached_property
    def look(self) -> FreshLook:
        """The fresh points, one by one. Raises NotApplicable where a point by itself is another than in a batch."""
        if mixes_points(self.model, self.points):
            raise NotApplicable(
                "this network's output for a point depends on the others in its batch (batch-norm without running "
                "statistics, say), so that nothing can be measured on single fresh points"
            )
        return FreshLook(self.model, self.points, self.fresh, self.alpha)

    @cached_property
    def cancellations(self) -> tuple[dict[str, Distribution], bool]:
        """Delta of every layer on S, batch-norm folded, and whether all of it could be folded."""
        model, complete = folded(self.model)
        found: dict[str, Distribution] = {}
        for name, layer, x in layer_batches(model, self.points.points(BATCH)):
            found.setdefault(name, Distribution.empty()).add(cancellation(layer, x))
        return found, complete

    def prepare(self) -> None:
        """What every check needs. Raises what the network or the points refuse: no claim can be checked then."""
        require_repeatable(self.model, self.points)
        _ = self.fitted, self.sensitivity
        require_repeatable(self.model, self.fresh)
        _run_all(self.model, self.fresh)

    def pruned(self, keep: float) -> Pruned:
        """The network pruned to this keep ratio by the seed."""
        if keep not in self._pruned:
            self._pruned[keep] = self.fitted.prune(keep, self.seed)
        return self._pruned[keep]

    @cached_property
    def dense_outputs(self) -> Tensor:
        """The dense network's outputs on the fresh points, float64."""
        return outputs(self.model, self.fresh)

    def pruned_outputs(self, keep: float) -> Tensor:
        """The pruned network's outputs on the fresh points, float64."""
        return outputs(self.pruned(keep).model, self.fresh)

    def cell(self, keep: float) -> "Cell":
        """The pruned network at one keep ratio, block by block."""
        return Cell(self, keep)


@dataclass(frozen=True)
class Blocks:
    """The blocks of one pruned weight, (neurons, 2) each. n: weights of a neuron.

    epsilon: the bound, the method's own, else claim C2's. drawn: whether the block was drawn and reweighted.
    changed: how many of its weights are not the dense ones. active: whether the block was active on S. largest: the
    largest s among those dropped; lost: their sum, claim C2's bound without its cap.
    """

    epsilon: Tensor
    drawn: Tensor
    changed: Tensor
    active: Tensor
    largest: Tensor
    lost: Tensor
    n: int

    @property
    def telling(self) -> Tensor:
        """Blocks from which something was dropped or drawn and whose bound says something (epsilon < 1)."""
        return self.concerned & (self.epsilon < 1)

    @property
    def concerned(self) -> Tensor:
        """Blocks that were active and that pruning changed."""
        return self.active & ((self.changed > 0) | self.drawn)


@dataclass(frozen=True)
class Cell:
    """One keep ratio of a context."""

    context: Context
    keep: float

    @property
    def pruned(self) -> Pruned:
        return self.context.pruned(self.keep)

    @property
    def weights(self) -> dict[str, tuple[Tensor, Tensor]]:
        """By name: the dense weight and the pruned one."""
        old, new = (dict(m.named_parameters()) for m in (self.context.model, self.pruned.model))
        return {name: (old[name].detach(), new[name].detach()) for name in self.pruned.masks}

    def blocks(self) -> dict[str, Blocks]:
        """Every pruned weight's blocks."""
        return blocks_of(self.context.sensitivity, self.weights, self.pruned.guarantee)

    def errors(self) -> Mapping[str, Tensor]:
        """Measured r of every block, the largest over S, patches and activation signs: (neurons, 2), independently
        of the library. A weight that S never reached has none, and error 0. Several claims ask; computed once."""
        known = self.context._errors
        if self.keep in known:
            return known[self.keep]
        largest = {
            name: torch.zeros(len(w), 2, dtype=torch.float64, device=w.device) for name, (w, _) in self.weights.items()
        }
        for name, layer, x in layer_batches(self.context.model, self.context.points.points(BATCH), largest):
            r = oracle.relative_errors(layer, x, self.weights[name][1]).amax((0, 1, 4))
            largest[name] = torch.maximum(largest[name], r)
        known[self.keep] = largest
        return largest


def blocks_of(
    sensitivity: Sensitivity, weights: Mapping[str, tuple[Tensor, Tensor]], guarantee: Guarantee | None
) -> dict[str, Blocks]:
    """The blocks of weights (dense, pruned) by name, with the guarantee's bounds, else claim C2's."""
    found = {}
    for name, (dense, pruned) in weights.items():
        layer, w, rows = sensitivity[name], dense.flatten(1), pruned.flatten(1)
        s, positive = layer.values.flatten(1).double(), layer.positive.flatten(1)
        gone = (w != 0) & (rows == 0)
        gone_s = torch.where(gone, s, 0.0)
        lost = block_sums(gone_s, positive)
        bound = None if guarantee is None else guarantee.bounds[name]
        if bound is None or bound.quantity != BlockError():
            drawn = block_sums((rows != 0) & (rows != w), positive) > 0
            epsilon = torch.where(drawn, math.inf, lost.clamp(max=1))
        else:
            epsilon = bound.epsilon.double()
            # A weight that changed in a block without draws is a bug, for which the bound is no excuse.
            drawn = bound.draws > 0
        largest = torch.stack([torch.where(sign, gone_s, 0.0).amax(1) for sign in (positive, ~positive)], 1)
        changed = block_sums(rows != w, positive)
        found[name] = Blocks(epsilon, drawn, changed, layer.active > 0, largest, lost, s.shape[1])
    return found


def rounding_of(epsilon: Tensor, n: int, dtype: torch.dtype) -> Tensor:
    """Room for rounding in r <= epsilon, as for blocks whose weights were reweighted."""
    return BlockError.room(epsilon, torch.ones_like(epsilon, dtype=torch.bool), n, dtype)


def outputs(model: nn.Module, points: Held) -> Tensor:
    """The network's outputs in eval mode: (N, K) float64. Raises NotApplicable unless it gives one such tensor."""
    found = _run_all(model, points)
    if not all(isinstance(y, Tensor) and y.ndim == 2 for y in found):
        raise NotApplicable("the network's output is not one tensor (N, K) of logits")
    return torch.cat(found).double()


def _run_all(model: nn.Module, points: Held) -> list[Any]:
    """What the network gives in eval mode, batch by batch."""
    with torch.no_grad(), tracing(model, no_look):
        batches = iterate_batches(points.points(BATCH), BATCH, model_device(model))
        return [call_model(model, inputs) for inputs, _ in batches]


def check_keeps(keep: Any) -> tuple[float, ...]:
    """One keep ratio or several, as given, each within [0, 1]."""
    keeps = tuple(keep) if isinstance(keep, list | tuple) else (keep,)
    for each in keeps:
        if isinstance(each, bool) or not isinstance(each, int | float) or not 0 <= each <= 1:
            raise OptionError(f"keep is a fraction from 0 to 1, or several of them, not {each!r}.")
    if not keeps:
        raise OptionError("Give at least one keep ratio.")
    return tuple(dict.fromkeys(float(each) for each in keeps))
