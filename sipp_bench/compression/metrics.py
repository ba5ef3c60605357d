"""What pruning did: accuracy, theoretical cost, and the measured error of every block."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sipp_bench.errors import ModelError, PointsError, require_counts
from sipp_bench.measures.predictions import check
from sipp_bench.network.patches import patch_chunks
from sipp_bench.network.point_sets import Points, as_point_set
from sipp_bench.network.points import call_model, iterate_batches, model_device
from sipp_bench.network.quadrants import activation_signs, block_magnitudes, full_precision, quadrant_sums
from sipp_bench.network.tracing import Call, tracing

# Numbers in one chunk: arrays of a few MiB stay in the cache, and are not given back to the system each time.
_CHUNK = 1 << 19


def median(values: Tensor) -> float:
    """The median of all values, float64: of an even number the mean of the two in the middle, NaN of none.

    torch's own is the lower of the two.
    """
    return float(np.median(values.double().numpy(force=True))) if values.numel() else math.nan


def evaluate(model: nn.Module, images: Tensor, labels: Tensor, batch_size: int = 128) -> dict[str, float]:
    """`accuracy`: fraction of points whose largest logit is the label's; `loss`: mean cross-entropy in nats.

    In eval mode; both are summed in float64 over batches in order, so that one batch size gives one result.
    Raises PointsError unless labels are classes of the network, one for each image, and OptionError for a batch size
    below 1.
    """
    require_counts(batch_size=batch_size)
    if len(images) != len(labels) or len(images) == 0:
        raise PointsError(
            f"evaluate needs as many labels as images and at least one, not {len(images)}, {len(labels)}."
        )
    correct, loss = 0, 0.0
    device = model_device(model)
    with torch.no_grad(), tracing(model, _ignore):
        for x, y in zip(images.split(batch_size), labels.to(device).split(batch_size), strict=True):
            logits = call_model(model, x.to(device))
            check(logits, y)
            correct += int((logits.argmax(1) == y).sum())
            loss += float(F.cross_entropy(logits.double(), y.long(), reduction="sum"))
    return {"accuracy": correct / len(images), "loss": loss / len(images)}


def multiply_adds(model: nn.Module, example: Tensor, masks: Mapping[str, Tensor] | None = None) -> int:
    """Theoretical multiply-adds of all Linear and ConvNd layers for one point `example` (1, ...).

    Each application of a weight at a patch is one multiply-add, positions in the padding included; with masks only
    non-zero weights count, which supposes kernels that skip zeros for free. Dense kernels do not.
    """
    total = 0

    def observe(call: Call, output: Tensor) -> None:
        nonlocal total
        # count_patches is per call, over all samples: `example` holds one.
        size = call.weight.numel() if masks is None or call.name not in masks else masks[call.name][call.rows].sum()
        total += call.count_patches() * int(size)

    with torch.no_grad(), tracing(model, observe):
        call_model(model, example[:1].to(model_device(model)))
    return total


@dataclass(frozen=True)
class BlockErrors:
    """Measured relative errors r = |Zhat - Z| / Z of one weight's blocks, (neurons, 2) each, float64.

    largest: over all points, patches and activation signs with Z > 0 (0 where there is none). average: the largest
    over points and signs of the mean over a point's patches; equal to `largest` for Linear layers. exceeding: how
    many active (x, p, tau) have r above the block's limit, if limits were given; active: how many there are.
    """

    largest: Tensor
    average: Tensor
    exceeding: Tensor
    active: Tensor


def block_errors(
    model: nn.Module,
    pruned: nn.Module,
    points: Points,
    names: Iterable[str],
    limits: Mapping[str, Tensor] | None = None,
    batch_size: int = 64,
) -> dict[str, BlockErrors]:
    """Relative error of every block on these points, on the inputs that the dense network gives it (claims C2, C10).

    A block whose Z is 0 has error 0 if its pruned sum is 0 too, which pruning that keeps signs or zeros ensures.
    limits: by name (neurons, 2), for `exceeding`.
    """
    replaced = dict(pruned.named_parameters())
    accumulators = {name: _Errors(replaced[name].detach(), None if limits is None else limits[name]) for name in names}

    def observe(call: Call, output: Tensor) -> None:
        if call.name in accumulators:
            accumulators[call.name].add(call.only_counted())

    with torch.no_grad(), tracing(model, observe) as trace:
        for inputs, _ in iterate_batches(points, batch_size, model_device(model), model):
            trace.counted = as_point_set(points).counted(inputs)
            call_model(model, inputs)
    return {name: errors.result() for name, errors in accumulators.items()}


class _Errors:
    def __init__(self, pruned: Tensor, limits: Tensor | None) -> None:
        self.pruned = pruned
        shape = (pruned.shape[0], 2)
        self.limits = torch.full(shape, torch.inf, dtype=torch.float64) if limits is None else limits.double()
        self.largest = torch.zeros(shape, dtype=torch.float64, device=pruned.device)
        self.average = torch.zeros_like(self.largest)
        self.exceeding = torch.zeros(shape, dtype=torch.int64, device=pruned.device)
        self.active = torch.zeros_like(self.exceeding)

    def add(self, call: Call) -> None:
        weight, pruned = call.weight.double(), self.pruned[call.rows].double()
        if bool(((pruned != 0) & (pruned.sign() != weight.sign())).any()):
            raise ModelError(f"{call.name!r} changed the sign of a weight: relative block errors speak of kept signs.")
        groups, neurons = call.groups, weight.shape[0] // call.groups
        dense, other = block_magnitudes(weight, groups), block_magnitudes(pruned, groups)
        per_point = 1 if call.geometry is None else call.count_patches() // len(call.input)
        limits = torch.cat([self.limits[call.rows][:, c].reshape(groups, neurons) for c in (0, 1)], 1)[:, None]
        with full_precision(weight.device):
            for patches in patch_chunks(call.input, call.weight, call.geometry, _CHUNK):
                for a in activation_signs(patches.double()):
                    z, r = quadrant_sums(a, dense), quadrant_sums(a, other)
                    active = z > 0
                    # In place: these are the largest arrays of a run's checks. Where Z is 0, Zhat is too.
                    r.sub_(z).abs_().div_(z.masked_fill_(~active, 1))
                    means = r.reshape(groups, -1, per_point, 2 * neurons).mean(2) if per_point > 1 else r
                    self._fold(self.largest, r.amax(1), call.rows, neurons)
                    self._fold(self.average, means.amax(1), call.rows, neurons)
                    self.exceeding[call.rows] += _columns((r > limits.to(r.device)).sum(1), neurons)
                    self.active[call.rows] += _columns(active.sum(1), neurons)

    @staticmethod
    def _fold(target: Tensor, found: Tensor, rows: slice, neurons: int) -> None:
        target[rows] = torch.maximum(target[rows], _columns(found, neurons))

    def result(self) -> BlockErrors:
        return BlockErrors(self.largest, self.average, self.exceeding, self.active)


def _columns(flat: Tensor, neurons: int) -> Tensor:
    """(groups, 2 * neurons), positive blocks first, to (groups * neurons, 2)."""
    return torch.stack([flat[:, :neurons].flatten(), flat[:, neurons:].flatten()], 1)


def _ignore(call: Call, output: Tensor) -> None:
    return None
