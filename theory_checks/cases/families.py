"""Families of small layers whose points are drawn from known distributions: many independent trials in one layer.

Trial i is group i of a grouped convolution. Its weights are fixed, its inputs are channel i of the points, channels
are drawn independently of each other, and the sensitivities of its weights depend on that channel alone. What happens
in one group is therefore independent of all others, though all of them go through one call of the code under test.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

KERNEL = 6  # weights of a neuron: three positive and three negative ones, in random order


@dataclass(frozen=True)
class Family:
    """Points (n, trials, length) in float64, i.i.d., and the layer that looks at them, one neuron a trial.

    gamma: inputs are Gamma(shape_j) / |w_j|, so that the contribution of weight j is exactly
    Beta(shape_j, sum of the others of its block); else uniform on [low, 1]. signed: each trial's input of each point
    has a random sign. zeros: how often an input is 0. patches: more than one, by stride 2 and padding 1, with a bias.

    With zeros = 0, contributions have no ties: all inputs of a trial share their sign, so that a block is active for
    one tau in full, and each patch has at least two inputs of each block inside the padding.
    """

    name: str
    gamma: bool = False
    low: float = 0.0
    signed: bool = False
    zeros: float = 0.0
    patches: bool = False

    def layer(self, trials: int, rng: np.random.Generator) -> nn.Conv1d:
        """Weights of magnitudes within [1/4, 4], log-uniform."""
        if self.patches:
            layer = nn.Conv1d(trials, trials, KERNEL, stride=2, padding=1, groups=trials, dtype=torch.float64)
        else:
            layer = nn.Conv1d(trials, trials, KERNEL, groups=trials, bias=False, dtype=torch.float64)
        signs = rng.permuted(np.tile([1.0, -1.0], (trials, KERNEL // 2)), axis=1)
        with torch.no_grad():
            layer.weight.copy_(torch.from_numpy(signs * 4 ** rng.uniform(-1, 1, signs.shape))[:, None])
            if layer.bias is not None:
                layer.bias.copy_(torch.from_numpy(rng.normal(size=trials)))
        return layer

    def points(self, count: int, layer: nn.Conv1d, rng: np.random.Generator) -> Tensor:
        """`count` i.i.d. points for every trial."""
        trials, length = layer.out_channels, KERNEL + 4 if self.patches else KERNEL
        if self.gamma:
            magnitudes = layer.weight.detach().abs()[:, 0].numpy()
            a = rng.gamma(gamma_shapes(trials), size=(count, trials, length)) / magnitudes
        else:
            a = rng.uniform(self.low, 1, (count, trials, length))
        if self.zeros:
            a *= rng.random(a.shape) >= self.zeros
        if self.signed:
            a *= rng.choice([-1.0, 1.0], (count, trials, 1))
        return torch.from_numpy(a)


def gamma_shapes(trials: int) -> "np.typing.NDArray[np.float64]":
    """Shapes of the inputs of a gamma family: (trials, KERNEL), from 1/2 to 3."""
    return np.linspace(0.5, 3, trials * KERNEL).reshape(KERNEL, trials).T.copy()


def beta_parameters(layer: nn.Conv1d) -> "tuple[np.typing.NDArray[np.float64], np.typing.NDArray[np.float64]]":
    """Of a gamma family's contributions: g_ij is Beta(first, second), each (trials, KERNEL)."""
    shapes, positive = gamma_shapes(layer.out_channels), layer.weight.detach()[:, 0].numpy() > 0
    plus = (shapes * positive).sum(1, keepdims=True)
    minus = (shapes * ~positive).sum(1, keepdims=True)
    return shapes, np.where(positive, plus, minus) - shapes


SMOOTH = Family("contributions of a known Beta law", gamma=True)
SIGNED = Family("signed inputs, several patches, padding, a bias", signed=True, patches=True)
# Contributions within 0.5 % of each other: a bound that is 1 % too small is below all of them.
NARROW = Family("contributions in a narrow band", low=0.998, signed=True)
DEAD = Family("inputs that are often 0", signed=True, patches=True, zeros=0.85)
FAMILIES = (SMOOTH, SIGNED, NARROW)


def one_of_each_block(layer: nn.Conv1d, rng: np.random.Generator) -> Tensor:
    """One positive and one negative weight of every neuron, at random: (trials, KERNEL), bool."""
    rank, weight = torch.from_numpy(rng.random((layer.out_channels, KERNEL))), layer.weight.detach()[:, 0]
    first = [torch.where(sign * weight > 0, rank, 0.0).argmax(1) for sign in (1, -1)]
    return F.one_hot(torch.stack(first, 1), KERNEL).sum(1).bool()


def contributions(layer: nn.Conv1d, points: Tensor) -> Tensor:
    """g of every weight at every point, the largest over patches and activation signs: (n, trials, KERNEL).

    Plain arithmetic for these layers alone, each with one input channel a neuron; the oracle's is many times slower.
    """
    weight = layer.weight.detach()[:, 0]
    own = (weight > 0)[:, None]
    largest = torch.zeros(len(points), *weight.shape, dtype=torch.float64)
    for a in _patches(layer, points):
        products = a * weight.abs()[:, None]
        plus = (products * own).sum(-1, keepdim=True)
        minus = (products * ~own).sum(-1, keepdim=True)
        z = torch.where(own, plus, minus)
        largest = torch.maximum(largest, torch.where(z > 0, products / z, 0.0).amax(2))
    return largest


def relative_errors(layer: nn.Conv1d, points: Tensor, dropped: Tensor) -> Tensor:
    """r = |Zhat - Z| / Z of both blocks of each neuron without these weights, (trials, KERNEL) or (KERNEL,).

    The largest over patches and activation signs: (n, trials, 2), the block of positive weights first.
    """
    weight = layer.weight.detach()[:, 0]
    errors = []
    for sign in (1, -1):
        dense = (sign * weight).clamp(min=0)
        pruned = dense.masked_fill(dropped, 0)
        largest = torch.zeros(len(points), len(weight), dtype=torch.float64)
        for a in _patches(layer, points):
            z, zhat = (a * dense[:, None]).sum(-1), (a * pruned[:, None]).sum(-1)
            largest = torch.maximum(largest, torch.where(z > 0, (zhat - z).abs() / z, 0.0).amax(2))
        errors.append(largest)
    return torch.stack(errors, -1)


def _patches(layer: nn.Conv1d, points: Tensor) -> list[Tensor]:
    """(a)_+ and (a)_- of each patch: (n, trials, P, KERNEL) each."""
    padding, stride = int(layer.padding[0]), layer.stride[0]
    signs = (points.clamp(min=0), (-points).clamp(min=0))
    return [F.pad(a, (padding, padding)).unfold(-1, KERNEL, stride) for a in signs]
