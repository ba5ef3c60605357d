"""What became of one weight: `Dense | Masked | Channels | Factors`.

A change holds W-hat, the weight that the pruned network has now, in the original shape: claims and the network need no
more. How W-hat is stored decides what a budget counts (`numbers`), what it costs (`multiply_adds`, `encodings`), and
which weights an optimizer step must be brought back to (`hold`).
"""

import functools
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sipp_bench.errors import OptionError

ALL = slice(None)


@dataclass(frozen=True, eq=False)
class Change(ABC):
    """What became of one weight W (neurons, ...). weight: W-hat, of W's shape, dtype and device."""

    weight: Tensor

    def effective(self) -> Tensor:
        """W-hat in the shape of W: what the pruned network computes with."""
        return self.weight

    @property
    @abstractmethod
    def mask(self) -> Tensor:
        """bool, of W's shape: False where W-hat is 0 by its form, whatever its values are."""

    @abstractmethod
    def numbers(self) -> int:
        """How many values have to be stored; what `keep` counts."""

    @abstractmethod
    def multiply_adds(self, patches: int, rows: slice = ALL) -> int:
        """Multiply-adds of some output rows over so many patches, by kernels that skip what is not stored for free."""

    @abstractmethod
    def encodings(self) -> Mapping[str, Mapping[str, Tensor]]:
        """By encoding ("dense", "csr", "bitmap"), the tensors by which a file holds it; on the CPU."""

    @abstractmethod
    def hold(self, weight: Tensor) -> None:
        """Bring `weight`, after an optimizer step, to the nearest weight of this form, in place."""

    @abstractmethod
    def on(self, weight: Tensor) -> "Change":
        """The same form at the values of another weight of W's shape, which it takes over and holds."""


@dataclass(frozen=True, eq=False)
class Dense(Change):
    """W as it was: every value is stored."""

    @property
    def mask(self) -> Tensor:
        return torch.ones_like(self.weight, dtype=torch.bool)

    def numbers(self) -> int:
        return self.weight.numel()

    def multiply_adds(self, patches: int, rows: slice = ALL) -> int:
        return patches * self.weight[rows].numel()

    def encodings(self) -> Mapping[str, Mapping[str, Tensor]]:
        stored = {"": self.weight.detach().cpu()}
        return dict.fromkeys(("dense", "csr", "bitmap"), stored)

    def hold(self, weight: Tensor) -> None:
        return None

    def on(self, weight: Tensor) -> "Dense":
        return Dense(weight)


@dataclass(frozen=True, eq=False)
class Masked(Change):
    """Single weights that are 0, the others stored. mask: bool, False where W-hat is held at 0.

    dense: every number, zeros too. csr: the compressed sparse rows of the (rows, rest) matrix: `values`, their int32
    `columns`, and rows + 1 int32 `offsets`. bitmap: `values`, and one bit a weight, `bits`.
    """

    kept: Tensor

    @classmethod
    def of(cls, weight: Tensor) -> "Masked":
        """The change that stores every non-zero value of a pruned weight."""
        return cls(weight, weight != 0)

    @property
    def mask(self) -> Tensor:
        return self.kept

    def numbers(self) -> int:
        # torch sums bools over a copy of eight bytes each; counting makes none.
        return int(torch.count_nonzero(self.kept))

    def multiply_adds(self, patches: int, rows: slice = ALL) -> int:
        return patches * int(torch.count_nonzero(self.kept[rows]))

    def encodings(self) -> Mapping[str, Mapping[str, Tensor]]:
        weight, kept = self.weight.detach().cpu(), self.kept.cpu()
        rows = kept.flatten(1)
        values = weight[kept]
        offsets = torch.cat([torch.zeros(1, dtype=torch.int64), rows.sum(1).cumsum(0)])
        return {
            "dense": {"": weight},
            "csr": {
                "values": values,
                "columns": rows.nonzero()[:, 1].to(torch.int32),
                "offsets": offsets.to(torch.int32),
            },
            "bitmap": {"values": values, "bits": torch.from_numpy(np.packbits(kept.numpy()))},
        }

    def hold(self, weight: Tensor) -> None:
        weight.mul_(self.kept.to(weight.device))

    def on(self, weight: Tensor) -> "Masked":
        self.hold(weight)
        return Masked(weight, self.kept)


@dataclass(frozen=True, eq=False)
class Channels(Change):
    """Whole output rows and input channels removed, the rest one smaller dense weight in each group.

    rows: (neurons,) bool; columns: (groups, input channels of a group) bool. A removed row's output is never read, a
    removed channel is never read by its group: W-hat is 0 there.
    """

    rows: Tensor
    columns: Tensor

    def __post_init__(self) -> None:
        rows, inputs = self.weight.shape[:2]
        groups = len(self.columns)
        if self.rows.shape != (rows,) or self.columns.shape != (groups, inputs) or rows % max(groups, 1):
            raise OptionError(
                f"Channels of a weight {tuple(self.weight.shape)} are {rows} rows and {inputs} columns of each group, "
                f"not {tuple(self.rows.shape)} and {tuple(self.columns.shape)}."
            )

    @functools.cached_property
    def mask(self) -> Tensor:
        kept = self.rows[:, None] & self.columns.repeat_interleave(len(self.rows) // len(self.columns), 0)
        return kept.reshape(*kept.shape, *[1] * (self.weight.ndim - 2)).expand(self.weight.shape)

    def numbers(self) -> int:
        return self.multiply_adds(1)

    def multiply_adds(self, patches: int, rows: slice = ALL) -> int:
        return patches * int(torch.count_nonzero(self.mask[rows]))

    def encodings(self) -> Mapping[str, Mapping[str, Tensor]]:
        stored = {"": self.weight.detach()[self.mask].cpu()}
        return dict.fromkeys(("dense", "csr", "bitmap"), stored)

    def hold(self, weight: Tensor) -> None:
        weight.mul_(self.mask.to(weight.device))

    def on(self, weight: Tensor) -> "Channels":
        self.hold(weight)
        return Channels(weight, self.rows, self.columns)


@dataclass(frozen=True, eq=False)
class Factors(Change):
    """W-hat = left @ right as (groups, M, n) matrices, left (groups, M, k) and right (groups, k, n)."""

    left: Tensor
    right: Tensor

    @classmethod
    def nearest(cls, weight: Tensor, rank: int, groups: int = 1) -> "Factors":
        """The best factors of rank k for each group in every unitarily invariant norm (Eckart, Young, Mirsky)."""
        rows = weight.detach().reshape(groups, weight.shape[0] // groups, -1)
        u, s, vh = torch.linalg.svd(rows.double(), full_matrices=False)
        left = (u[..., :rank] * s[..., None, :rank]).to(weight.dtype)
        right = vh[..., :rank, :].to(weight.dtype)
        return cls((left.double() @ right.double()).to(weight.dtype).reshape(weight.shape), left, right)

    @property
    def rank(self) -> int:
        return self.left.shape[-1]

    @property
    def mask(self) -> Tensor:
        if not self.rank:
            return torch.zeros_like(self.weight, dtype=torch.bool)
        return torch.ones_like(self.weight, dtype=torch.bool)

    def numbers(self) -> int:
        return self.left.numel() + self.right.numel()

    def multiply_adds(self, patches: int, rows: slice = ALL) -> int:
        left = self.left.reshape(-1, self.rank)[rows]
        return patches * (left.numel() + self.right.numel())

    def encodings(self) -> Mapping[str, Mapping[str, Tensor]]:
        stored = {"left": self.left.detach().cpu(), "right": self.right.detach().cpu()}
        return dict.fromkeys(("dense", "csr", "bitmap"), stored)

    def hold(self, weight: Tensor) -> None:
        weight.copy_(Factors.nearest(weight, self.rank, self.left.shape[0]).weight)

    def on(self, weight: Tensor) -> "Factors":
        near = Factors.nearest(weight, self.rank, self.left.shape[0])
        weight.copy_(near.weight)
        return Factors(weight, near.left, near.right)
