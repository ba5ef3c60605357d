"""The same batches for every pass over the points and for every rank, each of them on one rank only.

Batches, not points, are what ranks share out: a batch then has the same numbers in it wherever it is processed, and
gives the same sensitivities to the last bit.
"""

import hashlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset

from sipp_bench.errors import PointsError, require_counts
from sipp_bench.network.point_sets import (
    Inputs,
    Points,
    PointSet,
    Reader,
    as_point_set,
    batch_length,
    plain,
    tensors_of,
)
from sipp_bench.network.points import check_finite, digest, iterate_batches, raw_batches
from sipp_bench.sensitivity.ranks import Ranks

_CHANGED = (
    "The points of the second pass are not those of the first, so that the layers would be measured on different "
    "points (the network takes several passes, for lack of memory). Give points that are the same each time they are "
    "read: a tensor, or a Dataset without random augmentation; or give more memory."
)
_OTHERS = (
    "Rank {rank} has other points than rank 0. Give every rank the same points, all of them, without a "
    "DistributedSampler or a random choice or augmentation of its own: the ranks share them out themselves."
)


@dataclass
class Batches:
    """What one rank looks at, as often as it likes.

    order: for points that are read by index, the indices in every batch, drawn once: a sampler that shuffles would
    give each pass and each rank other points. None for a tensor, and for a stream (an IterableDataset, or a DataLoader
    that is no plain one), which every rank reads as a whole. checked: whether passes are compared with the first one,
    by a digest of each batch that was read (`seen`).
    """

    given: PointSet
    model: nn.Module
    batch_size: int
    device: torch.device
    ranks: Ranks = field(default_factory=Ranks)
    order: Sequence[list[Any]] | None = None
    checked: bool = False
    seen: list[str] = field(default_factory=list)

    @property
    def points(self) -> "Tensor | Dataset[Any] | DataLoader[Any]":
        """The points themselves, each time the same object."""
        points = self.given.points
        assert isinstance(points, Tensor | Dataset | DataLoader)
        return points

    def counted(self, inputs: Inputs) -> Tensor | None:
        """Which positions of a batch count, see `PointSet`."""
        return self.given.counted(inputs)

    @classmethod
    def once(cls, points: Points, model: nn.Module, batch_size: int, device: torch.device) -> "Batches":
        """For one pass, by points that may be readable only once."""
        given = as_point_set(points)
        return cls(replace(given, points=plain(points)), model, batch_size, device)

    @classmethod
    def repeatable(
        cls, points: Points, model: nn.Module, batch_size: int, device: torch.device, ranks: Ranks
    ) -> "Batches":
        """For several passes or ranks; a DataLoader's sampler is read to its end here, and not again."""
        require_counts(batch_size=batch_size)
        order = None
        given, points = as_point_set(points), plain(points)
        if isinstance(points, Dataset):
            points = DataLoader(points, batch_size=batch_size, shuffle=False, generator=torch.Generator())
        # A subclass may do anything in its own __iter__; without batches of its own a loader's items may have any size.
        stream = isinstance(points, DataLoader) and isinstance(points.dataset, IterableDataset)
        if type(points) is DataLoader and points.batch_sampler is not None and not stream:
            order = [list(batch) for batch in points.batch_sampler]
        return cls(replace(given, points=points), model, batch_size, device, ranks, order, checked=True)

    @property
    def _reader(self) -> Reader:
        return Reader.of(self.given, self.model)

    def __iter__(self) -> Iterator[Inputs]:
        """This rank's batches, on the device; maybe none, if there are other ranks.

        Raises what `iterate_batches` does, and PointsError from the second time on, if they are not the first time's.
        """
        if not self.checked:
            yield from (inputs for inputs, _ in iterate_batches(self.given, self.batch_size, self.device, self.model))
            return
        known, read = tuple(self.seen), 0
        for number, start, batch in self._numbered():
            inputs, _ = self._reader.separate(batch, self.device)
            found = digest(*tensors_of(inputs))
            if not known:
                self.seen.append(found)
            elif read >= len(known) or known[read] != found:
                raise PointsError(_CHANGED)
            read += 1
            if number % self.ranks.size == self.ranks.rank and batch_length(inputs):
                check_finite(inputs, start)
                yield inputs
        if read < len(known):
            raise PointsError(_CHANGED)

    def _numbered(self) -> Iterator[tuple[int, int, Any]]:
        """What this rank reads: each batch after its number among those of all ranks and that of its first point."""
        share = slice(self.ranks.rank, None, self.ranks.size)
        if self.order is not None:
            starts = [0, *itertools.accumulate(len(batch) for batch in self.order)]
            numbers = range(len(self.order))[share]
            for number, batch in zip(numbers, self._loader(self.order[share]), strict=True):
                yield number, starts[number], batch
            return
        start = 0
        for number, batch in enumerate(raw_batches(self.points, self.batch_size)):
            if not isinstance(self.points, Tensor) or number % self.ranks.size == self.ranks.rank:
                yield number, start, batch
            start += batch_length(self._reader.separate(batch, torch.device("cpu"))[0])

    def _loader(self, order: Sequence[list[Any]], workers: int | None = None) -> DataLoader[Any]:
        """The same DataLoader with these indices in its batches."""
        loader = self.points
        assert isinstance(loader, DataLoader)
        workers = loader.num_workers if workers is None else workers
        return DataLoader(
            loader.dataset,
            batch_sampler=order,
            num_workers=workers,
            collate_fn=loader.collate_fn,
            pin_memory=loader.pin_memory,
            timeout=loader.timeout if workers else 0,
            worker_init_fn=loader.worker_init_fn,
            multiprocessing_context=loader.multiprocessing_context if workers else None,
            generator=torch.Generator(),
            prefetch_factor=loader.prefetch_factor if workers else None,
        )

    def describe(self) -> dict[str, Any]:
        """What tells whether the ranks' points are the same: of a tensor all of it, of a Dataset its first and last
        point and every index. A stream is compared when it has been read (`seen`).
        """
        if isinstance(self.points, Tensor):
            return {"points": digest(self.points)}
        if self.order is None:
            return {"points": "a stream"}
        indices = sorted(index for batch in self.order for index in batch)
        ends = self._loader([[indices[0]], [indices[-1]]] if indices else [], workers=0)
        return {
            "points": [digest(*tensors_of(self._reader.separate(batch, torch.device("cpu"))[0])) for batch in ends],
            "indices": _hashed(indices),
            "lengths": _hashed([len(batch) for batch in self.order]),
            "order": _hashed(self.order),
        }

    def streamed(self) -> list[str] | None:
        """Digests of all batches of a stream, once it has been read; None for other points."""
        return None if isinstance(self.points, Tensor) or self.order is not None else self.seen

    def compare_streams(self, told: Sequence[list[str] | None]) -> None:
        """Raise PointsError unless all ranks read the same streams (`streamed`)."""
        for rank, stream in enumerate(told):
            if stream != told[0]:
                raise PointsError(_OTHERS.format(rank=rank))

    def agree(self, told: Sequence[Mapping[str, Any]]) -> None:
        """Take the same batches as all other ranks; PointsError unless their points, as they tell, are the same.

        Where a sampler shuffled on each rank for itself, all take the points in ascending order of the indices.
        """
        for rank, other in enumerate(told):
            if any(other.get(what) != told[0].get(what) for what in ("points", "indices", "lengths")):
                raise PointsError(_OTHERS.format(rank=rank))
        if self.order is not None and any(other["order"] != told[0]["order"] for other in told):
            indices = iter(sorted(index for batch in self.order for index in batch))
            self.order = [list(itertools.islice(indices, len(batch))) for batch in self.order]


def _hashed(value: Any) -> str:
    return hashlib.sha256(repr(value).encode()).hexdigest()
