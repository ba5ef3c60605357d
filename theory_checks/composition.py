"""Claim C18: the cancellation factor Delta of every layer, and what errors it composes to."""

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from theory_checks import oracle

CHAIN = (
    nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ReLU, nn.Flatten, nn.Dropout, nn.Identity,
    nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d,
    nn.AdaptiveMaxPool2d, nn.AdaptiveAvgPool2d, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d,
)  # fmt: skip
# Decimal logarithms of Delta are counted in bins of 1/100, up to 1e20.
_BINS, _DECADES = 2000, 20


def cancellation(layer: oracle.Layer, x: Tensor) -> Tensor:
    """Delta_i(x, p) = (sum_j |w_ij a_j| + |b_i|) / |y_i + b_i|, infinite over 0, 1 for a neuron with nothing to add.

    (N, P, M) float64.
    """
    z = oracle.quadrant_sums(layer, x)
    bias = torch.zeros(z.shape[2]) if layer.bias is None else layer.bias.detach()
    bias = bias.double().to(z.device)
    size = z.sum((-1, -2)) + bias.abs()
    y = z[..., 0, 0] - z[..., 1, 0] - z[..., 0, 1] + z[..., 1, 1] + bias
    return torch.where(size > 0, size / y.abs(), 1.0)


@dataclass
class Distribution:
    """Delta of one layer: a histogram of its logarithm, so that all neurons, patches and points count."""

    counts: Tensor
    largest: float = 1.0

    @classmethod
    def empty(cls) -> "Distribution":
        """Nothing seen so far."""
        return cls(torch.zeros(_BINS, dtype=torch.float64))

    def add(self, delta: Tensor) -> None:
        """Fold in more values."""
        logs = delta.log10().clamp(0, _DECADES * (1 - 1e-9)).flatten().cpu()
        self.counts += torch.histc(logs, _BINS, 0, _DECADES)
        self.largest = max(self.largest, float(delta.max()))

    def quantile(self, share: float) -> float:
        """The upper edge of the bin in which this share of the values is reached, within 2.4 %."""
        reached = torch.cumsum(self.counts, 0) >= share * self.counts.sum() * (1 - 1e-12)
        return min(float(10 ** ((int(reached.int().argmax()) + 1) * _DECADES / _BINS)), self.largest)


def folded(model: nn.Module) -> tuple[nn.Module, bool]:
    """A copy with batch-norm folded into the convolutions before it, and whether none is left over."""
    norms = nn.modules.batchnorm._BatchNorm
    if not any(isinstance(module, norms) for module in model.modules()):
        return model, True
    from torch.fx.experimental.optimization import fuse

    try:
        fused: nn.Module = fuse(copy.deepcopy(model).eval())
    except Exception:  # whatever tracing raises on networks that it can't follow
        return model, False
    return fused, not any(isinstance(module, norms) for module in fused.modules())


def is_chain(model: nn.Module) -> bool:
    """Whether the network is a plain sequence of linear maps, ReLU, pooling and batch-norm that can be folded."""
    if isinstance(model, nn.Sequential):
        return all(is_chain(module) for module in model)
    return isinstance(model, CHAIN)
