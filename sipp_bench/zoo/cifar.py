"""Networks for images of about 32x32 pixels: pytorchcv's, and VGG16 from torchvision's layers."""

import importlib
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from torch import nn

from sipp_bench.errors import ModelError
from sipp_bench.zoo.vision import torchvision

Builder = Callable[[tuple[int, int, int], int], nn.Module]


def _pytorchcv(module: str, **architecture: Any) -> Builder:
    """Builds `get_MODULE` of pytorchcv; its last average, over 8x8 positions, becomes one over all there are.

    For 32x32 images that is the same. pytorchcv insists on 10 or 100 classes, so that another number gets a last
    layer of its own.
    """

    def build(input_shape: tuple[int, int, int], num_classes: int) -> nn.Module:
        channels, height, width = input_shape
        if min(height, width) < 8:
            raise ModelError(f"This network takes images of at least 8x8 pixels, not {height}x{width}.")
        try:
            make = getattr(importlib.import_module(f"pytorchcv.models.{module}"), f"get_{module}")
        except ImportError as error:
            raise ModelError(
                f"This network needs {error.name}, which cannot be imported: pip install pytorchcv."
            ) from error
        network: Any = make(num_classes=10, in_channels=channels, in_size=(height, width), **architecture)
        network.features.final_pool = nn.AdaptiveAvgPool2d(1)
        if num_classes != 10:
            network.output = nn.Linear(network.output.in_features, num_classes)
        return network  # type: ignore[no-any-return]  # pytorchcv is loaded by name

    return build


def _vgg16_bn(input_shape: tuple[int, int, int], num_classes: int) -> nn.Module:
    """VGG16's 13 convolutions with batch normalisation, averaged over positions, then one Linear layer.

    The CIFAR form of VGG16, without the two hidden layers of 4,096 that take 224x224 images.
    """
    channels, height, width = input_shape
    if min(height, width) < 32:
        raise ModelError(
            f"vgg16-bn halves its images five times and takes at least 32x32 pixels, not {height}x{width}. "
            "Use resnet-20 for smaller images, or a data set of larger ones."
        )
    vgg = torchvision().models.vgg
    features = vgg.make_layers(vgg.cfgs["D"], batch_norm=True)
    if channels != 3:
        features[0] = nn.Conv2d(channels, 64, 3, padding=1)
    network = nn.Sequential(
        OrderedDict(
            features=features, pool=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten(), fc=nn.Linear(512, num_classes)
        )
    )
    for layer in features:
        if isinstance(layer, nn.Conv2d):  # as torchvision's own VGG begins
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]  # VGG's convolutions have one
    return network


BUILDERS: dict[str, Builder] = {
    "resnet-20": _pytorchcv("resnet_cifar", blocks=20, bottleneck=False),
    "resnet-56": _pytorchcv("resnet_cifar", blocks=56, bottleneck=False),
    "resnet-110": _pytorchcv("resnet_cifar", blocks=110, bottleneck=False),
    "wrn-16-8": _pytorchcv("wrn_cifar", blocks=16, width_factor=8),
    "densenet-22": _pytorchcv("densenet_cifar", blocks=22, growth_rate=12, bottleneck=True),
    "vgg16-bn": _vgg16_bn,
}
"""resnet-N: He et al. 2016, section 4.2, with 1x1 convolutions where a block's shape changes (their option B).
wrn-16-8: Zagoruyko and Komodakis 2016. densenet-22: DenseNet-BC (Huang et al. 2017), growth 12, compression 0.5."""
