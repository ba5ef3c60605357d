"""A data set in four parts, and what pruning and checks may look at of it."""

from dataclasses import dataclass

import torch
from torch import Tensor

from sipp_bench.errors import DataError


@dataclass(frozen=True, eq=False)
class Part:
    """One part of a data set.

    images: float32 (n, channels, height, width), in [0, 1]. labels: int64 (n,). indices: int64 (n,), the
    rows of the raw data that these are. Raises DataError at construction when lengths or types differ from
    that.
    """

    images: Tensor
    labels: Tensor
    indices: Tensor

    def __post_init__(self) -> None:
        n = len(self.images)
        if n == 0 or self.images.ndim != 4 or self.labels.shape != (n,) or self.indices.shape != (n,):
            raise DataError(
                f"A part needs images (n, channels, height, width), n labels and n indices, n > 0; got "
                f"{tuple(self.images.shape)}, {tuple(self.labels.shape)} and {tuple(self.indices.shape)}."
            )
        if (self.images.dtype, self.labels.dtype, self.indices.dtype) != (
            torch.float32,
            torch.int64,
            torch.int64,
        ):
            raise DataError("A part needs float32 images and int64 labels and indices.")

    def __len__(self) -> int:
        return len(self.images)


@dataclass(frozen=True, eq=False)
class DataSet:
    """A data set in four parts without a common row; claims about fresh points depend on that.

    train: what trains the weights. points: the sample S, all that pruning may look at. validation: fresh
    points, on which operating points are chosen. test: what is reported, and nothing else. sha256: of the
    raw images and labels, before the split. seed: of the split. Raises DataError at construction when parts
    overlap, repeat a row or differ in image shape, or when a label has no class.
    """

    name: str
    classes: tuple[str, ...]
    sha256: str
    seed: int
    train: Part
    points: Part
    validation: Part
    test: Part

    def __post_init__(self) -> None:
        parts = (self.train, self.points, self.validation, self.test)
        indices = torch.cat([part.indices for part in parts])
        if len(set(indices.tolist())) != len(indices):
            raise DataError(f"The parts of {self.name} share rows. Split it so that each row is in one part, once.")
        if len({part.images.shape[1:] for part in parts}) != 1:
            raise DataError(f"The parts of {self.name} differ in the shape of an image.")
        labels = torch.cat([part.labels for part in parts])
        if labels.min() < 0 or labels.max() >= len(self.classes):
            raise DataError(f"{self.name} has labels outside 0..{len(self.classes) - 1}, one for each class.")

    def require_points(self, points: Part) -> None:
        """Raise DataError unless every row of `points` is one of the part `points`: S holds no test data."""
        rows, named = self._foreign(points, self.points)
        if rows:
            of_test = len(rows & set(self.test.indices.tolist()))
            raise DataError(
                f"{len(rows)} of the {len(points)} points that pruning would look at are not of the part set apart "
                f"for it in {self.name}, {of_test} of them test data. Draw them from `points`."
            )
        if not named:
            raise DataError(f"Points that pruning would look at are not the images of {self.name} that they name.")

    def require_fresh(self, points: Part) -> None:
        """Raise DataError unless every row of `points` is one of the part `validation`: neither S nor trained on."""
        rows, named = self._foreign(points, self.validation)
        if rows:
            seen, trained = (len(rows & set(part.indices.tolist())) for part in (self.points, self.train))
            raise DataError(
                f"{len(rows)} of the {len(points)} points that are to be fresh are not of the validation part of "
                f"{self.name}: {seen} are set apart for pruning to look at, and the network was trained on {trained}. "
                "Draw them from `validation`."
            )
        if not named:
            raise DataError(f"Points that are to be fresh are not the images of {self.name} that they name.")

    @staticmethod
    def _foreign(points: Part, part: Part) -> tuple[set[int], bool]:
        """The rows of `points` that are none of `part`; and, without any, whether the images and labels are those."""
        own = {row: position for position, row in enumerate(part.indices.tolist())}
        rows = points.indices.tolist()
        if foreign := set(rows) - own.keys():
            return foreign, False
        where = torch.tensor([own[row] for row in rows])
        same = torch.equal(points.images, part.images[where]) and torch.equal(points.labels, part.labels[where])
        return foreign, same

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of one image."""
        _, channels, height, width = self.train.images.shape
        return channels, height, width
