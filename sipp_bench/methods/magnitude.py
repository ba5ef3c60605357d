"""Magnitude pruning: keep the largest |w| (LeCun et al. 1990 and since; Han et al., NeurIPS 2015)."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from sipp_bench.methods.protocol import Observation, prunable_weights
from sipp_bench.methods.scores import ScoreMethod
from sipp_bench.network.points import Points


@dataclass(frozen=True, kw_only=True)
class Magnitude(ScoreMethod):
    """score_ij = |w_ij|; over the network (`scope="global"`, the default) or in each layer alone (`"layer"`)."""

    name: ClassVar[str] = "magnitude"

    def observe(self, model: nn.Module, points: Points, labels: Tensor | None, batch_size: int) -> Observation:
        """The points only tell which weights the network uses."""
        weights, skipped = prunable_weights(model, points, batch_size)
        return Observation({name: weight.abs() for name, weight in weights.items()}, skipped)
