"""Names in, networks out: the zoo's own, torchvision's and timm's classifiers, and a user's own factory."""

import contextlib
import importlib
import sys
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn

from sipp_bench.errors import ModelError, OptionError
from sipp_bench.machine.seeds import require_seed
from sipp_bench.zoo import cifar, imagenet
from sipp_bench.zoo.vision import declare_missing_operators


def list_models() -> list[str]:
    """The networks with plain names, sorted. `build` also takes "torchvision:NAME" and "timm:NAME"."""
    return sorted([*_BUILDERS, *imagenet.PLAIN])


def is_known(name: str) -> bool:
    """Whether `build` takes `name`; of torchvision and timm, whether it looks at theirs."""
    return name in _BUILDERS or imagenet.is_imagenet(name)


def build(
    name: str,
    input_shape: tuple[int, int, int] | None = None,
    num_classes: int | None = None,
    seed: int = 0,
    weights: imagenet.Weights = None,
) -> nn.Module:
    """Build a network, in eval mode, float32, on the CPU.

    name: one of `list_models`, "torchvision:NAME", or "timm:NAME" where timm is installed.
    input_shape: (channels, height, width) of one image; by default (1, 28, 28) for the LeNets, (3, 32, 32) for the
    networks of CIFAR, (3, 224, 224) for those of ImageNet.
    num_classes: number of logits; by default 10, for ImageNet's 1000.
    seed: the initialisation follows from it alone; the global random state is left as it was.
    weights: None for an untrained network, and nothing is downloaded; "pretrained" for the weights that torchvision
    (its IMAGENET1K_V1) or timm publishes, downloaded unless they are on the machine.

    Raises OptionError for an unknown name or weights that do not exist, ModelError for a shape that the network
    cannot take, a package that is missing and a download that fails.
    """
    if not is_known(name):
        raise OptionError(
            f"There is no network {name!r}. Choose one of {', '.join(list_models())}, "
            "torchvision:NAME (such as torchvision:resnet18) or timm:NAME."
        )
    if weights not in (None, "pretrained"):
        raise OptionError(f'weights is None or "pretrained", not {weights!r}.')
    with seeded(seed):
        if imagenet.is_imagenet(name):
            return imagenet.build(name, input_shape or (3, 224, 224), num_classes or 1000, weights).eval()
        if weights is not None:
            raise OptionError(f"There are no pretrained weights of {name}. Train it, or load a checkpoint.")
        shape = input_shape or ((3, 32, 32) if name in cifar.BUILDERS else (1, 28, 28))
        return _BUILDERS[name](shape, num_classes or 10).eval()


@contextlib.contextmanager
def seeded(seed: int, device: torch.device | str = "cpu") -> Iterator[None]:
    """Draw from the global generators of the CPU and `device` as if freshly seeded; then put their states
    back.

    torch.manual_seed would do for the drawing, but it also reseeds devices whose state is not put back.
    """
    cuda = [torch.device(device)] if torch.device(device).type == "cuda" else []
    seed = require_seed(seed)
    with torch.random.fork_rng(devices=cuda):
        torch.default_generator.manual_seed(seed)
        for each in cuda:
            with torch.cuda.device(each):
                torch.cuda.manual_seed(seed)
        yield


def load_factory(spec: str) -> nn.Module:
    """Call a user's function and return the network it makes.

    spec: "package.module:factory". The module is looked up on sys.path and, during this call only, in the
    current folder. The factory is called without arguments. This runs the user's code, as they asked.

    Raises OptionError when `spec` is not of that form; ModelError when the module or the factory is
    missing, when either raises, or when what comes back is not a torch.nn.Module.
    """
    module_name, colon, attribute = spec.partition(":")
    if not (colon and attribute.isidentifier() and all(part.isidentifier() for part in module_name.split("."))):
        raise OptionError(f"{spec!r} does not name a factory. Write package.module:factory, such as my_nets:small_cnn.")
    with _current_folder_importable():
        try:
            declare_missing_operators()  # the user's module may import torchvision
            module = importlib.import_module(module_name)
        except (Exception, SystemExit) as error:
            raise ModelError(
                f"The module of {spec!r} cannot be imported: {type(error).__name__}: {error}. "
                "Run from the folder that holds it, or install its package."
            ) from error
        factory = getattr(module, attribute, None)
        if not callable(factory):
            raise ModelError(
                f"The module {module_name!r} has no function {attribute!r}. "
                f"Define `def {attribute}() -> torch.nn.Module` there, or name another."
            )
        try:
            model = factory()
        except (Exception, SystemExit) as error:
            raise ModelError(
                f"The factory {spec!r}, called without arguments, raised {type(error).__name__}: {error}."
            ) from error
    if not isinstance(model, nn.Module):
        raise ModelError(f"The factory {spec!r} returned a {type(model).__name__}. It must return a torch.nn.Module.")
    return model


@contextlib.contextmanager
def _current_folder_importable() -> Iterator[None]:
    folder = str(Path.cwd())
    sys.path.insert(0, folder)
    importlib.invalidate_caches()
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(folder)


def _lenet_300_100(input_shape: tuple[int, int, int], num_classes: int) -> nn.Module:
    """Linear inputs-300-100-classes, ReLU between; 266,610 parameters for 28x28 images and 10 classes."""
    channels, height, width = input_shape
    return nn.Sequential(
        OrderedDict(
            flatten=nn.Flatten(),
            fc1=nn.Linear(channels * height * width, 300),
            relu1=nn.ReLU(),
            fc2=nn.Linear(300, 100),
            relu2=nn.ReLU(),
            fc3=nn.Linear(100, num_classes),
        )
    )


def _lenet_5(input_shape: tuple[int, int, int], num_classes: int) -> nn.Module:
    """The Caffe variant's sizes: 5x5 convolutions to 20 and 50 channels, unpadded, 2x2 max-pooling, 500
    hidden.

    431,080 parameters for 28x28x1 images and 10 classes. Unlike in Caffe's example, a ReLU follows each
    convolution too. (LeCun's own of 1998, with 6 and 16 channels and trained subsampling, has about 60,000.)
    """
    channels, height, width = input_shape
    if min(height, width) < 28:
        raise ModelError(
            f"lenet-5 takes images of at least 28x28 pixels, not {height}x{width}. "
            "Use lenet-300-100 for smaller images, or a data set of larger ones."
        )
    positions = (((height - 4) // 2 - 4) // 2) * (((width - 4) // 2 - 4) // 2)
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(channels, 20, 5),
            relu1=nn.ReLU(),
            pool1=nn.MaxPool2d(2),
            conv2=nn.Conv2d(20, 50, 5),
            relu2=nn.ReLU(),
            pool2=nn.MaxPool2d(2),
            flatten=nn.Flatten(),
            fc1=nn.Linear(50 * positions, 500),
            relu3=nn.ReLU(),
            fc2=nn.Linear(500, num_classes),
        )
    )


_BUILDERS: dict[str, cifar.Builder] = {"lenet-300-100": _lenet_300_100, "lenet-5": _lenet_5, **cifar.BUILDERS}
