"""Readers of data that lies in a folder: MNIST's and CIFAR's published files, and folders of images by class.

Nothing is downloaded here unless `fetch` is called, and every published file is checked by its hash before use.
"""

import gzip
import hashlib
import importlib
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sipp_bench.errors import DataError
from sipp_bench.machine.files import open_regular
from sipp_bench.machine.memory import require_room
from sipp_bench.network.point_files import IMAGENET_MEAN, IMAGENET_STD, image_files, read_image
from sipp_bench.zoo.folders import data_dir, data_dirs
from sipp_bench.zoo.vision import torchvision

_LARGEST = 16 + 60_000 * 28 * 28
"""Bytes in the largest of MNIST's files, unpacked."""

Bytes = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.integer[Any]]


@dataclass(frozen=True)
class Source:
    """Where raw data comes from: `read` gives images (n, height, width) or (n, channels, height, width) of bytes
    and labels (n,).

    sha256: of both; None where `read` checks each file by itself. white: the largest value of a pixel. shape: of
    one image; rows: how many there are; both None if reading tells. official_test: how many of the last rows are
    the published test set, which stays the test part; 0 where nobody split the data. fractions: of test, validation
    and points where nobody did. mean, std: by channel, subtracted and divided by, or None. fetch: downloads.
    """

    read: Callable[[], tuple[Bytes, Labels]]
    sha256: str | None
    white: int
    classes: tuple[str, ...]
    shape: tuple[int, int, int]
    rows: int
    official_test: int = 0
    fractions: tuple[float, float, float] = (0.2, 0.1, 0.1)
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    fetch: Callable[[], None] | None = None


@dataclass(frozen=True)
class Idx:
    """Data published as MNIST's four files, plain or gzipped; sha256: of each uncompressed file, in `FILES`' order."""

    name: str
    torchvision_name: str
    sha256: tuple[str, str, str, str]
    advice: str = ""

    FILES = (
        "train-images-idx3-ubyte",
        "train-labels-idx1-ubyte",
        "t10k-images-idx3-ubyte",
        "t10k-labels-idx1-ubyte",
    )

    def read(self) -> tuple[Bytes, Labels]:
        """60,000 training rows, then the 10,000 of the test set."""
        folder = self._folder()
        if folder is None:
            raise DataError(
                f"{self.name} is not on this machine: {self.advice}put {', '.join(self.FILES)} (or their .gz) into "
                f"{data_dir() / self.name}, or allow the download with --download."
            )
        train, train_labels, test, test_labels = (
            self._content(folder, file, sha256) for file, sha256 in zip(self.FILES, self.sha256, strict=True)
        )
        images = [part[16:].reshape(-1, 28, 28) for part in (train, test)]
        return np.concatenate(images), np.concatenate([train_labels[8:], test_labels[8:]])

    def fetch(self) -> None:
        """Download with torchvision's class, unless the files are there."""
        if self._folder() is None:
            _download(self.name, self.torchvision_name)

    def _folder(self) -> Path | None:
        for root in data_dirs():
            for folder in (root / self.name, root / self.torchvision_name / "raw"):
                if all(any(file.is_file() for file in _either(folder, name)) for name in self.FILES):
                    return folder
        return None

    @staticmethod
    def _content(folder: Path, name: str, sha256: str) -> Bytes:
        file = next(file for file in _either(folder, name) if file.is_file())
        try:
            with open_regular(file) as opened, gzip.open(opened) if file.suffix == ".gz" else opened as unpacked:
                content = unpacked.read(_LARGEST + 1)  # no more: an archive may unpack to anything
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(f"{file} cannot be read: {error}. Get the file again.") from error
        found = hashlib.sha256(content).hexdigest()
        if found != sha256:
            raise DataError(
                f"{file} is not what was published: the SHA-256 of its content is {found}, expected {sha256}. "
                "Get the file again."
            )
        return np.frombuffer(content, np.uint8)


@dataclass(frozen=True)
class Cifar:
    """CIFAR as torchvision's class reads it, which checks each file by the published MD5."""

    name: str
    torchvision_name: str
    folder: str

    def read(self) -> tuple[Bytes, Labels]:
        """50,000 training rows, then the 10,000 of the test set; images (n, 3, 32, 32)."""
        root = self._root()
        if root is None:
            raise DataError(
                f"{self.name} is not on this machine: put the unpacked folder {self.folder} into {data_dir()}, "
                "or allow the download with --download."
            )
        make = getattr(_datasets(), self.torchvision_name)
        try:
            parts = [make(root, train=train) for train in (True, False)]
        except (RuntimeError, OSError, ValueError, EOFError) as error:
            raise DataError(
                f"{root / self.folder} is not what was published, by the hashes of its files: {error}. "
                "Delete it, and unpack the archive again."
            ) from error
        images = np.concatenate([part.data for part in parts]).transpose(0, 3, 1, 2)
        return np.ascontiguousarray(images), np.concatenate([np.array(part.targets) for part in parts])

    def fetch(self) -> None:
        """Download with torchvision's class, unless the folder is there."""
        if self._root() is None:
            _download(self.name, self.torchvision_name)

    def _root(self) -> Path | None:
        candidates = (folder for root in data_dirs() for folder in (root, root / self.name))
        return next((folder for folder in candidates if (folder / self.folder).is_dir()), None)


@dataclass(frozen=True)
class ImageFolder:
    """Images in one folder a class, as ImageNet is kept: FOLDER/CLASS/image, brought to `size` x `size` pixels.

    per_class: the first so many of each class by name; None for all.
    """

    folder: Path
    size: int = 224
    per_class: int | None = None

    def files(self) -> list[list[Path]]:
        """The images of each class, classes and images in sorted order. Raises DataError when there are none."""
        if not self.folder.is_dir():
            raise DataError(f"There is no folder {self.folder}: make it, with one folder of images for each class.")
        found = [image_files(each)[: self.per_class] for each in self._folders()]
        if len(found) < 2 or not all(found):
            raise DataError(
                f"{self.folder} must hold at least two folders, one for each class, each with images in it; "
                f"{sum(not files for files in found)} of its {len(found)} folders have none."
            )
        return found

    def _folders(self) -> list[Path]:
        return sorted(entry for entry in self.folder.iterdir() if entry.is_dir())

    def read(self) -> tuple[Bytes, Labels]:
        """Images (n, 3, size, size), class by class, and the classes' positions."""
        files = self.files()
        rows = sum(map(len, files))
        try:
            require_room(rows * 3 * self.size**2 * 5)  # as bytes, and as float32
        except OSError as error:
            raise DataError(
                f"The {rows} images in {self.folder} cannot be read: {error.strerror}. "
                "Give a folder with fewer images of each class."
            ) from error
        images = np.empty((rows, 3, self.size, self.size), np.uint8)
        for row, file in enumerate(file for each in files for file in each):
            images[row] = read_image(file, self.size)
        return images, np.repeat(np.arange(len(files)), [len(each) for each in files])

    def source(self, fractions: tuple[float, float, float] = (0.2, 0.1, 0.1)) -> Source:
        """The folder as a source, normalised as ImageNet's networks expect."""
        files = self.files()
        return Source(
            self.read,
            None,
            255,
            tuple(folder.name for folder in self._folders()),
            (3, self.size, self.size),
            sum(map(len, files)),
            fractions=fractions,
            mean=IMAGENET_MEAN,
            std=IMAGENET_STD,
        )


def _either(folder: Path, name: str) -> tuple[Path, Path]:
    return folder / f"{name}.gz", folder / name


def _datasets() -> Any:
    torchvision()
    return importlib.import_module("torchvision.datasets")


def _download(name: str, torchvision_name: str) -> None:
    try:
        getattr(_datasets(), torchvision_name)(data_dir(), download=True)
    except (OSError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise DataError(
            f"{name} cannot be downloaded to {data_dir()}: {reason}. Connect to the network, or put its files there."
        ) from error
