"""SiPPMixture (ours): keep the k largest sensitivities of a block, and draw from or drop the rest (claim C13)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sipp_bench.bounds import mixture_epsilon
from sipp_bench.methods.sampling import by_block
from sipp_bench.methods.sipp import Plan, SamplingMethod, SippObservation, ranks
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
            observation, weights, budget, delta, lambda shares: self._mixtures(observation, weights, shares, delta)
        )

    def epsilon(self, rest: Tensor, draws: Tensor, observation: SippObservation) -> Tensor:
        """Claim C13; with no draws it is claim C2."""
        bound: Tensor = mixture_epsilon(rest, draws, self.split_delta(observation))
        return bound

    def _mixtures(
        self, observation: SippObservation, weights: Mapping[str, Tensor], shares: Mapping[str, Tensor], delta: float
    ) -> tuple[float, Plan]:
        cost = 0.0
        kept, distinct = {}, {}
        for name, share in shares.items():
            s, positive = observation.rows(name)
            k, bound = self._best_k(s, positive, share, delta)
            kept[name] = ranks(observation, name, weights[name]) < by_block(k, positive)
            distinct[name] = share - k
            cost += float((observation.block_weights[name] * bound).sum())
        return cost, Plan(kept, distinct)

    @staticmethod
    def _best_k(s: Tensor, positive: Tensor, share: Tensor, delta: float) -> tuple[Tensor, Tensor]:
        """k and its bound for each block: (neurons, 2) each."""
        best_k, best = [], []
        for column, sign in enumerate((positive, ~positive)):
            ordered = torch.where(sign, s.double(), 0.0).sort(dim=1, descending=True).values
            # T_R after keeping k, summed from the small end: no cancellation.
            rest = torch.nn.functional.pad(ordered.flip(1).cumsum(1).flip(1), (0, 1))
            k = torch.arange(rest.shape[1], device=s.device)
            draws = (share[:, column, None] - k).clamp(min=0)
            bounds = mixture_epsilon(rest, draws, delta)
            bounds = torch.where(k <= share[:, column, None], bounds, torch.inf)
            value, index = bounds.min(1)
            # From a rest without mass nothing can be drawn: the whole share is kept.
            massless = rest.gather(1, index[:, None])[:, 0] == 0
            best_k.append(torch.where(massless, share[:, column], index))
            best.append(value)
        return torch.stack(best_k, 1), torch.stack(best, 1)
