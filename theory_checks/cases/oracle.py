"""An independent float64 account of one layer: what the library computes, recomputed by torch's own layers.

Nothing here uses sipp_bench's patches or quadrants: quadrant sums are the layer itself, applied to (a)_+ and
(a)_- with the magnitudes of one weight sign, so that a bug in the library can't hide in the check.
Shapes: N points, P patches a point, M neurons, sigma and tau in order (+, -).
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Layer = nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d


@dataclass(frozen=True)
class LinearMap:
    """A weight as a network applied it, whatever module or function it came from.

    weight: (M, ...), all of it; rows: those that were applied, the others have no sums there; bias: of those rows;
    stride and dilation: one number a dimension of a convolution, whose input here has its padding; () for a Linear.
    """

    weight: Tensor
    rows: slice
    bias: Tensor | None = None
    stride: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    groups: int = 1


def apply_layer(layer: Layer | LinearMap, x: Tensor, weight: Tensor) -> Tensor:
    """The layer with another weight and without its bias: (N, P, M) float64; 0 in rows that were not applied."""
    if not isinstance(layer, LinearMap) or layer.rows == slice(0, len(layer.weight)):
        return _applied(layer, x, weight)
    times = len(weight) // len(layer.weight)  # several weights in one, neuron by neuron
    rows = slice(layer.rows.start * times, layer.rows.stop * times)
    some = _applied(layer, x, weight[rows])
    output = some.new_zeros(*some.shape[:2], len(weight))
    output[..., rows] = some
    return output


def _applied(layer: Layer | LinearMap, x: Tensor, weight: Tensor) -> Tensor:
    x, weight = x.double(), weight.double()
    if weight.ndim == 2:
        return F.linear(x, weight).reshape(x.shape[0], -1, weight.shape[0])
    output: Tensor
    if isinstance(layer, LinearMap):
        convolve = (F.conv1d, F.conv2d, F.conv3d)[len(layer.stride) - 1]
        output = convolve(x, weight, None, layer.stride, 0, layer.dilation, layer.groups)
    else:
        output = layer._conv_forward(x, weight, None)  # type: ignore[operator]  # a Linear's weight is a matrix
    return output.flatten(2).transpose(1, 2)


def quadrant_sums(layer: Layer | LinearMap, x: Tensor, weight: Tensor | None = None) -> Tensor:
    """Z of every block, patch and activation sign: (N, P, M, sigma, tau)."""
    w = (layer.weight if weight is None else weight).detach().double()
    # Both signs of a neuron's weights as two neurons of one layer, side by side: each is in its own group still.
    both = torch.stack([w.clamp(min=0), (-w).clamp(min=0)], 1).flatten(0, 1)
    sums = []
    for a in (x.double().clamp(min=0), (-x.double()).clamp(min=0)):
        # Of an activation sign that is nowhere, as after ReLU, one point gives the shape.
        z = apply_layer(layer, a, both) if bool(a.any()) else apply_layer(layer, a[:1], both).expand(len(a), -1, -1)
        sums.append(z.unflatten(2, (len(w), 2)))
    return torch.stack(sums, -1)


def relative_errors(layer: Layer | LinearMap, x: Tensor, pruned: Tensor) -> Tensor:
    """|Zhat - Z| / Z for a pruned weight, 0 where both are 0, infinite where only Z is: (N, P, M, sigma, tau)."""
    z, zhat = quadrant_sums(layer, x), quadrant_sums(layer, x, pruned)
    error = (zhat - z).abs()
    return torch.where(z > 0, error / z, torch.where(error > 0, torch.inf, 0.0))


def contributions(layer: Layer | LinearMap, x: Tensor) -> Tensor:
    """g_ij^tau(x, p) = |w_ij| (a_j)_tau / Z of each weight's own block: (N, P, M, n, tau)."""
    weight = layer.weight.detach().double()
    flat = weight.flatten(1)
    z = quadrant_sums(layer, x)
    own = (flat < 0).long()  # index of the block, sigma
    result = []
    for tau, a in enumerate((x.double().clamp(min=0), (-x.double()).clamp(min=0))):
        columns = []
        for j in range(flat.shape[1]):
            alone = torch.zeros_like(flat)
            alone[:, j] = flat[:, j].abs()
            share = apply_layer(layer, a, alone.reshape(weight.shape))
            total = z[..., tau].gather(-1, own[:, j].expand(z.shape[:2] + own[:, j].shape)[..., None])[..., 0]
            columns.append(torch.where(total > 0, share / total, 0.0))
        result.append(torch.stack(columns, -1))
    return torch.stack(result, -1)


def sensitivities(layer: Layer | LinearMap, x: Tensor) -> Tensor:
    """s_ij, the largest contribution over points, patches and activation signs: (M, n)."""
    return contributions(layer, x).amax((0, 1, 4))


def patches(layer: Layer | LinearMap, x: Tensor) -> Tensor:
    """What each weight of a row meets, (groups, N, P, n) in the order of weight.flatten(1), by one-hot weights."""
    shape = layer.weight.shape
    n = layer.weight[0].numel()
    groups = 1 if isinstance(layer, nn.Linear) else layer.groups
    probes = torch.eye(n, dtype=torch.float64).repeat(groups, 1).reshape(groups * n, *shape[1:])
    found: Tensor = _applied(layer, x, probes).unflatten(-1, (groups, n))
    return found.movedim(2, 0)


def layer_inputs(model: nn.Module, points: Tensor) -> dict[str, tuple[Layer, Tensor]]:
    """Linear and ConvNd layers by module name, each with the inputs of all its calls, one after the other.

    In eval mode and in one batch; the model is left as it was.
    """
    calls: dict[str, list[Tensor]] = {}
    layers = {name: module for name, module in model.named_modules() if isinstance(module, Layer)}

    def recorder(name: str) -> Callable[..., None]:
        return lambda module, arguments, output: calls.setdefault(name, []).append(arguments[0].detach().clone())

    hooks = [layer.register_forward_hook(recorder(name)) for name, layer in layers.items()]
    modes = {module: module.training for module in model.modules()}
    try:
        with torch.no_grad():
            model.eval()(points)
    finally:
        for hook in hooks:
            hook.remove()
        for module, training in modes.items():
            module.training = training
    return {name: (layers[name], torch.cat(inputs)) for name, inputs in calls.items()}


def with_weight(layer: Layer, weight: Tensor) -> Layer:
    """A copy of the layer with this weight, in the weight's dtype."""
    other = copy.deepcopy(layer).to(weight.dtype)
    other.weight = nn.Parameter(weight.detach().reshape(layer.weight.shape).clone())
    return other
