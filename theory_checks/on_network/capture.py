"""The linear maps of a network with the inputs that they really had, for the oracle.

Only what was applied to what comes from the library's trace, so that a layer that changes its input, or takes its
weight from elsewhere, is followed like any other; its first point is held against the output that the network got.
"""

from collections.abc import Collection, Iterator, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sipp_bench.errors import ModelError
from sipp_bench.network.points import Inputs, Points, call_model, iterate_batches, model_device
from sipp_bench.network.tracing import Call, tracing
from theory_checks.cases import oracle
from theory_checks.cases.oracle import LinearMap

# Points that go through the network at once, here as where the library measures: other batches round otherwise.
BATCH = 64
# Numbers in one part of the quadrant sums: 32 MiB of float64. Bytes of inputs that are held at a time.
_PART, _HELD = 1 << 22, 1 << 29


def layer_batches(
    model: nn.Module, points: Points, names: Collection[str] | None = None
) -> Iterator[tuple[str, LinearMap, Tensor]]:
    """(weight name, its map, some of its inputs), over all points and calls, in batches as the library takes them.

    names: of the weights that are asked for; default all that the trace sees. Inputs: (N, P, n) of a Linear, padded
    (N, C, *spatial) of a convolution; of few enough points or positions each that their quadrant sums are a part.
    """
    parameters = dict(model.named_parameters())
    for inputs, _ in iterate_batches(points, BATCH, model_device(model), model):
        done, total = 0, 1
        while done < total:  # once more through the network for the inputs that memory did not hold
            held, total = _held(model, inputs, parameters, names, done)
            done += len(held)
            for name, layer, x in held:
                for part in _parts(layer, x):
                    yield name, layer, part


def _held(
    model: nn.Module, inputs: Inputs, parameters: Mapping[str, Tensor], names: Collection[str] | None, done: int
) -> tuple[list[tuple[str, LinearMap, Tensor]], int]:
    """The calls from number `done` on, as many as memory may hold, at least one; and how many there are."""
    held: list[tuple[str, LinearMap, Tensor]] = []
    seen = size = 0
    full = False

    def observe(call: Call, output: Tensor) -> None:
        nonlocal seen, size, full
        if (names is not None and call.name not in names) or not call.input.numel():
            return
        seen += 1
        full = full or (bool(held) and size + call.input.nbytes > _HELD)
        if seen > done and not full:
            layer, x = _linear_map(call, parameters[call.name].detach())
            _require_same(call.name, layer, x, output)
            size += x.nbytes
            held.append((call.name, layer, x))

    with torch.no_grad(), tracing(model, observe):
        call_model(model, inputs)
    return held, seen


def _linear_map(call: Call, weight: Tensor) -> tuple[LinearMap, Tensor]:
    """The map of a call, and a copy of its input: what comes later may change the input in place."""
    x, geometry = call.input, call.geometry
    if geometry is None:
        x = x.reshape(x.shape[0] if x.ndim > 1 else 1, -1, x.shape[-1])
        return LinearMap(weight, call.rows, call.bias), x.clone()
    given = geometry.padding if isinstance(geometry.padding, tuple) else (geometry.padding,) * geometry.dimensions
    pads: list[int] = []
    for kernel, dilation, padding in zip(weight.shape[:1:-1], geometry.dilation[::-1], given[::-1], strict=True):
        if isinstance(padding, int):
            pads += [padding, padding]
        else:  # "same" has what is left over at the end, "valid" nothing
            around = dilation * (kernel - 1) if padding == "same" else 0
            pads += [around // 2, around - around // 2]
    padded = F.pad(x, pads) if any(pads) else x.clone()
    return LinearMap(weight, call.rows, call.bias, geometry.stride, geometry.dilation, geometry.groups), padded


def _require_same(name: str, layer: LinearMap, x: Tensor, output: Tensor) -> None:
    """Raise ModelError unless the map gives the network's own output for the first point.

    Not a matter of rounding, which is far below the square root of the output's unit, but of another stride, padding
    or weight than the trace tells.
    """
    first = x[:1]
    y = oracle.apply_layer(layer, first, layer.weight)[..., layer.rows]
    terms = oracle.apply_layer(layer, first.abs(), layer.weight.abs())[..., layer.rows]
    if layer.bias is not None:
        y, terms = y + layer.bias.double(), terms + layer.bias.double().abs()
    got = output.detach().reshape(len(x), -1, y.shape[2]) if not layer.stride else (
        output.detach().reshape(len(x), y.shape[2], -1).transpose(1, 2)
    )  # fmt: skip
    if bool(((got[:1].double() - y).abs() > 10 * torch.finfo(output.dtype).eps ** 0.5 * terms).any()):
        raise ModelError(
            f"The output of {name!r} in this network is not its weight applied to its input, as the trace has them: "
            "nothing can be said about its blocks. Please report this network."
        )


def _parts(layer: LinearMap, x: Tensor) -> Iterator[Tensor]:
    """x cut between points, and where one point alone is too much also between its patches."""
    patches = _positions(layer, x)
    per_patch = 4 * len(layer.weight) * max(1, patches[1])
    step = max(1, _PART // per_patch)  # slices of the first dimension of patches
    if step >= patches[0]:
        yield from x.split(max(1, step // patches[0]))
        return
    for point in x.split(1):
        if not layer.stride:
            yield from point.split(step, 1)
            continue
        reach = layer.dilation[0] * (layer.weight.shape[2] - 1) + 1
        for start in range(0, patches[0], step):
            stop = min(start + step, patches[0])
            yield point[:, :, start * layer.stride[0] : (stop - 1) * layer.stride[0] + reach]


def _positions(layer: LinearMap, x: Tensor) -> tuple[int, int]:
    """Output positions along the first dimension of one point, and in all the others together."""
    if not layer.stride:
        return x.shape[1], 1
    first, *others = (
        (size - dilation * (kernel - 1) - 1) // stride + 1
        for size, dilation, kernel, stride in zip(
            x.shape[2:], layer.dilation, layer.weight.shape[2:], layer.stride, strict=True
        )
    )
    return first, torch.Size(others).numel()
