"""Networks for ImageNet: torchvision's and timm's by their own names, the usual ones by plain names."""

import contextlib
import difflib
import hashlib
import importlib
import importlib.util
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from sipp_bench.errors import ModelError, OptionError
from sipp_bench.machine.files import read_regular
from sipp_bench.zoo.vision import declare_missing_operators, torchvision

Weights = Literal["pretrained"] | None

_ONLY = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"

PREFIXES = ("torchvision:", "timm:")
PLAIN = {
    "resnet-18": "torchvision:resnet18",
    "resnet-50": "torchvision:resnet50",
    "resnet-101": "torchvision:resnet101",
    "vgg16-bn-imagenet": "torchvision:vgg16_bn",
    "densenet-121": "torchvision:densenet121",
    "mobilenet-v2": "torchvision:mobilenet_v2",
    "convnext-tiny": "torchvision:convnext_tiny",
    "vit-b-16": "torchvision:vit_b_16",
}
"""Plain name -> where it comes from."""


def is_imagenet(name: str) -> bool:
    """Whether `name` is one that `build` takes: a plain name, torchvision:NAME or timm:NAME."""
    return name in PLAIN or name.startswith(PREFIXES)


def build(name: str, input_shape: tuple[int, int, int], num_classes: int, weights: Weights = None) -> nn.Module:
    """Build a network of torchvision or timm; weights: see `models.build`."""
    source, _, inner = PLAIN.get(name, name).partition(":")
    if weights is not None and num_classes != 1000:
        raise OptionError(
            f"The pretrained weights of {name} tell 1000 classes apart, not {num_classes}. "
            'Leave out weights="pretrained", or num_classes.'
        )
    return (_build_torchvision if source == "torchvision" else _build_timm)(inner, input_shape, num_classes, weights)


def _build_torchvision(
    name: str, input_shape: tuple[int, int, int], num_classes: int, weights: Weights = None
) -> nn.Module:
    networks = torchvision().models
    known: list[str] = networks.list_models(module=networks)
    if name not in known:
        raise OptionError(f"torchvision has no classification network {name!r}. {_hint(name, known)}")
    channels, height, width = input_shape
    if channels != 3:
        raise ModelError(f"torchvision:{name} takes images of 3 channels, not {channels}.")
    options: dict[str, Any] = {"num_classes": num_classes}
    if name.startswith("vit_"):
        if height != width or (height != 224 and weights is not None):
            raise ModelError(f"torchvision:{name} takes square images, pretrained 224x224, not {height}x{width}.")
        options["image_size"] = height
    if weights is None:
        return networks.get_model(name, weights=None, **options)  # type: ignore[no-any-return]
    # The first weights that torchvision published, those of the literature; its later ones are trained otherwise.
    published = networks.get_model_weights(name).IMAGENET1K_V1
    file = Path(torch.hub.get_dir()) / "checkpoints" / Path(published.url).name
    _require_published(file)
    try:
        with _tensors_only():
            return networks.get_model(name, weights=published)  # type: ignore[no-any-return]
    except Exception as error:  # no connection, no space, another hash than the name's, or more than tensors
        raise ModelError(
            f"The pretrained weights of torchvision:{name} cannot be downloaded: {error}. Connect to the network, "
            f"or put {file.name} from a machine that is connected into {file.parent}."
        ) from error


def _require_published(file: Path) -> None:
    """Raise ModelError when `file` is there and not what was published, by the hash in its name (name-HASH.pth).

    torch.hub checks that of what it downloads, but not of what it finds.
    """
    hashed = re.fullmatch(r".*-([0-9a-f]{8,})", file.stem)
    if (
        hashed is not None
        and file.is_file()
        and not hashlib.sha256(read_regular(file)).hexdigest().startswith(hashed[1])
    ):
        raise ModelError(f"{file} is not what was published: its SHA-256 is not that of its name. Delete it.")


@contextlib.contextmanager
def _tensors_only() -> Iterator[None]:
    """torchvision has no argument for it: have torch.load refuse all but tensors, since a pickle may run any code."""
    before = os.environ.get(_ONLY)
    os.environ[_ONLY] = "1"
    try:
        yield
    finally:
        os.environ.pop(_ONLY)
        if before is not None:
            os.environ[_ONLY] = before


def _build_timm(name: str, input_shape: tuple[int, int, int], num_classes: int, weights: Weights = None) -> nn.Module:
    if importlib.util.find_spec("timm") is None:
        raise ModelError(f"timm:{name} needs timm, which is not installed: pip install timm.")
    declare_missing_operators()
    timm: Any = importlib.import_module("timm")
    if not timm.is_model(name):
        raise OptionError(f"timm has no network {name!r}. {_hint(name, timm.list_models())}")
    try:
        with _tensors_only():
            return timm.create_model(  # type: ignore[no-any-return]  # timm is loaded by name
                name, pretrained=weights is not None, num_classes=num_classes, in_chans=input_shape[0]
            )
    except Exception as error:  # what a network refuses, and what its hub raises without a connection
        raise ModelError(
            f"timm:{name} cannot be built: {type(error).__name__}: {error}. Check the shape of the images, "
            "and the connection if pretrained weights are asked for."
        ) from error


def _hint(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=5, cutoff=0.5)
    return f"Close to it: {', '.join(close)}." if close else f"It has {', '.join(known[:100])}."
