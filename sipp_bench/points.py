"""Points in whatever form the user has them, out as batches on one device."""

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, SequentialSampler

from sipp_bench.errors import OptionError, PointsError, SippBenchError, require_counts

Points: TypeAlias = "Tensor | np.ndarray[Any, Any] | Dataset[Any] | DataLoader[Any]"
Inputs: TypeAlias = "Tensor | Mapping[str, Tensor]"

NO_POINTS = "There are no points: give at least one, as a tensor (N, ...), a Dataset or a DataLoader."


def iterate_batches(points: Points, batch_size: int, device: torch.device) -> Iterator[tuple[Inputs, Tensor | None]]:
    """Yield (inputs, labels) batches on `device`; labels are None where the points carry none.

    points: Tensor or array (N, ...); a Dataset whose items are inputs, (inputs, label, ...) or dicts; or a DataLoader,
    whose own batch size is kept. A dict goes to the network as keyword arguments, without "label" and "labels".
    Raises PointsError for no points at all, or points with NaN or infinity; OptionError for a batch size below 1.
    """
    require_counts(batch_size=batch_size)
    count = 0
    for batch in raw_batches(points, batch_size):
        inputs, labels = separate(batch, device)
        size = batch_length(inputs)
        check_finite(inputs, count)
        count += size
        if size:
            yield inputs, labels
    if count == 0:
        raise PointsError(NO_POINTS)


def batch_length(inputs: Inputs) -> int:
    """Number of points in one batch."""
    first = inputs if isinstance(inputs, Tensor) else next(iter(inputs.values()))
    if first.ndim == 0:
        raise PointsError("The points are a single number: give a tensor (N, ...) with one point in each row.")
    return first.shape[0]


def call_model(model: nn.Module, inputs: Inputs) -> Any:
    """The network's output; what the network itself refuses becomes a PointsError that names the shapes."""
    try:
        return model(inputs) if isinstance(inputs, Tensor) else model(**inputs)
    except (RuntimeError, ValueError, TypeError, IndexError, AssertionError) as error:
        if isinstance(error, torch.OutOfMemoryError | SippBenchError):
            raise
        shapes = tuple(inputs.shape) if isinstance(inputs, Tensor) else {k: tuple(v.shape) for k, v in inputs.items()}
        reason = str(error).strip().splitlines()
        raise PointsError(
            f"The network {type(model).__name__} cannot process a batch of points of shape {shapes}: "
            f"{reason[0] if reason else type(error).__name__}. "
            "Check that the points have the shape and dtype that the network expects."
        ) from error


def usable_device(device: torch.device | str) -> torch.device:
    """The device of that name. Raises OptionError when there is none, or torch cannot use it."""
    try:
        found = torch.device(device)
        torch.empty(1, device=found)
    except (RuntimeError, AssertionError, TypeError) as error:
        reason = str(error).strip().splitlines()[0].rstrip(".")
        raise OptionError(
            f"The device {device!r} cannot be used: {reason}. Name one that torch has, such as 'cpu'."
        ) from error
    return found


def shuffles(points: object) -> bool:
    """Whether a DataLoader gives its Dataset's rows in another order than theirs, as far as its samplers tell."""
    if not isinstance(points, DataLoader) or isinstance(points.dataset, IterableDataset):
        return False
    sampler = points.sampler if points.batch_sampler is None else getattr(points.batch_sampler, "sampler", None)
    return not isinstance(sampler, SequentialSampler)


def model_device(model: nn.Module) -> torch.device:
    """Device of the first parameter or buffer; the CPU for a network without either."""
    for tensor in (*model.parameters(), *model.buffers()):
        return tensor.device
    return torch.device("cpu")


def raw_batches(points: Points, batch_size: int) -> Iterator[Any]:
    """Batches as they come, labels and all, on whatever device they are."""
    if isinstance(points, np.ndarray):
        points = from_numpy(points)
    if isinstance(points, Tensor):
        if points.ndim == 0:
            batch_length(points)
        yield from points.split(batch_size) if len(points) else ()
    elif isinstance(points, DataLoader):
        yield from points
    elif isinstance(points, Dataset):
        # A generator of its own: without one, a DataLoader draws from torch's global generator.
        yield from DataLoader(points, batch_size=batch_size, shuffle=False, generator=torch.Generator())
    else:
        raise PointsError(
            f"Points of type {type(points).__name__} are not understood: give a tensor (N, ...), a numpy array, "
            "a torch Dataset or a DataLoader."
        )


def from_numpy(points: np.ndarray[Any, Any]) -> Tensor:
    """The array as a tensor; PointsError for what is no numbers."""
    try:
        return torch.from_numpy(np.asarray(points, order="C"))
    except TypeError as error:
        raise PointsError(f"A numpy array of {points.dtype} is no tensor: give numbers, such as float32.") from error


def separate(batch: Any, device: torch.device) -> tuple[Inputs, Tensor | None]:
    """(inputs, labels) of one batch as it came, on `device`."""
    labels = None
    if isinstance(batch, Mapping):
        tensors = {name: value.to(device) for name, value in batch.items() if isinstance(value, Tensor)}
        labels = tensors.pop("labels", tensors.pop("label", None))
        if not tensors:
            raise PointsError("A batch of points is a dict without any tensor in it.")
        return tensors, labels
    if isinstance(batch, Sequence) and not isinstance(batch, str) and batch:
        batch, labels = batch[0], batch[1] if len(batch) > 1 else None
    if not isinstance(batch, Tensor):
        raise PointsError(f"A batch of points is a {type(batch).__name__}, not a tensor: let the Dataset give tensors.")
    return batch.to(device), labels.to(device) if isinstance(labels, Tensor) else None


def check_finite(inputs: Inputs, before: int) -> None:
    """Raise PointsError that names the first point with NaN or infinity; `before`: points before this batch."""
    for tensor in [inputs] if isinstance(inputs, Tensor) else inputs.values():
        if not all_finite(tensor):
            bad = (~torch.isfinite(tensor)).reshape(len(tensor), -1).any(1).nonzero()[0].item()
            raise PointsError(f"Point {before + int(bad)} holds NaN or infinity: remove or repair it.")


def all_finite(tensor: Tensor) -> bool:
    """Whether no number of it is NaN or infinite: one pass without memory, since NaN is both its ends."""
    if not tensor.is_floating_point() or not tensor.numel():
        return True
    return all(math.isfinite(float(end)) for end in torch.aminmax(tensor.detach()))


def digest(*tensors: Tensor) -> str:
    """SHA-256 of the dtypes, shapes and bytes of tensors."""
    found = hashlib.sha256()
    for tensor in tensors:
        values = tensor.detach().cpu().contiguous()
        found.update(f"{values.dtype} {tuple(values.shape)} ".encode())
        found.update(values.flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()
