"""SiPPHybrid: in each block the better of dropping and drawing, judged by their bounds (claim C12)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sipp_bench.bounds import bernstein_epsilon
from sipp_bench.methods.sipp import Plan, SamplingMethod, SippObservation
from sipp_bench.methods.splits import better_split


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
            observation, weights, budget, delta, lambda rest, share, live: self._better_branch(rest, share, live, delta)
        )

    @staticmethod
    def _better_branch(rest: Tensor, share: Tensor, live: Tensor, delta: float) -> tuple[Tensor, Tensor]:
        """Keep the whole share and drop the rest, or nothing and draw from all: how many to keep, and the bound."""
        dropping = rest.gather(-1, share[..., None])[..., 0].clamp(max=1)
        # A block with its whole share needs no draw; without a share there is none to make.
        may_draw = (share > 0) & (share < live)
        drawing = torch.where(may_draw, bernstein_epsilon(rest[..., 0], share.clamp(min=1), delta), torch.inf)
        return torch.where(drawing < dropping, 0, share), torch.minimum(dropping, drawing)
