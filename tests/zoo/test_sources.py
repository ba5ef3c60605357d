"""Data in folders: found where it lies, refused when damaged, and never split across the published test set."""

import gzip
import pickle
import sys
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
import torch
from installed import lacking
from PIL import Image

from sipp_bench.errors import DataError
from sipp_bench.machine import memory
from sipp_bench.zoo import data, sources
from sipp_bench.zoo.sources import Idx

ROWS, TEST = 10_700, 300


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """An empty data folder, the only one that is searched."""
    monkeypatch.setenv("SIPP_BENCH_DATA", str(tmp_path))
    monkeypatch.setattr(sources, "data_dirs", lambda: (tmp_path,))
    data._read_checked.cache_clear()
    yield tmp_path
    data._read_checked.cache_clear()


def write_idx(folder: Path, *, packed: bool, rows: int = ROWS, test: int = TEST) -> tuple[str, str, str, str]:
    """MNIST's four files with small random content; returns the hashes of their contents."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    hashes = []
    for name in Idx.FILES:
        n = test if name.startswith("t10k") else rows - test
        size = n * 784 if "images" in name else n
        body = rng.integers(0, 256 if "images" in name else 10, size, dtype=np.uint8).tobytes()
        content = bytes(16 if "images" in name else 8) + body
        hashes.append(sources.hashlib.sha256(content).hexdigest())
        path = folder / (f"{name}.gz" if packed else name)
        path.write_bytes(gzip.compress(content, 1) if packed else content)
    return hashes[0], hashes[1], hashes[2], hashes[3]


def plant(monkeypatch: pytest.MonkeyPatch, hashes: tuple[str, str, str, str]) -> None:
    """Make "mnist" a data set of ROWS rows with these hashes."""
    idx = Idx("mnist", "MNIST", hashes)
    source = sources.Source(idx.read, None, 255, tuple("0123456789"), (1, 28, 28), ROWS, TEST)
    monkeypatch.setitem(data._SOURCES, "mnist", source)


@pytest.mark.parametrize(("place", "packed"), [("mnist", True), ("MNIST/raw", False)])
def test_published_files_are_read_and_the_test_set_stays_the_test_set(
    folder: Path, monkeypatch: pytest.MonkeyPatch, place: str, packed: bool
) -> None:
    plant(monkeypatch, write_idx(folder / place, packed=packed))
    for seed in (0, 1):
        found = data.load("mnist", seed)
        assert torch.equal(found.test.indices, torch.arange(ROWS - TEST, ROWS))
        parts = (found.train, found.points, found.validation, found.test)
        assert tuple(map(len, parts)) == data.sizes(data.describe("mnist")) == (400, 5_000, 5_000, TEST)
        assert torch.equal(torch.cat([part.indices for part in parts]).sort().values, torch.arange(ROWS))
        images, labels, _ = data._read_checked("mnist")
        assert torch.equal((found.points.images[:, 0] * 255).round().byte(), torch.tensor(images)[found.points.indices])
        assert torch.equal(found.points.labels, torch.tensor(labels).long()[found.points.indices])


def test_one_changed_byte_is_noticed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch, write_idx(folder / "mnist", packed=False))
    file = folder / "mnist" / "t10k-images-idx3-ubyte"
    content = bytearray(file.read_bytes())
    content[1000] ^= 1
    file.write_bytes(content)
    with pytest.raises(DataError, match=r"t10k-images-idx3-ubyte is not what was published"):
        data.load("mnist")


def test_a_truncated_archive_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch, write_idx(folder / "mnist", packed=True))
    file = folder / "mnist" / "train-labels-idx1-ubyte.gz"
    file.write_bytes(file.read_bytes()[:50])
    with pytest.raises(DataError, match=r"train-labels-idx1-ubyte\.gz cannot be read"):
        data.load("mnist")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("mnist", ["train-images-idx3-ubyte", "--download"]),
        ("fashion-mnist", ["install dataset-fashion-mnist", "--download"]),
        ("cifar-10", ["cifar-10-batches-py", "--download"]),
        ("cifar-100", ["cifar-100-python", "--download"]),
        ("imagenet", ["imagenet/val", "one folder of images for each class"]),
        ("folder:nowhere", ["nowhere", "one folder of images for each class"]),
    ],
)
def test_data_that_is_not_there_is_one_sentence_that_says_what_to_do(name: str, words: list[str]) -> None:
    with pytest.raises(DataError) as caught:
        data.load(name)
    message = str(caught.value)
    assert all(word in message for word in words)
    assert "\n" not in message


@pytest.mark.parametrize("name", ["fashion-mnist", "cifar-10"])
def test_a_download_happens_only_when_it_is_allowed_and_says_when_it_fails(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    asked = []

    def offline(*args: Any, **kwargs: Any) -> None:
        asked.append(args)
        raise URLError("no route to host")

    monkeypatch.setattr("urllib.request.urlopen", offline)
    with pytest.raises(DataError, match="is not on this machine"):
        data.load(name)
    assert not asked
    with pytest.raises(DataError, match=f"{name} cannot be downloaded.*Connect to the network"):
        data.load(name, download=True)
    assert asked


def test_a_cifar_folder_with_other_content_is_refused_before_anything_in_it_is_unpickled(folder: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return sys.exit, ("unpickled",)

    (folder / "cifar-10-batches-py").mkdir()
    for name in ("data_batch_1", "test_batch", "batches.meta"):
        (folder / "cifar-10-batches-py" / name).write_bytes(pickle.dumps(Trap()))
    with pytest.raises(DataError, match="is not what was published"):
        data.load("cifar-10")


def images_by_class(folder: Path, classes: int = 3, each: int = 10) -> None:
    for label in range(classes):
        (folder / f"class_{label}").mkdir(parents=True)
        for number in range(each):
            Image.new("RGB", (40, 30), (80 * label, number, 0)).save(folder / f"class_{label}" / f"{number:02}.png")


def test_a_folder_of_images_by_class(tmp_path: Path) -> None:
    images_by_class(tmp_path / "pets")
    found = data.load(f"folder:{tmp_path / 'pets'}")
    assert found.classes == ("class_0", "class_1", "class_2")
    assert found.input_shape == (3, 224, 224)
    assert [len(part) for part in (found.train, found.points, found.validation, found.test)] == [18, 3, 3, 6]
    reds = found.train.images[:, 0].amax((1, 2)) * 0.229 + 0.485  # ImageNet's normalisation taken back
    assert torch.allclose(reds * 255, found.train.labels * 80.0, atol=0.01)


def test_imagenet_takes_ten_images_of_each_class(folder: Path) -> None:
    images_by_class(folder / "imagenet" / "val", classes=2, each=13)
    found = data.load("imagenet")
    assert [len(part) for part in (found.train, found.points, found.validation, found.test)] == [4, 2, 2, 12]


def test_folders_that_cannot_be_split_or_held_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images_by_class(tmp_path / "pets", classes=2, each=2)
    with pytest.raises(DataError, match="Give more images of each class"):
        data.load(f"folder:{tmp_path / 'pets'}")
    data._read_checked.cache_clear()
    monkeypatch.setattr(memory, "free_bytes", lambda device: 1000)
    with pytest.raises(DataError, match="fewer images of each class"):
        data.load(f"folder:{tmp_path / 'pets'}")
    (tmp_path / "pets" / "empty").mkdir()
    with pytest.raises(DataError, match="1 of its 3 folders have none"):
        data.load(f"folder:{tmp_path / 'pets'}")


def test_test_data_among_the_points_is_refused() -> None:
    digits = data.load("digits")
    digits.require_points(digits.points)
    rows = torch.arange(5)
    leak = data.Part(
        *(
            torch.cat([getattr(digits.points, field), getattr(digits.test, field)[rows]])
            for field in ("images", "labels", "indices")
        )
    )
    with pytest.raises(DataError, match=r"5 of the 185 points .* 5 of them test data"):
        digits.require_points(leak)
    with pytest.raises(DataError, match=r"0 of them test data"):
        digits.require_points(digits.train)


def test_a_split_that_puts_test_rows_among_the_points_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    split = data._split

    def leaking(*arguments: Any) -> Any:
        train, points, validation, test = split(*arguments)
        return [train, np.sort(np.append(points, test[:3])), validation, test]

    monkeypatch.setattr(data, "_split", leaking)
    with pytest.raises(DataError, match="share rows"):
        data.load("digits")


def test_fashion_mnist_of_debian_is_what_was_published(monkeypatch: pytest.MonkeyPatch) -> None:
    if not Path("/usr/share/datasets/fashion-mnist").is_dir():
        lacking("no Fashion-MNIST on this machine (Debian: apt install dataset-fashion-mnist)")
    monkeypatch.undo()
    images, labels, _ = data._read_checked("fashion-mnist")
    assert images.shape == (70_000, 28, 28)
    assert np.bincount(labels[:60_000]).tolist() == [6000] * 10
    assert np.bincount(labels[60_000:]).tolist() == [1000] * 10
