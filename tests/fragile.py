"""A pruning method that misbehaves when told to; in a module of its own, so that workers can import it."""

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from torch import Tensor

import sipp_bench as sb
from sipp_bench.methods import Observation, Selection
from sipp_bench.methods.magnitude import Magnitude
from sipp_bench.methods.observers import Look, Observer


@dataclass(frozen=True, kw_only=True)
class Fragile(sb.methods.Method):
    """Magnitude pruning that raises below a budget, and once, while there is no file `marker`, stalls.

    Before it stalls it writes its process id to `marker`.
    """

    name: ClassVar[str] = "fragile"
    marker: str
    raise_below: int

    @property
    def needs(self) -> tuple[Observer[Any], ...]:
        return Magnitude().needs

    def observe(self, look: Look) -> Observation:
        return Magnitude().observe(look)

    def select(
        self, observation: Observation, weights: Mapping[str, Tensor], budget: int, rng: np.random.Generator
    ) -> Selection:
        marker = Path(self.marker)
        if budget < self.raise_below:
            raise RuntimeError(f"budget {budget} is too small")
        if not marker.exists():
            draft = marker.with_suffix(".draft")
            draft.write_text(str(os.getpid()))
            draft.rename(marker)
            time.sleep(600)
        return Magnitude().select(observation, weights, budget, rng)


def register() -> None:
    """Not by the import alone: every test of all methods would get this one too."""
    sb.register_method("fragile", Fragile)
