"""Points in whatever form the user has them, out as batches on one device."""

import hashlib
import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torch.utils.data import DataLoader, IterableDataset, SequentialSampler

from sipp_bench.errors import OptionError, PointsError, SippBenchError, require_counts
from sipp_bench.network.point_sets import (
    Inputs,
    Points,
    PointSet,
    Reader,
    batch_length,
    from_numpy,
    joined,
    named_entries,
    plain,
    tensors_of,
)

__all__ = [
    "Inputs", "PointSet", "Points", "all_finite", "batch_length", "call_model", "changes_when_repeated",
    "check_finite", "digest", "from_numpy", "gather", "iterate_batches", "model_device", "raw_batches", "shuffles",
    "usable_device",
]  # fmt: skip

NO_POINTS = "There are no points: give at least one, as a tensor (N, ...), a Dataset or a DataLoader."


def iterate_batches(
    points: Points, batch_size: int, device: torch.device, model: nn.Module | None = None
) -> Iterator[tuple[Inputs, Tensor | None]]:
    """Yield (inputs, labels) batches on `device`; labels are None where the points carry none.

    points: Tensor or array (N, ...); a tuple of tensors (N, ...), or a dict of them (a tokenizer's output); a Dataset
    whose items are inputs, tuples or dicts; a DataLoader, whose own batch size is kept; or a `PointSet` of these. A
    tuple goes to the network as positional arguments, a dict as keyword arguments; of a tuple (dict, ...) or
    (tuple, ...) the first entry is the inputs and the second the label. What is a label, see `PointSet`. Text in a dict
    is left out. model: the network that they are for, by which it is known whether a tuple's second entry can be an
    input.
    Raises PointsError for no points at all, for points with NaN or infinity, and for tuples that may end in an input or
    in a label; OptionError for a batch size below 1.
    """
    require_counts(batch_size=batch_size)
    reader = Reader.of(points, model)
    count = 0
    for batch in raw_batches(points, batch_size):
        inputs, labels = reader.separate(batch, device)
        size = batch_length(inputs)
        check_finite(inputs, count)
        count += size
        if size:
            yield inputs, labels
    if count == 0:
        raise PointsError(NO_POINTS)


def gather(points: Points, model: nn.Module, batch_size: int = 64) -> Inputs:
    """All points as one batch on the CPU, without labels. Raises PointsError where batches differ in their shapes."""
    batches = [inputs for inputs, _ in iterate_batches(points, batch_size, torch.device("cpu"), model)]
    try:
        return joined(batches)
    except RuntimeError as error:
        raise PointsError(f"The points do not all have the same shape: {error}. Pad them to one length.") from error


def call_model(model: nn.Module, inputs: Inputs) -> Any:
    """The network's output; what the network itself refuses becomes a PointsError that names the shapes."""
    try:
        if isinstance(inputs, Mapping):
            return model(**inputs)
        return model(inputs) if isinstance(inputs, Tensor) else model(*inputs)
    except (RuntimeError, ValueError, TypeError, IndexError, AssertionError) as error:
        if isinstance(error, torch.OutOfMemoryError | SippBenchError):
            raise
        named = {name: tuple(tensor.shape) for name, tensor in named_entries(inputs)}
        shapes = named if isinstance(inputs, Mapping) else ", ".join(str(shape) for shape in named.values())
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
    if isinstance(points, PointSet):
        return shuffles(points.points)
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
    points = plain(points)
    if isinstance(points, Tensor):
        if points.ndim == 0:
            batch_length(points)
        yield from points.split(batch_size) if len(points) else ()
    elif isinstance(points, DataLoader):
        yield from points
    else:
        # A generator of its own: without one, a DataLoader draws from torch's global generator.
        yield from DataLoader(points, batch_size=batch_size, shuffle=False, generator=torch.Generator())


def check_finite(inputs: Inputs, before: int) -> None:
    """Raise PointsError that names the first point with NaN or infinity; `before`: points before this batch."""
    for tensor in tensors_of(inputs):
        if not all_finite(tensor):
            bad = (~torch.isfinite(tensor)).reshape(len(tensor), -1).any(1).nonzero()[0].item()
            raise PointsError(f"Point {before + int(bad)} holds NaN or infinity: remove or repair it.")


def all_finite(tensor: Tensor) -> bool:
    """Whether no number of it is NaN or infinite: one pass without memory, since NaN is both its ends."""
    if not tensor.is_floating_point() or not tensor.numel():
        return True
    return all(math.isfinite(float(end)) for end in torch.aminmax(tensor.detach()))


def changes_when_repeated(model: nn.Module, inputs: Inputs) -> bool:
    """Whether the network, in the mode that it is in, gives another output for the same inputs: it is random then.

    Another by more than a thousandth of the largest number, since sums may round otherwise from run to run. No proof of
    the contrary: what is random need not have reached the output this once.
    """
    with torch.no_grad():
        one, other = (tree_leaves(call_model(model, inputs)) for _ in range(2))
    return len(one) != len(other) or any(_differ(a, b) for a, b in zip(one, other, strict=True))


def _differ(one: Any, other: Any) -> bool:
    if not isinstance(one, Tensor) or not isinstance(other, Tensor):
        return False
    if one.shape != other.shape:
        return True
    if not one.is_floating_point() or not one.numel():
        return not torch.equal(one, other)
    largest = float(one.abs().nan_to_num(posinf=0.0).amax())
    return not torch.allclose(one, other, rtol=0, atol=1e-3 * largest, equal_nan=True)


def digest(*tensors: Tensor) -> str:
    """SHA-256 of the dtypes, shapes and bytes of tensors."""
    found = hashlib.sha256()
    for tensor in tensors:
        values = tensor.detach().cpu().contiguous()
        found.update(f"{values.dtype} {tuple(values.shape)} ".encode())
        found.update(values.flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()
