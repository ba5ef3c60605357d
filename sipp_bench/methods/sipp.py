"""What the SiPP methods share: one measurement, blocks over all layers, and carrying out a plan.

A plan says for each block which weights are kept as they are, and how many of the rest are to be drawn (none: the
rest is dropped). It depends on the sensitivities alone; what is drawn is decided before any draw (claim C9).
"""

import functools
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from sipp_bench.bounds import bernstein_epsilon, deterministic_epsilon
from sipp_bench.compression.guarantee import Bound, Guarantee
from sipp_bench.compression.quantities import BlockError
from sipp_bench.errors import OptionError
from sipp_bench.methods.observers import BlockWeighting, Look, Sensitivities
from sipp_bench.methods.protocol import Budget, Method, Observation, Selection
from sipp_bench.methods.sampling import BlockSampler, reweighted, whole_draws
from sipp_bench.methods.scores import Rows, keep_only, largest
from sipp_bench.network.blocks import block_sums, by_block
from sipp_bench.sensitivity.block_weights import BlockWeights, check_block_weights
from sipp_bench.sensitivity.measure import PatchReduction, Sensitivity


@dataclass(frozen=True)
class SippObservation(Observation):
    """Sensitivities (as scores), with their blocks' totals and weights c_b."""

    sensitivity: Sensitivity
    block_weights: Mapping[str, Tensor]

    def rows(self, name: str) -> tuple[Tensor, Tensor]:
        """s and w > 0 of one weight, (neurons, n)."""
        layer = self.sensitivity[name]
        return layer.values.flatten(1), layer.positive.flatten(1)

    @functools.cached_property
    def live(self) -> dict[str, Tensor]:
        """By name, weights with s > 0 in each block: (neurons, 2) float64 whole numbers."""
        return {name: block_sums(layer.values > 0, layer.positive) for name, layer in self.sensitivity.items()}


@dataclass(frozen=True)
class Plan:
    """For each weight: which are kept as they are (neurons, n), and how many of the rest to draw (neurons, 2)."""

    kept: Mapping[str, Tensor]
    distinct: Mapping[str, Tensor]

    def requested(self) -> dict[str, int]:
        """Weights asked for, by name."""
        return {
            name: int(torch.count_nonzero(kept)) + int(self.distinct[name].sum()) for name, kept in self.kept.items()
        }


@dataclass(frozen=True, kw_only=True)
class SippMethod(Method):
    """Measures sensitivities once; a subclass plans.

    weights: block weights c_b, "uniform" (the paper), "layer" (1 / neurons, the authors' sampling) or "downstream"
    (ours, see `block_weights`). patch_reduction: "max" (the definition) or "mean" (the authors' choice).
    """

    weights: BlockWeights = "uniform"
    patch_reduction: PatchReduction = "max"

    def __post_init__(self) -> None:
        check_block_weights(self.weights)
        if self.patch_reduction not in ("max", "mean"):
            raise OptionError(f"patch_reduction is 'max' or 'mean', not {self.patch_reduction!r}.")

    @property
    def needs(self) -> tuple[Sensitivities, BlockWeighting]:
        return Sensitivities(self.patch_reduction), BlockWeighting(self.weights, self.patch_reduction)

    def observe(self, look: Look) -> SippObservation:
        """One sensitivity pass, and one more for "downstream" block weights."""
        sensitivities, weighting = self.needs
        sens, c = look.at(sensitivities), look.at(weighting)
        return SippObservation({name: layer.values for name, layer in sens.items()}, sens.skipped, sens, c)

    @abstractmethod
    def plan(self, observation: SippObservation, weights: Mapping[str, Tensor], budget: int) -> Plan:
        """Which weights to keep and how many to draw, from the sensitivities alone."""

    def select(
        self, observation: Observation, weights: Mapping[str, Tensor], budget: int, rng: np.random.Generator
    ) -> Selection:
        """Plan, draw, reweight; see `Method.select`."""
        assert isinstance(observation, SippObservation)
        plan = self.plan(observation, weights, budget)
        samplers, rest = {}, {}
        for name, distinct in plan.distinct.items():
            s, positive = observation.rows(name)
            rest[name] = block_sums(s, positive, ~plan.kept[name])
            if bool(distinct.any()):
                drawn = by_block(distinct > 0, positive) > plan.kept[name]
                samplers[name] = BlockSampler(s, positive, drawn, rest[name])
        draws = whole_draws(samplers, {name: plan.distinct[name] for name in samplers}) if samplers else {}
        pruned, epsilon = {}, {}
        for name, weight in weights.items():
            draws.setdefault(name, torch.zeros_like(plan.distinct[name], dtype=torch.int64))
            rows = keep_only(weight.flatten(1), plan.kept[name])
            if name in samplers:
                # No weight is both kept and drawn.
                rows += reweighted(samplers.pop(name), weight.flatten(1), draws[name], rng)
            pruned[name] = rows.reshape(weight.shape)
            epsilon[name] = self.epsilon(rest[name], draws[name], observation)
        return Selection.masked(pruned, plan.requested(), self._guarantee(observation, epsilon, draws))

    def epsilon(self, rest: Tensor, draws: Tensor, observation: SippObservation) -> Tensor:
        """Bound of each block: claim C2 where nothing is drawn. rest: T_R of what is not kept, (neurons, 2)."""
        bound: Tensor = deterministic_epsilon(rest.unsqueeze(-1), -1)
        return bound

    def _guarantee(
        self, observation: SippObservation, epsilon: Mapping[str, Tensor], draws: Mapping[str, Tensor]
    ) -> Guarantee:
        sampled = any(bool(d.any()) for d in draws.values())
        delta = getattr(self, "delta", 0.0) if sampled else 0.0
        quantity = BlockError(per_patch=self.patch_reduction == "max")
        bounds = {
            name: Bound(self.claims[0], quantity, epsilon[name], delta=delta, drawn=draws[name]) for name in epsilon
        }
        simultaneous = getattr(self, "simultaneous", False)
        return Guarantee(self.claims, delta, simultaneous, bounds, observation.sensitivity.num_points)


@dataclass(frozen=True, kw_only=True)
class SamplingMethod(SippMethod):
    """A SiPP method that may draw.

    delta: failure probability of the bound for each active (block, x, p, tau); with `simultaneous`, for all that are
    active on S at once, delta split among them (claim C11).
    """

    budget: ClassVar[Budget] = "expected"
    delta: float = 0.05
    simultaneous: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.delta < 1:
            raise OptionError(f"delta is a failure probability, above 0 and below 1, not {self.delta!r}.")
        if not isinstance(self.simultaneous, bool):
            raise OptionError(f"simultaneous is True or False, not {self.simultaneous!r}.")

    def split_delta(self, observation: SippObservation) -> float:
        """The delta of a single (block, x, p, tau)."""
        if not self.simultaneous:
            return self.delta
        active = sum(int(layer.active.sum()) for layer in observation.sensitivity.values())
        return split_delta(self.delta, active)

    def epsilon(self, rest: Tensor, draws: Tensor, observation: SippObservation) -> Tensor:
        """Claim C10 where the block is drawn, claim C2 where it is not."""
        delta = self.split_delta(observation)
        sampled = bernstein_epsilon(rest, draws.clamp(min=1), delta)
        return torch.where(draws > 0, sampled, super().epsilon(rest, draws, observation))


def split_delta(delta: float, count: int) -> float:
    """Claim C11: the delta of each of `count` events, so that all hold together with probability at least 1 - delta."""
    return delta / max(count, 1)


@dataclass(frozen=True)
class _Weighted:
    """c_b s of one weight, computed for the rows that are asked for."""

    s: Tensor
    positive: Tensor
    c: Tensor

    def __getitem__(self, rows: slice, /) -> Tensor:
        return self.s[rows].double() * by_block(self.c[rows], self.positive[rows])


def keep_top(observation: SippObservation, weights: Mapping[str, Tensor], budget: int) -> dict[str, Tensor]:
    """Claim C3: the `budget` largest c_b s over all blocks, (neurons, n) masks; ties as in `largest`."""
    # Without block weights s itself competes, in its own dtype.
    plain = all(bool((c == 1).all()) for c in observation.block_weights.values())
    scores: dict[str, Rows] = {}
    for name, c in observation.block_weights.items():
        s, positive = observation.rows(name)
        scores[name] = s if plain else _Weighted(s, positive, c)
    return {name: mask.flatten(1) for name, mask in largest(scores, weights, budget).items()}
