"""Low-rank factors: each layer by the best factors of its matrix (Eckart and Young 1936; claim C21 with one slice)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from sipp_bench.compression.changes import Change, Dense, Factors
from sipp_bench.compression.guarantee import Bound, Guarantee
from sipp_bench.compression.quantities import OutputError
from sipp_bench.methods.observers import AppliedWeights, Look, Observer
from sipp_bench.methods.protocol import Budget, Method, Observation, Selection


@dataclass(frozen=True)
class SvdObservation(Observation):
    """values: by weight name, the singular values of every group's matrix (M, n), falling: (groups, min(M, n))."""

    values: Mapping[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Svd(Method):
    """W-hat_l = the best rank k_l matrix for every layer l: |(W - W-hat) a| <= sigma_(k + 1) |a| for every input a.

    A convolution is the matrix (M, n) over its patches, in each of its groups. k_l (M + n) values are stored for each
    group, or all of W where that is no more. The ranks minimise the largest sigma_(k + 1) / sigma_1 of any layer
    within the budget (claim C23); what is left of it goes on in the same order while a step fits.
    """

    name: ClassVar[str] = "svd"
    changes: ClassVar[tuple[type[Change], ...]] = (Factors, Dense)
    budget: ClassVar[Budget] = "unit"
    claims: ClassVar[tuple[str, ...]] = ("C21",)

    @property
    def needs(self) -> tuple[Observer[Any], ...]:
        return (AppliedWeights(),)

    def observe(self, look: Look) -> SvdObservation:
        """The points only tell which weights the network uses, and in how many groups."""
        applied = look.at(AppliedWeights())
        values = {
            name: torch.linalg.svdvals(weight.double().reshape(applied.groups[name], -1, weight[0].numel()))
            for name, weight in applied.weights.items()
        }
        return SvdObservation({name: weight.abs() for name, weight in applied.weights.items()}, applied.skipped, values)

    def select(
        self, observation: Observation, weights: Mapping[str, Tensor], budget: int, rng: np.random.Generator
    ) -> Selection:
        """The ranks that the budget allows; nothing is drawn."""
        assert isinstance(observation, SvdObservation)
        changes: dict[str, Change] = {}
        bounds: dict[str, Bound] = {}
        ranks = _ranks(observation.values, weights, budget)
        for name, weight in weights.items():
            values, rank = observation.values[name], ranks[name]
            whole = rank == values.shape[1]
            changes[name] = Dense(weight) if whole else Factors.nearest(weight, rank, len(values))
            epsilon = torch.zeros_like(values[:1, 0]) if whole else values[:, rank].amax(0, keepdim=True)
            bounds[name] = Bound("C21", OutputError(), epsilon, inputs="any", useless_at=values[:, 0].max())
        requested = {name: change.numbers() for name, change in changes.items()}
        return Selection(changes, requested, Guarantee(self.claims, 0.0, False, bounds, 0))


def _ranks(values: Mapping[str, Tensor], weights: Mapping[str, Tensor], budget: int) -> dict[str, int]:
    """The rank of each layer: all of its singular values where it stays dense.

    Steps of one rank, in the order of the largest relative error that they take away; a layer whose next step does not
    fit gets no more. Its last step makes it dense.
    """
    ranks, left, open_ = dict.fromkeys(values, 0), budget, set(values)
    relative = {name: (s / s[:, :1].clamp(min=5e-324)).amax(0).tolist() for name, s in values.items()}
    while open_:
        name = max(open_, key=lambda name: relative[name][ranks[name]])  # the first of equals would hang on the hash
        name = min((n for n in open_ if relative[n][ranks[n]] == relative[name][ranks[name]]), key=list(values).index)
        step, following = _step(values[name], weights[name], ranks[name])
        if step > left:
            open_.remove(name)
            continue
        left -= step
        ranks[name] = following
        if following == values[name].shape[1]:
            open_.remove(name)
    return ranks


def _step(values: Tensor, weight: Tensor, rank: int) -> tuple[int, int]:
    """How many values the next rank costs, and which rank that is: all of them where dense takes no more."""
    groups, most = values.shape
    each = weight.numel() // weight[0].numel() + groups * weight[0].numel()  # of one rank in every group
    if (rank + 1) * each >= weight.numel():
        return weight.numel() - rank * each, most
    return each, rank + 1
