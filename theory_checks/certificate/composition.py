"""Claim C18: the cancellation factor Delta of every layer, and what errors it composes to."""

import copy
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from theory_checks.cases import oracle

CHAIN = (
    nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ReLU, nn.Flatten, nn.Dropout, nn.Identity,
    nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d,
    nn.AdaptiveMaxPool2d, nn.AdaptiveAvgPool2d, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d,
)  # fmt: skip
CHANGING = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
AVERAGES = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, nn.AdaptiveAvgPool2d)
# Decimal logarithms of Delta are counted in bins of 1/100, up to 1e20.
_BINS, _DECADES = 2000, 20


def cancellation(layer: oracle.Layer | oracle.LinearMap, x: Tensor) -> Tensor:
    """Delta_i(x, p) = (sum_j |w_ij a_j| + |b_i|) / |y_i + b_i|, infinite over 0, 1 for a neuron with nothing to add.

    (N, P, rows that were applied) float64.
    """
    rows = layer.rows if isinstance(layer, oracle.LinearMap) else slice(None)
    z = oracle.quadrant_sums(layer, x)[:, :, rows]
    bias = z.new_zeros(z.shape[2]) if layer.bias is None else layer.bias.detach().double()
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
    """Whether the network is a plain sequence of linear maps, ReLU, pooling and batch-norm that can be folded.

    Each layer once, in a class of torch's own that nothing was hooked onto: subclasses, parametrizations and hooks may
    do something else. Averages only of what ReLU has made non-negative: others can cancel.
    """
    layers = list(_layers(model))
    linear = [id(layer) for layer in layers if isinstance(layer, CHANGING)]
    if len(set(linear)) < len(linear):
        return False
    positive = False
    for layer in layers:
        hooked = layer._forward_hooks or layer._forward_pre_hooks or "forward" in vars(layer)
        if type(layer) not in CHAIN or hooked or (isinstance(layer, AVERAGES) and not positive):
            return False
        positive = isinstance(layer, nn.ReLU) or (positive and not isinstance(layer, CHANGING))
    return True


def _layers(model: nn.Module) -> Iterator[nn.Module]:
    """The layers of a sequence, those of the sequences in it among them; any other module is one layer."""
    hooked = model._forward_hooks or model._forward_pre_hooks
    if isinstance(model, nn.Sequential) and type(model).forward is nn.Sequential.forward and not hooked:
        for module in model:
            yield from _layers(module)
    else:
        yield model
