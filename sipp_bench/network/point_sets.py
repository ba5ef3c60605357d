"""What points are: the forms that users have them in, what is said about them, and what of them a network gets.

What a network takes is an `Inputs`: one tensor; several, for `model(*inputs)`; or some by name, for `model(**inputs)`.
"""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from sipp_bench.errors import OptionError, PointsError

Inputs: TypeAlias = Tensor | tuple[Tensor, ...] | Mapping[str, Tensor]
Points: TypeAlias = (
    "Tensor | np.ndarray[Any, Any] | tuple[Tensor, ...] | Mapping[str, Any] | Dataset[Any] | DataLoader[Any] | PointSet"
)
# Which positions of the points count: the name of an input, its place, or a function of all inputs of a batch.
Positions: TypeAlias = str | int | Callable[[Any], Tensor]


@dataclass(frozen=True)
class PointSet:
    """Points together with what they do not say of themselves; to be given wherever points are.

    labelled: whether the last of each tuple's tensors is a label, which the network does not get (True), or an input
    as the others (False). None: it is known only where the network's `forward` takes one input; the rest of a tuple is
    then no input, and its second entry the label. The same for a dict's entries "label" and "labels", which are labels
    unless this is False.
    positions: marks, non-zero, the positions (N, L) of N sequences that count, the others being padding: the name of
    such an input (a tokenizer's "attention_mask"), its place in a tuple, or a function that makes it of a batch's
    inputs. None: all count.
    """

    points: Points
    labelled: bool | None = None
    positions: Positions | None = None

    @classmethod
    def of(cls, points: Points, labelled: bool | None = None, positions: Positions | None = None) -> Points:
        """The points as they are where nothing more is said of them."""
        if labelled is None and positions is None:
            return points
        if isinstance(points, PointSet):
            raise OptionError("These points carry labelled and positions already: say either in one place.")
        if labelled is not None and not isinstance(labelled, bool):
            raise OptionError(f"labelled is True, False or None, not {labelled!r}.")
        return cls(points, labelled, positions)

    def counted(self, inputs: Inputs) -> Tensor | None:
        """The positions of a batch that count: (N, L) bool; None for all. Raises PointsError where they can't be."""
        where = self.positions
        if where is None:
            return None
        if callable(where):
            marks = where(inputs)
        else:
            keys: list[Any] = list(inputs) if isinstance(inputs, Mapping) else list(range(len(tensors_of(inputs))))
            if where not in keys:
                raise PointsError(f"positions={where!r} is none of the network's inputs, which are {keys}.")
            marks = tensors_of(inputs)[keys.index(where)]
        if not isinstance(marks, Tensor) or marks.ndim != 2 or len(marks) != batch_length(inputs):
            shape = tuple(marks.shape) if isinstance(marks, Tensor) else type(marks).__name__
            raise PointsError(
                f"positions marks the positions of each of {batch_length(inputs)} points, (N, L); it gave {shape}."
            )
        return marks != 0


def as_point_set(points: Points) -> PointSet:
    """Points with nothing said about them, or what was said."""
    return points if isinstance(points, PointSet) else PointSet(points)


def tensors_of(inputs: Inputs) -> list[Tensor]:
    """The tensors of a batch, in the network's order."""
    if isinstance(inputs, Tensor):
        return [inputs]
    return list(inputs.values()) if isinstance(inputs, Mapping) else list(inputs)


def map_inputs(function: Callable[[Tensor], Tensor], inputs: Inputs) -> Inputs:
    """The same inputs, each tensor replaced by what the function gives for it."""
    if isinstance(inputs, Tensor):
        return function(inputs)
    if isinstance(inputs, Mapping):
        return {name: function(tensor) for name, tensor in inputs.items()}
    return tuple(function(tensor) for tensor in inputs)


def joined(batches: Sequence[Inputs]) -> Inputs:
    """Batches of one form as a single one, rows after rows. Raises torch's RuntimeError where their shapes differ."""
    columns = iter([torch.cat(column) for column in zip(*map(tensors_of, batches), strict=True)])
    return map_inputs(lambda _: next(columns), batches[0])


def batch_length(inputs: Inputs) -> int:
    """Number of points in one batch."""
    first = tensors_of(inputs)[0]
    if first.ndim == 0:
        raise PointsError("The points are a single number: give a tensor (N, ...) with one point in each row.")
    return first.shape[0]


def count_points(points: Points) -> int | None:
    """How many points there are; None where that is not known before they are read."""
    if isinstance(points, PointSet):
        return count_points(points.points)
    if isinstance(points, DataLoader):
        return count_points(points.dataset)
    if isinstance(points, tuple | Mapping):
        return batch_length({name: value for name, value in named_entries(points) if isinstance(value, Tensor)})
    return len(points) if hasattr(points, "__len__") else None


def plain(points: Points) -> "Tensor | Dataset[Any] | DataLoader[Any]":
    """Points without what is said about them, arrays as tensors, several tensors as a Dataset of tuples or dicts."""
    if isinstance(points, PointSet):
        return plain(points.points)
    if isinstance(points, np.ndarray):
        return from_numpy(points)
    if isinstance(points, Tensor | Dataset | DataLoader):
        return points
    if isinstance(points, tuple | Mapping) and len(points):
        columns = {name: from_numpy(v) if isinstance(v, np.ndarray) else v for name, v in named_entries(points)}
        for name, column in columns.items():
            if not isinstance(column, Tensor) or column.ndim == 0:
                raise PointsError(
                    f"Entry {name!r} of the points is no tensor (N, ...) but a {type(column).__name__}: give tensors "
                    "(a tokenizer does with return_tensors='pt')."
                )
        if len({len(column) for column in columns.values()}) > 1:
            rows = ", ".join(f"{name} {len(column)}" for name, column in columns.items())
            raise PointsError(f"The entries of the points have different numbers of rows ({rows}): one for each point.")
        return _Rows(columns) if isinstance(points, Mapping) else TensorDataset(*columns.values())
    raise PointsError(
        f"Points of type {type(points).__name__} are not understood: give a tensor (N, ...), a numpy array, a tuple or "
        "dict of tensors, a torch Dataset or a DataLoader."
    )


class _Rows(Dataset[dict[str, Tensor]]):
    """Tensors by name, row by row."""

    def __init__(self, columns: Mapping[str, Tensor]) -> None:
        self.columns = columns

    def __len__(self) -> int:
        return batch_length(self.columns)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {name: column[index] for name, column in self.columns.items()}


def named_entries(entries: Inputs | tuple[Any, ...] | Mapping[str, Any]) -> list[tuple[str, Any]]:
    """The entries of a batch or of points with their names, or their places."""
    if isinstance(entries, Mapping):
        return list(entries.items())
    return [(str(place), entry) for place, entry in enumerate([entries] if isinstance(entries, Tensor) else entries)]


def from_numpy(points: np.ndarray[Any, Any]) -> Tensor:
    """The array as a tensor; PointsError for what is no numbers."""
    try:
        return torch.from_numpy(np.asarray(points, order="C"))
    except TypeError as error:
        raise PointsError(f"A numpy array of {points.dtype} is no tensor: give numbers, such as float32.") from error


@dataclass(frozen=True)
class Reader:
    """Tells inputs from labels. takes: how many positional inputs the network's forward can take; None: not known."""

    labelled: bool | None
    takes: float | None
    network: str

    @classmethod
    def of(cls, points: Points, model: nn.Module | None) -> "Reader":
        """For these points and this network."""
        labelled = as_point_set(points).labelled
        if model is None:
            return cls(labelled, None, "the network")
        return cls(labelled, _inputs_taken(model), type(model).__name__)

    def separate(self, batch: Any, device: torch.device) -> tuple[Inputs, Tensor | None]:
        """(inputs, labels) of one batch as it came, on `device`."""
        if isinstance(batch, Mapping):
            return self._entries(batch, device)
        label = None
        if isinstance(batch, Sequence) and not isinstance(batch, str) and batch:
            if not isinstance(batch[0], Tensor) and isinstance(batch[0], Mapping | tuple | list):
                # Inputs of their own structure, so that what follows is no input.
                batch, label = batch[0], batch[1] if len(batch) > 1 else None
                if isinstance(batch, Mapping):
                    return self._entries(batch, device)[0], _moved(label, device)
            elif len(batch) > 1 and self.labelled is not False:
                if self.labelled is None and self.takes != 1:
                    raise PointsError(self._undecided(len(batch)))
                inputs = batch[:-1] if self.labelled else batch[:1]
                batch, label = inputs, batch[len(inputs)]
            if len(batch) == 1:
                batch = batch[0]
        tensors = tuple(batch) if isinstance(batch, Sequence) and not isinstance(batch, str) else (batch,)
        for tensor in tensors:
            if not isinstance(tensor, Tensor):
                raise PointsError(
                    f"A batch of points is a {type(tensor).__name__}, not a tensor: let the Dataset give tensors."
                )
        moved = tuple(tensor.to(device) for tensor in tensors)
        return moved[0] if len(moved) == 1 else moved, _moved(label, device)

    def _entries(self, batch: Mapping[str, Any], device: torch.device) -> tuple[Inputs, Tensor | None]:
        for name, value in batch.items():
            text = isinstance(value, str) or (isinstance(value, Sequence) and all(isinstance(v, str) for v in value))
            if not isinstance(value, Tensor) and not text and value is not None:
                raise PointsError(
                    f"Entry {name!r} of a batch of points is a {type(value).__name__}, not a tensor: let the Dataset "
                    "give tensors, or leave it out."
                )
        tensors = {name: value.to(device) for name, value in batch.items() if isinstance(value, Tensor)}
        labels = None
        if self.labelled is not False:
            labels = tensors.pop("labels", tensors.pop("label", None))
        if not tensors:
            raise PointsError("A batch of points is a dict without any tensor in it.")
        return tensors, labels

    def _undecided(self, count: int) -> str:
        able = "could take more than one" if self.takes is None or self.takes > 1 else "takes none by its place"
        return (
            f"Each point is a tuple of {count}, of which the last may be an input or a label: the forward of "
            f"{self.network} {able}. Say labelled=True if it is a label, labelled=False if it is an input."
        )


def _moved(label: Any, device: torch.device) -> Tensor | None:
    return label.to(device) if isinstance(label, Tensor) else None


def _inputs_taken(model: nn.Module) -> float:
    """How many positional arguments the network's forward can take; infinity where it does not say."""
    while True:  # what only wraps a network takes whatever that one does
        inner = getattr(model, "_orig_mod", None)
        if inner is None and isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            inner = model.module
        if not isinstance(inner, nn.Module):
            break
        model = inner
    try:
        parameters = inspect.signature(model.forward).parameters.values()
    except (TypeError, ValueError, AttributeError):
        return math.inf
    if any(parameter.kind is parameter.VAR_POSITIONAL for parameter in parameters):
        return math.inf
    return sum(p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) for p in parameters)
