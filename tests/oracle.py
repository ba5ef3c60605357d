"""What THEORY's definitions say, in float64 and plain numpy: nothing of sipp_bench is used here.

Patches are gathered one output position and one kernel offset at a time, sums are taken one neuron at a time.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

Array = npt.NDArray[np.float64]
_PAD_MODES = {"zeros": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}


@dataclass(frozen=True)
class Measured:
    """values: shaped like the weight; active: (neurons, 2), how many (x, p, tau) have Z > 0; totals: T, the same."""

    values: Array
    active: npt.NDArray[np.int64]
    totals: Array


def array(tensor: Tensor) -> Array:
    """A tensor of any float dtype as float64."""
    return tensor.detach().double().numpy()


def patches(layer: nn.Module, x: Tensor) -> Array:
    """Patches of one call of a Linear or ConvNd: (points, patches, groups, n), in the order of weight.flatten(1)."""
    points = array(x)
    if isinstance(layer, nn.Linear):
        return points.reshape(len(points), -1, 1, points.shape[-1])
    assert isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d)
    kernel, stride, dilation = layer.kernel_size, layer.stride, layer.dilation
    if layer.padding == "valid":
        pads = [(0, 0) for _ in kernel]
    elif layer.padding == "same":  # the odd one goes after, as torch documents it
        totals = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        pads = [(total // 2, total - total // 2) for total in totals]
    else:
        pads = [(int(p), int(p)) for p in layer.padding]
    padded = np.pad(points, [(0, 0), (0, 0), *pads], mode=_PAD_MODES[layer.padding_mode])
    sizes = [
        (size - d * (k - 1) - 1) // s + 1
        for size, k, s, d in zip(padded.shape[2:], kernel, stride, dilation, strict=True)
    ]
    gathered = []
    for position in itertools.product(*map(range, sizes)):
        entries = []
        for offset in itertools.product(*map(range, kernel)):
            place = tuple(p * s + o * d for p, s, o, d in zip(position, stride, offset, dilation, strict=True))
            entries.append(padded[(slice(None), slice(None), *place)])
        gathered.append(np.stack(entries, -1).reshape(len(points), layer.groups, -1))
    return np.stack(gathered, 1)


def sensitivity(weight: Tensor | Array, a: Array, reduction: str = "max") -> Measured:
    """s_ij over patches (points, patches, groups, n); "mean": over a point's patches, before the maximum."""
    w = array(weight) if isinstance(weight, Tensor) else weight
    rows = w.reshape(len(w), -1)
    values, totals = np.zeros_like(rows), np.zeros((len(rows), 2))
    active = np.zeros((len(rows), 2), dtype=np.int64)
    for i, column, _, z, products in _quadrants(rows, a):
        g = np.divide(products, z[..., None], out=np.zeros_like(products), where=z[..., None] > 0)
        values[i] = np.maximum(values[i], (g.mean(1) if reduction == "mean" else g.max(1)).max(0))
        active[i, column] += np.count_nonzero(z > 0)
    for column, sigma in enumerate((1, -1)):
        totals[:, column] = np.where(np.sign(rows) == sigma, values, 0).sum(1)
    return Measured(values.reshape(w.shape), active, totals)


def relative_errors(weight: Tensor, pruned: Tensor, a: Array) -> tuple[Array, Array]:
    """r of every block: the largest over points, patches, tau; and the largest over points, tau of patch means."""
    rows, other = array(weight).reshape(len(weight), -1), array(pruned).reshape(len(weight), -1)
    largest, average = np.zeros((len(rows), 2)), np.zeros((len(rows), 2))
    for i, column, at, z, products in _quadrants(rows, a):
        kept = at * np.where(products > 0, np.abs(other[i]), 0)
        r = np.divide(np.abs(kept.sum(-1) - z), z, out=np.zeros_like(z), where=z > 0)
        largest[i, column] = max(largest[i, column], r.max())
        average[i, column] = max(average[i, column], r.mean(1).max())
    return largest, average


def quadrant_sums(weight: Tensor, a: Array) -> Array:
    """Z: (points, patches, neurons, 2 signs of the weight, 2 signs of the activation)."""
    rows = array(weight).reshape(len(weight), -1)
    sums = np.zeros((*a.shape[:2], len(rows), 2, 2))
    for index, (i, column, _, z, _) in enumerate(_quadrants(rows, a)):
        sums[:, :, i, column, index % 4 // 2] = z
    return sums


def _quadrants(rows: Array, a: Array) -> Iterator[tuple[int, int, Array, Array, Array]]:
    """(neuron, column of sigma, a_tau, Z, the products that Z sums) for tau = +, - and sigma = +, - of every neuron."""
    per_group = len(rows) // a.shape[2]
    for i, w in enumerate(rows):
        for tau in (1, -1):
            at = np.maximum(tau * a[:, :, i // per_group], 0)
            for column, sigma in enumerate((1, -1)):
                products = at * np.where(np.sign(w) == sigma, np.abs(w), 0)
                yield i, column, at, products.sum(-1), products


def rounding(n: int, dtype: torch.dtype = torch.float32) -> float:
    """How far a sensitivity computed in `dtype` may be from the exact one, relatively.

    Z is a sum of n non-negative products: in any order within n u / (1 - n u) (Higham, Accuracy and Stability of
    Numerical Algorithms, 2nd ed., 3.1). The reciprocal and the products with a and |w| cost one rounding u each;
    one u more covers all terms of second order while n u < 0.1. The project promises 1e-5 whatever n is.
    """
    return min(1e-5, (n + 4) * torch.finfo(dtype).eps / 2)
