"""Points from arrays and images on disk, and what is said about those that can't be used."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from sipp_bench.errors import PointsError
from sipp_bench.network.point_files import IMAGENET_MEAN, IMAGENET_STD, read_points

POINTS = np.arange(24, dtype=np.float64).reshape(4, 6)


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".safetensors"])
def test_arrays(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"points{suffix}"
    if suffix == ".npy":
        np.save(file, POINTS)
    elif suffix == ".npz":
        np.savez(file, points=POINTS)
    else:
        save_file({"points": torch.from_numpy(POINTS)}, file)
    points = read_points(file)
    assert points.dtype == torch.float32
    np.testing.assert_array_equal(points.numpy(), POINTS.astype(np.float32))
    np.testing.assert_array_equal(read_points(file, limit=3).numpy(), POINTS[:3].astype(np.float32))


def test_several_arrays_by_name_whole_numbers_and_truth_values_as_they_are(tmp_path: Path) -> None:
    ids, mask = np.arange(12).reshape(4, 3), np.arange(12).reshape(4, 3) % 2 == 0
    tensors = {"ids": torch.from_numpy(ids), "mask": torch.from_numpy(mask), "x": torch.from_numpy(POINTS)}
    np.savez(tmp_path / "x.npz", ids=ids, mask=mask, x=POINTS)
    save_file(tensors, tmp_path / "x.safetensors")
    torch.save(tensors, tmp_path / "x.pt")
    for suffix in ("npz", "safetensors", "pt"):
        points = read_points(tmp_path / f"x.{suffix}", limit=3)
        assert isinstance(points, dict)
        assert {name: column.dtype for name, column in points.items()} == {
            "ids": torch.int64, "mask": torch.bool, "x": torch.float32,
        }  # fmt: skip
        assert torch.equal(points["ids"], tensors["ids"][:3])
        assert torch.equal(points["mask"], tensors["mask"][:3])
        assert torch.equal(points["x"], tensors["x"][:3].float())
    torch.save(tensors["ids"], tmp_path / "ids.pt")
    np.save(tmp_path / "ids.npy", ids.astype(np.int32))
    for name, dtype in (("ids.pt", torch.int64), ("ids.npy", torch.int32)):
        alone = read_points(tmp_path / name)
        assert isinstance(alone, torch.Tensor)
        assert torch.equal(alone, tensors["ids"].to(dtype))
        assert alone.dtype == dtype


def test_bfloat16(tmp_path: Path) -> None:
    save_file({"x": torch.ones(2, 3, dtype=torch.bfloat16)}, tmp_path / "x.safetensors")
    assert torch.equal(read_points(tmp_path / "x.safetensors"), torch.ones(2, 3))


def test_images_in_sorted_order_normalised(tmp_path: Path) -> None:
    (tmp_path / "class").mkdir()
    Image.new("RGB", (30, 20), (255, 0, 0)).save(tmp_path / "class" / "b.png")
    Image.new("L", (8, 8), 0).save(tmp_path / "a.PNG")
    (tmp_path / "notes.txt").write_text("not an image")
    points = read_points(tmp_path, image_size=16)
    assert points.shape == (2, 3, 16, 16)
    black = -torch.tensor(IMAGENET_MEAN) / torch.tensor(IMAGENET_STD)
    red = (torch.tensor([1.0, 0, 0]) - torch.tensor(IMAGENET_MEAN)) / torch.tensor(IMAGENET_STD)
    torch.testing.assert_close(points[0], black.view(3, 1, 1).expand(3, 16, 16))
    torch.testing.assert_close(points[1], red.view(3, 1, 1).expand(3, 16, 16))
    assert torch.equal(read_points(tmp_path, image_size=16, limit=1), points[:1])


def test_images_are_cropped_around_the_centre_not_squeezed(tmp_path: Path) -> None:
    wide = np.zeros((10, 30, 3), dtype=np.uint8)
    wide[:, 10:20] = 255
    Image.fromarray(wide).save(tmp_path / "wide.png")
    points = read_points(tmp_path, image_size=10)
    white = (1 - torch.tensor(IMAGENET_MEAN)) / torch.tensor(IMAGENET_STD)
    torch.testing.assert_close(points[0], white.view(3, 1, 1).expand(3, 10, 10))


def save(path: Path, array: np.ndarray) -> Path:  # type: ignore[type-arg]  # any type is the point
    np.save(path, array)
    return path


def test_refusals_name_the_file(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "x.jpg").write_bytes(b"\xff\xd8\xff not a picture")
    np.savez(tmp_path / "two.npz", a=POINTS, b=POINTS[:2])
    np.savez(tmp_path / "empty.npz")
    torch.save({"layer": {"weight": torch.ones(2, 2)}, "other": torch.ones(2, 2)}, tmp_path / "nested.pt")
    torch.save(torch.nn.Linear(2, 2), tmp_path / "module.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    (tmp_path / "cut.npy").write_bytes(save(tmp_path / "whole.npy", POINTS).read_bytes()[:60])
    (tmp_path / "cut.safetensors").write_bytes(b"\x00")
    save(tmp_path / "objects.npy", np.array([{}, []], dtype=object))
    save(tmp_path / "bytes.npy", np.zeros((2, 3), dtype=np.uint8))
    save(tmp_path / "flat.npy", np.zeros(3))
    save(tmp_path / "none.npy", np.zeros((0, 3)))
    (tmp_path / "points.csv").write_text("1,2")
    expected = {
        "empty": "no images in",
        "broken": r"x\.jpg cannot be read as an image",
        "two.npz": r"different numbers of rows \(a 4, b 2\)",
        "empty.npz": "no array",
        "nested.pt": "'layer' of .* is a dict",
        "module.pt": "cannot be read",
        "list.pt": "is a list",
        "cut.npy": "cannot be read",
        "cut.safetensors": "cannot be read",
        "objects.npy": "cannot be read",
        "bytes.npy": "uint8.*float32",
        "flat.npy": r"shape \(3,\)",
        "none.npy": r"shape \(0, 3\)",
        "points.csv": "neither a folder of images nor",
        "missing.npy": "no file",
        "missing.npz": "no file",
        "missing.safetensors": "no file",
    }
    for name, sentence in expected.items():
        with pytest.raises(PointsError, match=sentence) as caught:
            read_points(tmp_path / name)
        assert name in str(caught.value)
