"""SiPPDet: keep the weights of largest sensitivity, drop the rest (claims C2 and C3)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from sipp_bench.methods.sipp import Plan, SippMethod, SippObservation, keep_top
from sipp_bench.methods.splits import without_draws


@dataclass(frozen=True, kw_only=True)
class SippDet(SippMethod):
    """Keeps the `budget` largest c_b s_ij over the network: the minimum of sum_b c_b sum_{P_b} s (claim C3).

    Each block then has relative error at most eps = min(1, sum over its dropped weights of s) on S (claim C2).
    """

    name: ClassVar[str] = "sipp-det"
    claims: ClassVar[tuple[str, ...]] = ("C2",)

    def plan(self, observation: SippObservation, weights: Mapping[str, Tensor], budget: int) -> Plan:
        """The global top of c_b s."""
        return without_draws(keep_top(observation, weights, budget), observation)
