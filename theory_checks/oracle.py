"""An independent float64 account of one layer: what the library computes, recomputed by torch's own layers.

Nothing here uses sipp_bench's patches, quadrants or tracing: quadrant sums are the layer itself, applied to (a)_+ and
(a)_- with the magnitudes of one weight sign, so that a bug in the library can't hide in the check.
Shapes: N points, P patches a point, M neurons, sigma and tau in order (+, -).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Layer = nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d


def apply_layer(layer: Layer, x: Tensor, weight: Tensor) -> Tensor:
    """The layer with another weight and without its bias: (N, P, M) float64."""
    x, weight = x.double(), weight.double()
    if isinstance(layer, nn.Linear):
        return F.linear(x, weight).reshape(x.shape[0], -1, weight.shape[0])
    output: Tensor = layer._conv_forward(x, weight, None)
    return output.flatten(2).transpose(1, 2)


def quadrant_sums(layer: Layer, x: Tensor, weight: Tensor | None = None) -> Tensor:
    """Z of every block, patch and activation sign: (N, P, M, sigma, tau)."""
    w = (layer.weight if weight is None else weight).detach().double()
    return torch.stack(
        [
            torch.stack(
                [apply_layer(layer, a, part) for a in (x.double().clamp(min=0), (-x.double()).clamp(min=0))], -1
            )
            for part in (w.clamp(min=0), (-w).clamp(min=0))
        ],
        -2,
    )


def relative_errors(layer: Layer, x: Tensor, pruned: Tensor) -> Tensor:
    """|Zhat - Z| / Z for a pruned weight, 0 where both are 0, infinite where only Z is: (N, P, M, sigma, tau)."""
    z, zhat = quadrant_sums(layer, x), quadrant_sums(layer, x, pruned)
    error = (zhat - z).abs()
    return torch.where(z > 0, error / z, torch.where(error > 0, torch.inf, 0.0))


def contributions(layer: Layer, x: Tensor) -> Tensor:
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


def sensitivities(layer: Layer, x: Tensor) -> Tensor:
    """s_ij, the largest contribution over points, patches and activation signs: (M, n)."""
    return contributions(layer, x).amax((0, 1, 4))
