"""What a promise speaks of, and in which unit: how it is measured, call by call, and the room for rounding.

A quantity is measured on the inputs that the dense network gives a layer, whatever the layers before it became.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from sipp_bench.compression.rounding import error_rounding, sensitivity_rounding, sensitivity_underflow, unit
from sipp_bench.errors import ModelError
from sipp_bench.network.blocks import (
    activation_signs,
    block_magnitudes,
    by_group,
    columns,
    full_precision,
    quadrant_sums,
)
from sipp_bench.network.patches import patch_chunks
from sipp_bench.network.tracing import Call

# Numbers in one chunk: arrays of a few MiB stay in the cache, and are not given back to the system each time.
CHUNK = 1 << 19


@dataclass(frozen=True)
class Measured:
    """A quantity of one weight over some points, in the shape of its bound, float64.

    largest: the quantity, over all points and patches (0 where it never applied). exceeding: int64, how many times it
    was above the limit given; active: how many times it applied.
    """

    largest: Tensor
    exceeding: Tensor
    active: Tensor


class Meter(Protocol):
    """Measures a quantity of one weight over the calls of a network."""

    def add(self, call: Call) -> None:
        """Fold in one application of the dense weight."""

    def result(self) -> Measured:
        """What was found so far."""


class Quantity(ABC):
    """What is bounded of one weight.

    unit: "block", "layer", ...: the parts that a bound has numbers for. phrase, useless: for sentences, what is at most
    epsilon, and what an epsilon that says nothing is. per_patch: whether it is about single patches.
    """

    unit: ClassVar[str]
    per_patch: bool = True

    @property
    @abstractmethod
    def phrase(self) -> str:
        """What is at most epsilon."""

    @property
    @abstractmethod
    def useless(self) -> str:
        """What an epsilon that says nothing is."""

    @abstractmethod
    def name(self, place: tuple[int, ...]) -> str:
        """The part at this place of the bound, in words."""

    @abstractmethod
    def meter(self, pruned: Tensor, limit: Tensor) -> Meter:
        """For the pruned weight W-hat; limit: in the bound's shape, for `exceeding`."""

    @abstractmethod
    def limit(self, epsilon: Tensor, drawn: Tensor, weight: Tensor) -> Tensor:
        """epsilon and the room that rounding needs. drawn: parts with reweighted weights; weight: W."""


@dataclass(frozen=True)
class BlockError(Quantity):
    """r = |Zhat - Z| / Z of a block: (neurons, 2), positive weights in column 0; the largest over S, patches and tau.

    per_patch False: the largest over points and tau of the mean of r over a point's patches (the authors' reading).
    A block whose Z is 0 has error 0 if its pruned sum is 0 too, which pruning that keeps signs or zeros ensures.
    """

    unit: ClassVar[str] = "block"
    per_patch: bool = True

    @property
    def phrase(self) -> str:
        return "relative error" if self.per_patch else "relative error averaged over the patches of a point"

    @property
    def useless(self) -> str:
        return "1 or more"

    def name(self, place: tuple[int, ...]) -> str:
        return f"the block of neuron {place[0]}'s {('positive', 'negative')[place[1]]} weights"

    def meter(self, pruned: Tensor, limit: Tensor) -> "BlockMeter":
        return BlockMeter(pruned, limit, self.per_patch)

    def limit(self, epsilon: Tensor, drawn: Tensor, weight: Tensor) -> Tensor:
        return epsilon + self.room(epsilon, drawn, weight[0].numel(), weight.dtype)

    @staticmethod
    def room(epsilon: Tensor, drawn: Tensor, n: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """What rounding may add to epsilon: that of the sensitivities behind it, and of r itself, measured in float64.

        n: weights of a neuron. A drawn weight is stored in the network's own `dtype`, bfloat16 say, which moves Zhat by
        up to a unit roundoff of it, relative to Zhat <= (1 + epsilon) Z; one that is kept or dropped is stored exactly.
        """
        kind = torch.float64 if dtype == torch.float64 else torch.float32
        stored = unit(dtype) * drawn.double()
        finite = epsilon.clamp(max=torch.finfo(torch.float64).max / 4)
        return (
            finite * sensitivity_rounding(n, kind)
            + (1 + finite) * (stored + error_rounding(n))
            + n * sensitivity_underflow(kind)
        )


class BlockMeter:
    """Of `BlockError`."""

    def __init__(self, pruned: Tensor, limit: Tensor, per_patch: bool = True) -> None:
        self.pruned, self.limits, self.per_patch = pruned, limit.double(), per_patch
        shape = (pruned.shape[0], 2)
        self.largest = torch.zeros(shape, dtype=torch.float64, device=pruned.device)
        self.exceeding = torch.zeros(shape, dtype=torch.int64, device=pruned.device)
        self.active = torch.zeros_like(self.exceeding)

    def add(self, call: Call) -> None:
        """See `Meter`. Raises ModelError for a weight that changed its sign, of which r does not speak."""
        weight, pruned = call.weight.double(), self.pruned[call.rows].double()
        if bool(((pruned != 0) & (pruned.sign() != weight.sign())).any()):
            raise ModelError(f"{call.name!r} changed the sign of a weight: relative block errors speak of kept signs.")
        groups, neurons = call.groups, weight.shape[0] // call.groups
        dense, other = block_magnitudes(weight, groups), block_magnitudes(pruned, groups)
        per_point = 1 if call.geometry is None else call.count_patches() // len(call.input)
        limits = by_group(self.limits[call.rows], groups)[:, None]
        with full_precision(weight.device):
            for patches in patch_chunks(call.input, call.weight, call.geometry, CHUNK):
                for a in activation_signs(patches.double()):
                    z, r = quadrant_sums(a, dense), quadrant_sums(a, other)
                    active = z > 0
                    # In place: these are the largest arrays of a run's checks. Where Z is 0, Zhat is too.
                    r.sub_(z).abs_().div_(z.masked_fill_(~active, 1))
                    averaged = not self.per_patch and per_point > 1
                    found = r.reshape(groups, -1, per_point, 2 * neurons).mean(2) if averaged else r
                    largest = columns(found.amax(1), neurons)
                    self.largest[call.rows] = torch.maximum(self.largest[call.rows], largest)
                    self.exceeding[call.rows] += columns((r > limits.to(r.device)).sum(1), neurons)
                    self.active[call.rows] += columns(active.sum(1), neurons)

    def result(self) -> Measured:
        """See `Meter`."""
        return Measured(self.largest, self.exceeding, self.active)


@dataclass(frozen=True)
class OutputError(Quantity):
    """|(W - W-hat) a| / |a| of a layer, Euclidean norms over all its groups, the largest over patches: (1,).

    Its supremum over every a is the spectral norm of W - W-hat, the largest of its groups'. A patch that is 0 has
    error 0.
    """

    unit: ClassVar[str] = "layer"

    @property
    def phrase(self) -> str:
        return "an output whose distance from the dense one, relative to the norm of its input, is"

    @property
    def useless(self) -> str:
        return "no smaller than removing the layer gives"

    def name(self, place: tuple[int, ...]) -> str:
        return "its output"

    def meter(self, pruned: Tensor, limit: Tensor) -> "OutputMeter":
        return OutputMeter(pruned, limit)

    def limit(self, epsilon: Tensor, drawn: Tensor, weight: Tensor) -> Tensor:
        """epsilon, and what storing factors in W's dtype, and singular values and errors in float64, may add.

        With |left| |right| <= |W| and one of the two orthonormal, storing left, right and their product moves W-hat by
        at most u (2 + sqrt(k)) |W|_F in Frobenius' norm, u the unit roundoff of W's dtype and k <= min(M, n) the rank;
        sums of n and of M terms in float64 by (M + n + 8) of its own.
        """
        rows, n = weight.shape[0], weight[0].numel()
        roundings = (2 + min(rows, n) ** 0.5) * unit(weight.dtype) + (rows + n + 8) * unit(torch.float64)
        size: Tensor = torch.linalg.vector_norm(weight.detach().double())
        limit: Tensor = epsilon + roundings * size.to(epsilon.device)
        return limit


class OutputMeter:
    """Of `OutputError`."""

    def __init__(self, pruned: Tensor, limit: Tensor) -> None:
        self.pruned, self.bar = pruned, limit.double()
        self.largest = torch.zeros(1, dtype=torch.float64, device=pruned.device)
        self.exceeding = torch.zeros(1, dtype=torch.int64, device=pruned.device)
        self.active = torch.zeros_like(self.exceeding)

    def add(self, call: Call) -> None:
        """See `Meter`."""
        lost = (call.weight.double() - self.pruned[call.rows].double()).reshape(call.groups, -1, call.weight[0].numel())
        with full_precision(lost.device):
            for patches in patch_chunks(call.input, call.weight, call.geometry, CHUNK):
                a = patches.double()
                size = a.norm(dim=(0, 2))
                error = torch.bmm(a, lost.transpose(1, 2)).norm(dim=(0, 2)) / size.masked_fill(size == 0, 1)
                if error.numel():
                    self.largest = torch.maximum(self.largest, error.max())
                self.exceeding += (error > self.bar.to(error.device)).sum()
                self.active += (size > 0).sum()

    def result(self) -> Measured:
        """See `Meter`."""
        return Measured(self.largest, self.exceeding, self.active)
