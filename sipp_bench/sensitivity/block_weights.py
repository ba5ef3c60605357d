"""Weights c_b of the blocks: what a relative error of one block costs, against another's (claims C3 and C5).

They move the budget between blocks and leave every block's bound as it is.
"""

from collections.abc import Iterator
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from sipp_bench.errors import ModelError, OptionError
from sipp_bench.network.blocks import activation_signs, block_magnitudes, full_precision, quadrant_sums
from sipp_bench.network.patches import patch_chunks
from sipp_bench.network.point_sets import Points, as_point_set, batch_length
from sipp_bench.network.points import call_model, iterate_batches, model_device
from sipp_bench.network.tracing import Call, tracing
from sipp_bench.sensitivity.measure import Sensitivity

BlockWeights = Literal["uniform", "layer", "downstream"]

# Up to this many logits the norm of the gradient is exact, one backward pass a logit; beyond, it is estimated
# (unbiased, Hutchinson) by as many random signs.
_EXACT_LOGITS = 16
_CHUNK = 1 << 24


def check_block_weights(kind: str) -> None:
    """Raise OptionError for an unknown kind of block weights."""
    if kind not in get_args(BlockWeights):
        raise OptionError(f"weights is one of {', '.join(get_args(BlockWeights))}, not {kind!r}.")


def block_weights(
    kind: BlockWeights, model: nn.Module, points: Points, sensitivity: Sensitivity, batch_size: int = 64
) -> dict[str, Tensor]:
    """c_b by weight name, (neurons, 2) float64.

    "uniform": 1, as in the paper. "layer": 1 / neurons of the layer, as the authors' sampling. "downstream" (ours):
    c_b = sqrt(mean over x in S of sum over p, tau of (Z_b^tau(x, p) |d logits(x) / d y_i(x, p)|)^2), with the norm
    over the logits: to first order, the root mean square change of the logits for a relative error of 1 in the block
    at one patch at a time. Raises ModelError if the network's output is not one tensor.
    """
    check_block_weights(kind)
    if kind == "downstream":
        return _downstream(model, points, sensitivity, batch_size)
    return {
        name: torch.full_like(layer.totals, 1.0 if kind == "uniform" else 1 / layer.values.shape[0])
        for name, layer in sensitivity.items()
    }


def _downstream(model: nn.Module, points: Points, sensitivity: Sensitivity, batch_size: int) -> dict[str, Tensor]:
    if torch.is_inference_mode_enabled():
        raise OptionError("Block weights 'downstream' need gradients: call this outside of torch.inference_mode().")
    sums = {name: torch.zeros_like(layer.totals) for name, layer in sensitivity.items()}
    calls: list[tuple[Call, Tensor]] = []

    def observe(call: Call, output: Tensor) -> Tensor | None:
        if call.name not in sums:
            return None
        if not output.requires_grad:
            output = output.detach().requires_grad_()
        calls.append((call, output))
        # A copy goes on through the network: an activation in place must not change the output that is kept.
        return output.clone()

    num_points = 0
    for inputs, _ in iterate_batches(points, batch_size, model_device(model), model):
        calls.clear()
        num_points += batch_length(inputs)
        with torch.enable_grad():
            with tracing(model, observe) as trace:
                trace.counted = as_point_set(points).counted(inputs)
                logits = call_model(model, inputs)
            squares = _squared_gradients(_one_tensor(logits, model), [output for _, output in calls])
        for (call, _), square in zip(calls, squares, strict=True):
            if call.counted is not None:
                square = square * call.counted[(...,) + (None,) * (square.ndim - 2)]
            sums[call.name][call.rows] += _weighted_squares(call, square)
    return {name: (total / num_points).sqrt() for name, total in sums.items()}


def _one_tensor(output: Any, model: nn.Module) -> Tensor:
    if not isinstance(output, Tensor) or output.ndim < 2:
        raise ModelError(
            f"Block weights 'downstream' need a network whose output is one tensor of logits (N, ...); "
            f"{type(model).__name__} gives a {type(output).__name__}. Use weights='uniform' or 'layer'."
        )
    return output.flatten(1)


def _squared_gradients(logits: Tensor, outputs: list[Tensor]) -> list[Tensor]:
    """|d logits / d y|^2 over the logits, for each number y of each output; 0 for outputs that don't reach them."""
    squares = [torch.zeros_like(output) for output in outputs]
    if not logits.requires_grad:
        return squares
    for direction in _directions(logits):
        value = (logits * direction).sum()
        gradients = torch.autograd.grad(value, outputs, retain_graph=True, allow_unused=True)
        for square, gradient in zip(squares, gradients, strict=True):
            if gradient is not None:
                square += gradient.detach() ** 2
    return squares


def _directions(logits: Tensor) -> Iterator[Tensor]:
    points, count = logits.shape
    if count <= _EXACT_LOGITS:
        yield from torch.eye(count, dtype=logits.dtype, device=logits.device)
        return
    # Seeded here and nowhere else: the same points give the same weights.
    generator = torch.Generator().manual_seed(0)
    for _ in range(_EXACT_LOGITS):
        signs = torch.randint(0, 2, (points, count), generator=generator) * 2 - 1
        yield signs.to(logits) / _EXACT_LOGITS**0.5


def _weighted_squares(call: Call, square: Tensor) -> Tensor:
    """Sum over patches and activation signs of Z^2 times the squared gradient: (rows, 2) float64."""
    groups, neurons = call.groups, call.weight.shape[0] // call.groups
    if call.geometry is None:
        gradients = square.reshape(1, -1, neurons)
    else:
        batch = square if square.ndim == call.input.ndim else square.unsqueeze(0)
        split = batch.reshape(batch.shape[0], groups, neurons, -1)
        gradients = split.permute(1, 0, 3, 2).reshape(groups, -1, neurons)
    totals = square.new_zeros(groups, 2 * neurons, dtype=torch.float64)
    magnitudes = block_magnitudes(call.weight.float() if call.weight.itemsize < 4 else call.weight, groups)
    start = 0
    with full_precision(square.device):
        for patches in patch_chunks(call.input.to(magnitudes.dtype), call.weight, call.geometry, _CHUNK):
            part = gradients[:, start : start + patches.shape[1]]
            start += patches.shape[1]
            for a in activation_signs(patches):
                z = quadrant_sums(a, magnitudes)
                totals += (z**2 * torch.cat([part, part], 2)).sum(1).double()
    return torch.stack([totals[:, :neurons].flatten(), totals[:, neurons:].flatten()], 1)
