"""Small networks and signed inputs for the tests; all from seeds, the global generator stays as it is."""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from sipp_bench.compression.changes import Masked

Module = TypeVar("Module", bound=nn.Module)


def signed(*shape: int, seed: int = 0, zeros: float = 0.1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator)
    return torch.where(torch.rand(shape, generator=generator) < zeros, 0.0, x)


def build(make: Callable[[], Module], seed: int = 0) -> Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return make()


def linear(weight: Any, dtype: torch.dtype = torch.float32) -> nn.Linear:
    w = torch.as_tensor(np.asarray(weight), dtype=dtype)
    layer = nn.Linear(w.shape[1], w.shape[0], bias=False, dtype=dtype)
    with torch.no_grad():
        layer.weight.copy_(w)
    return layer


def small_network(seed: int = 0) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(inplace=True), nn.Conv2d(4, 4, 3, stride=2, groups=2), nn.Tanh(),
        nn.Flatten(), nn.Dropout(), nn.Linear(16, 6), nn.GELU(), nn.Linear(6, 3),
    )  # fmt: skip


def masked(network: nn.Module, masks: Mapping[str, Tensor]) -> dict[str, Masked]:
    """What became of a network's weights where these masks were put on them."""
    parameters = dict(network.named_parameters())
    return {name: Masked(parameters[name].detach(), mask) for name, mask in masks.items()}
