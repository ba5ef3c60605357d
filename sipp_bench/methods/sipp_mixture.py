"""SiPPMixture (ours): keep the k largest sensitivities of a block, and draw from or drop the rest (claim C13)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sipp_bench.bounds import mixture_epsilon
from sipp_bench.methods.sipp import Plan, SamplingMethod, SippObservation
from sipp_bench.methods.splits import better_split


@dataclass(frozen=True, kw_only=True)
class SippMixture(SamplingMethod):
    """For each block and its share m, the k in 0..m with the smallest bound: k kept, m - k drawn from the rest.

    k = m drops the rest (SiPPDet's end), k = 0 draws all (SiPPRand's, with a sharper bound). The split of the budget
    is chosen as in SiPPHybrid.
    """

    name: ClassVar[str] = "sipp-mixture"
    claims: ClassVar[tuple[str, ...]] = ("C13", "C2")

    def plan(self, observation: SippObservation, weights: Mapping[str, Tensor], budget: int) -> Plan:
        """The better split, and in each block the best k."""
        delta = self.split_delta(observation)
        return better_split(
            observation, weights, budget, delta, lambda rest, share, _: self._best_k(rest, share, delta)
        )

    def epsilon(self, rest: Tensor, draws: Tensor, observation: SippObservation) -> Tensor:
        """Claim C13; with no draws it is claim C2."""
        bound: Tensor = mixture_epsilon(rest, draws, self.split_delta(observation))
        return bound

    @staticmethod
    def _best_k(rest: Tensor, share: Tensor, delta: float) -> tuple[Tensor, Tensor]:
        """The k with the smallest bound, and that bound."""
        rest = rest[..., : int(share.max()) + 1]
        k = torch.arange(rest.shape[-1], device=rest.device)
        draws = share[..., None] - k
        bounds = mixture_epsilon(rest, draws.clamp(min=0), delta)
        value, index = bounds.masked_fill_(draws < 0, torch.inf).min(-1)
        # From a rest without mass nothing can be drawn: the whole share is kept.
        massless = rest.gather(-1, index[..., None])[..., 0] == 0
        return torch.where(massless, share, index), value
