"""Magnitude pruning: keep the largest |w| (LeCun et al. 1990 and since; Han et al., NeurIPS 2015)."""

from dataclasses import dataclass
from typing import ClassVar

from sipp_bench.methods.observers import AppliedWeights, Look
from sipp_bench.methods.protocol import Observation
from sipp_bench.methods.scores import ScoreMethod


@dataclass(frozen=True, kw_only=True)
class Magnitude(ScoreMethod):
    """score_ij = |w_ij|; over the network (`scope="global"`, the default) or in each layer alone (`"layer"`)."""

    name: ClassVar[str] = "magnitude"

    def observe(self, look: Look) -> Observation:
        """The points only tell which weights the network uses."""
        applied = look.at(AppliedWeights())
        return Observation({name: weight.abs() for name, weight in applied.weights.items()}, applied.skipped)
