"""What a pruned network's method promises of each weight, in the unit of what it promises (claims C2, C10-C13)."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from sipp_bench.compression.quantities import Quantity

Inputs = Literal["S", "any"]


@dataclass(frozen=True, eq=False)
class Bound:
    """quantity <= epsilon, for one weight.

    claim: the number of the claim that says so. quantity: what is bounded, and in which unit. epsilon: float64, one
    number for each part that the quantity speaks of (a block: (neurons, 2), positive weights in column 0). useless_at:
    what removing the whole weight gives, broadcast to epsilon; a bound at or above it says nothing. inputs: those that
    it holds for, the points "S" that the method looked at, or "any". delta: failure probability of a part whose
    `draws` are above 0; a part without draws is certain. draws: int64, of epsilon's shape; None: no draws anywhere.
    """

    claim: str
    quantity: Quantity
    epsilon: Tensor
    inputs: Inputs = "S"
    useless_at: Tensor | float = 1.0
    delta: float = 0.0
    drawn: Tensor | None = field(default=None)

    @property
    def draws(self) -> Tensor:
        """How many draws each part took, 0 for a part that is certain."""
        return torch.zeros_like(self.epsilon, dtype=torch.int64) if self.drawn is None else self.drawn

    @property
    def certain(self) -> Tensor:
        """Parts whose bound holds always."""
        return self.draws == 0

    @property
    def vacuous(self) -> Tensor:
        """Parts whose bound says nothing: removing everything keeps it as well."""
        return self.epsilon >= self.useless_at


@dataclass
class Guarantee:
    """Bounds by weight name, and what they have in common.

    claims: those that apply, the main one first. delta: failure probability of each active (block, x, p, tau) over the
    draws, or of all of them together if `simultaneous` (claim C11); 0 for a method without draws, whose bounds hold
    always. num_points: points of S. void: why the bounds hold no longer (retraining), or None.
    """

    claims: tuple[str, ...]
    delta: float
    simultaneous: bool
    bounds: Mapping[str, Bound]
    num_points: int
    void: str | None = None

    @property
    def epsilon(self) -> dict[str, Tensor]:
        """By weight name, `Bound.epsilon`."""
        return {name: bound.epsilon for name, bound in self.bounds.items()}

    @property
    def draws(self) -> dict[str, Tensor]:
        """By weight name, `Bound.draws`."""
        return {name: bound.draws for name, bound in self.bounds.items()}

    @property
    def per_patch(self) -> bool:
        """Whether every bound speaks of single patches, and none of averages over the patches of a point."""
        return all(bound.quantity.per_patch for bound in self.bounds.values())

    @property
    def deterministic(self) -> bool:
        """Whether nothing was drawn: the bounds then hold with certainty."""
        return not any(bool(bound.draws.any()) for bound in self.bounds.values())

    @property
    def vacuous(self) -> float:
        """Share of the parts (blocks, layers) whose bound says nothing."""
        return float(torch.cat([bound.vacuous.flatten() for bound in self.bounds.values()]).double().mean())

    def statement(self) -> str:
        """The guarantee as a sentence."""
        if self.void:
            return f"No guarantee: {self.void}."
        parts = sum(bound.epsilon.numel() for bound in self.bounds.values())
        quantity = next(iter(self.bounds.values())).quantity
        if self.deterministic:
            certainty = "always"
        elif self.simultaneous:
            certainty = f"for all of them at once with probability at least {1 - self.delta:g} over the draws"
        else:
            certainty = f"for each with probability at least {1 - self.delta:g} over the draws"
        return (
            f"{self._where()}, each of the {parts} {quantity.unit}s has {quantity.phrase} at most its epsilon, "
            f"{certainty} (claim {', '.join(self.claims)}). For {self.vacuous:.1%} of the {quantity.unit}s epsilon is "
            f"{quantity.useless}, which says nothing. Nothing is claimed about {self._others()}accuracy, or a "
            "retrained network."
        )

    def _where(self) -> str:
        if self._for_any:
            return "For every input"
        return f"On the {self.num_points} points looked at"

    def _others(self) -> str:
        return "" if self._for_any else "other points, "

    @property
    def _for_any(self) -> bool:
        return all(bound.inputs == "any" for bound in self.bounds.values())
