"""Points in memory, which several checks read: whole, in parts and one by one, always in the same batches."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from sipp_bench.errors import PointsError
from sipp_bench.network.point_sets import (
    Inputs,
    Points,
    PointSet,
    Positions,
    as_point_set,
    batch_length,
    joined,
    map_inputs,
    named_entries,
    tensors_of,
)
from sipp_bench.network.points import digest, iterate_batches


@dataclass(frozen=True)
class Held:
    """Points on the CPU, without labels.

    groups: neighbours of equal shapes and dtypes together, as the network takes them; points of different lengths are
    in different groups. positions: which of a sequence's positions count, as in `PointSet`.
    """

    groups: tuple[Inputs, ...]
    positions: Positions | None = None

    @classmethod
    def of(cls, points: "Points | Held", model: nn.Module | None = None) -> "Held":
        """Read the points once; model: the network that they are for.

        Raises what `iterate_batches` raises, and PointsError for rows of different numbers.
        """
        if isinstance(points, Held):
            return points
        positions = as_point_set(points).positions
        if isinstance(points, Tensor):
            return cls((next(iter(iterate_batches(points, max(1, len(points)), torch.device("cpu"))))[0],))
        runs: list[list[Inputs]] = []
        for inputs, _ in iterate_batches(points, 64, torch.device("cpu"), model):
            if len({len(tensor) for tensor in tensors_of(inputs)}) > 1:
                raise PointsError("The tensors of a batch have different numbers of rows: give one row for each point.")
            if runs and _form(runs[-1][0]) == _form(inputs):
                runs[-1].append(inputs)
            else:
                runs.append([inputs])
        return cls(tuple(joined(run) for run in runs), positions)

    def __len__(self) -> int:
        return sum(batch_length(group) for group in self.groups)

    def __getitem__(self, part: slice) -> "Held":
        """Points from `part.start` to `part.stop`."""
        start, stop, _ = part.indices(len(self))
        found = []
        for group in self.groups:
            size = batch_length(group)
            rows = slice(max(start, 0), max(min(stop, size), 0))
            if rows.start < rows.stop:
                found.append(map_inputs(lambda tensor, rows=rows: tensor[rows], group))  # type: ignore[misc]  # bound now
            start, stop = start - size, stop - size
        return Held(tuple(found), self.positions)

    def singles(self) -> Iterator["Held"]:
        """Each point by itself."""
        for i in range(len(self)):
            yield self[i : i + 1]

    def double(self) -> "Held":
        """The same numbers in float64; whole numbers stay."""
        return Held(
            tuple(map_inputs(lambda t: t.double() if t.is_floating_point() else t, group) for group in self.groups),
            self.positions,
        )

    def points(self, batch_size: int) -> Points:
        """As the library takes points: batches of this size, none across groups. A tensor where they are one."""
        if len(self.groups) == 1 and isinstance(self.groups[0], Tensor):
            return PointSet.of(self.groups[0], positions=self.positions)
        batches = []
        for group in self.groups:
            for start in range(0, batch_length(group), batch_size):
                rows = slice(start, start + batch_size)
                batches.append(map_inputs(lambda tensor, rows=rows: tensor[rows], group))  # type: ignore[misc]  # as above
        # Labels are left out already: every tensor is an input.
        loader: DataLoader[Any] = DataLoader(batches, batch_size=None, collate_fn=_as_is)  # type: ignore[arg-type]  # a list has what it needs
        return PointSet(loader, labelled=False, positions=self.positions)

    def digests(self) -> list[str]:
        """Of each point: equal if and only if its numbers are."""
        return [digest(*tensors_of(one.groups[0])) for one in self.singles()]


def _as_is(batch: Any) -> Any:
    return batch


def _form(inputs: Inputs) -> Any:
    kind = "names" if isinstance(inputs, Mapping) else "places"
    return kind, [(name, tensor.dtype, tensor.shape[1:]) for name, tensor in named_entries(inputs)]
