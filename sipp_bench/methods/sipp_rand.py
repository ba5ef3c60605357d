"""SiPPRand: importance sampling by sensitivity, unbiased for every point of S (claims C9 and C10)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sipp_bench.methods.sipp import Plan, SamplingMethod, SippObservation
from sipp_bench.methods.splits import keep_all_live, split_for_draws
from sipp_bench.network.blocks import by_block


@dataclass(frozen=True, kw_only=True)
class SippRand(SamplingMethod):
    """Draws from each block with q_j = s_j / T and reweights: what_j = n_j / (m q_j) w_j.

    The budget is split by claim C5. A block whose share covers all its weights with s > 0 would not get smaller and
    stays as it is, decided before the draw; a block without a share is dropped.
    """

    name: ClassVar[str] = "sipp-rand"
    claims: ClassVar[tuple[str, ...]] = ("C10",)

    def plan(self, observation: SippObservation, weights: Mapping[str, Tensor], budget: int) -> Plan:
        """Dense where the share covers the block, drawn elsewhere."""
        if (everything := keep_all_live(observation, weights, budget)) is not None:
            return everything
        shares = split_for_draws(observation, budget, self.split_delta(observation))
        kept, distinct = {}, {}
        for name, share in shares.items():
            s, positive = observation.rows(name)
            dense = share >= observation.live[name]
            kept[name] = by_block(dense, positive).logical_and_(s > 0)
            distinct[name] = torch.where(dense, 0, share)
        return Plan(kept, distinct)
