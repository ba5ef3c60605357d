"""The networks that are timed, with random weights, and the points they are timed on."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from sipp_bench.zoo import models

# What the fixture `pair` gives.
Pair = Callable[..., None]

# name -> input shape, classes, points, rounds: fewer where a pass takes seconds.
NETWORKS: dict[str, tuple[tuple[int, int, int], int, int, int]] = {
    "lenet-300-100": ((1, 28, 28), 10, 256, 21),
    "lenet-5": ((1, 28, 28), 10, 64, 21),
    "resnet-20": ((3, 32, 32), 10, 64, 9),
    "vgg16-bn": ((3, 32, 32), 10, 64, 5),
    "resnet-18": ((3, 224, 224), 1000, 8, 3),
    "vit-b-16": ((3, 224, 224), 1000, 1, 3),
}
# With every method, where the network's size is what counts: VGG16 for 224x224 images has 138 M weights.
LARGE = "torchvision:vgg16"


def network(name: str, device: torch.device) -> tuple[nn.Module, Tensor]:
    """The network in eval mode and its points, uniform in [0, 1)."""
    shape, classes, points, _ = NETWORKS[name]
    with models.seeded(0):
        model = models.build(name, shape, classes).eval().to(device)
        return model, torch.rand(points, *shape).to(device)


def call(function: Callable[..., Any], *arguments: Any, **options: Any) -> Callable[[], Any]:
    """function(*arguments, **options), later."""
    return lambda: function(*arguments, **options)
