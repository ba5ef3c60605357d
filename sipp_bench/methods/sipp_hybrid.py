"""SiPPHybrid: in each block the better of dropping and drawing, judged by their bounds (claim C12)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sipp_bench.bounds import bernstein_epsilon
from sipp_bench.methods.sampling import by_block
from sipp_bench.methods.sipp import Plan, SamplingMethod, SippObservation, ranks
from sipp_bench.methods.splits import better_split
from sipp_bench.sensitivity import block_sums


@dataclass(frozen=True, kw_only=True)
class SippHybrid(SamplingMethod):
    """Compares min(1, sum_P s) with eps(m) for each block and runs the smaller one's branch; its own bound holds.

    Both depend on s alone. The budget is split once as for dropping (claim C3) and once as for drawing (claim C5);
    the split with the smaller weighted sum of bounds is used.
    """

    name: ClassVar[str] = "sipp-hybrid"
    claims: ClassVar[tuple[str, ...]] = ("C12", "C2", "C10")

    def plan(self, observation: SippObservation, weights: Mapping[str, Tensor], budget: int) -> Plan:
        """The better split, and in each block the better branch."""
        delta = self.split_delta(observation)
        return better_split(
            observation, weights, budget, delta, lambda shares: self._branches(observation, weights, shares, delta)
        )

    @staticmethod
    def _branches(
        observation: SippObservation, weights: Mapping[str, Tensor], shares: Mapping[str, Tensor], delta: float
    ) -> tuple[float, Plan]:
        """The weighted sum of bounds, and the plan, for one split."""
        cost = 0.0
        kept, distinct = {}, {}
        for name, share in shares.items():
            s, positive = observation.rows(name)
            top = ranks(observation, name, weights[name]) < by_block(share, positive)
            dropping = block_sums(torch.where(top, 0.0, s.double()), positive).clamp(max=1)
            totals = observation.sensitivity[name].totals
            # A block with its whole share needs no draw; without a share there is none to make.
            may_draw = (share > 0) & (share < observation.live(name))
            drawing = torch.where(may_draw, bernstein_epsilon(totals, share.clamp(min=1), delta), torch.inf)
            draw = drawing < dropping
            kept[name] = top & ~by_block(draw, positive)
            distinct[name] = torch.where(draw, share, 0)
            cost += float((observation.block_weights[name] * torch.minimum(dropping, drawing)).sum())
        return cost, Plan(kept, distinct)
