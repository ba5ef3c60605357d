"""What a pruned network's method promises about the error of each block (claims C2, C10-C13)."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Guarantee:
    """Bounds on the relative error r = |Zhat - Z| / Z of every block on the points S that the method looked at.

    claims: those of THEORY.md that apply. delta: failure probability of each active (block, x, p, tau) over the
    draws, or of all of them together if `simultaneous` (claim C11); 0 for a method without draws, whose bounds hold
    always. epsilon: by weight name, (neurons, 2) float64, blocks of positive weights in column 0; a value of 1 or
    more says nothing (dropping the block does as well). draws: the same, int64; 0 where nothing is drawn.
    per_patch: False if sensitivities were averaged over patches: C2 then speaks of each activation sign's relative
    error averaged over the patches of a point. void: why the bounds hold no longer (retraining), or None.
    """

    claims: tuple[str, ...]
    delta: float
    simultaneous: bool
    epsilon: Mapping[str, Tensor]
    draws: Mapping[str, Tensor]
    num_points: int
    per_patch: bool = True
    void: str | None = None

    @property
    def deterministic(self) -> bool:
        """Whether no block was drawn: the bounds then hold with certainty on S."""
        return not any(bool(draws.any()) for draws in self.draws.values())

    @property
    def vacuous(self) -> float:
        """Share of the blocks whose bound says nothing (epsilon >= 1)."""
        epsilon = torch.cat([values.flatten() for values in self.epsilon.values()])
        return float((epsilon >= 1).double().mean())

    def statement(self) -> str:
        """The guarantee as a sentence."""
        if self.void:
            return f"No guarantee: {self.void}."
        blocks = sum(values.numel() for values in self.epsilon.values())
        what = "relative error" if self.per_patch else "relative error averaged over the patches of a point"
        if self.deterministic:
            certainty = "always"
        elif self.simultaneous:
            certainty = f"for all of them at once with probability at least {1 - self.delta:g} over the draws"
        else:
            certainty = f"for each with probability at least {1 - self.delta:g} over the draws"
        return (
            f"On the {self.num_points} points looked at, each of the {blocks} blocks has {what} at most its epsilon, "
            f"{certainty} (claim {', '.join(self.claims)}). For {self.vacuous:.1%} of the blocks epsilon is 1 or "
            "more, which says nothing. Nothing is claimed about other points, accuracy, or a retrained network."
        )
