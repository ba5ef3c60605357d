"""Random pruning, the control that every method must beat."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from sipp_bench.methods.observers import AppliedWeights, Look
from sipp_bench.methods.protocol import Observation
from sipp_bench.methods.scores import ScoreMethod


@dataclass(frozen=True, kw_only=True)
class Random(ScoreMethod):
    """score_ij uniform on [0, 1), drawn by the seed; an exact count over the network, or in each layer alone."""

    name: ClassVar[str] = "random"

    def observe(self, look: Look) -> Observation:
        """The points only tell which weights the network uses; the scores are drawn when pruning."""
        applied = look.at(AppliedWeights())
        return Observation({name: torch.zeros_like(w) for name, w in applied.weights.items()}, applied.skipped)

    def scores(self, observation: Observation, rng: np.random.Generator) -> Mapping[str, Tensor]:
        """Fresh scores for every call."""
        return {name: torch.from_numpy(rng.random(tuple(s.shape))) for name, s in observation.scores.items()}
