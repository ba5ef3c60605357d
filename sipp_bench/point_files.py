"""Points from files: arrays as they are, images as classification networks of torchvision expect them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import psutil
import torch
from torch import Tensor

from sipp_bench.errors import PointsError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
_IMAGES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")


def read_points(path: Path | str, *, image_size: int = 224, limit: int | None = None) -> Tensor | dict[str, Tensor]:
    """Read points (N, ...), or several arrays of as many rows by name, which go to the network as keyword arguments.

    path: a .npy, .npz or .safetensors file, or a .pt or .pth file of a tensor or a dict of tensors by torch.save, with
    one array (N, ...) or several. Floating-point numbers become float32; signed whole numbers and booleans stay what
    they are. Of several arrays, "labels" and "label" are not given to the network. Or path is a folder of images (with
    its subfolders, in sorted order), each converted to RGB, scaled and cropped around its centre to image_size x
    image_size, divided by 255, and normalised by the mean and standard deviation of ImageNet.
    limit: the first so many only.
    Raises PointsError, naming the file, for what is missing, empty, unreadable, of another type or shape.
    """
    path = Path(path)
    if path.is_dir():
        return _read_images(path, image_size, limit)
    if path.suffix not in _READERS:
        raise PointsError(f"{path} is neither a folder of images nor a {', '.join(_READERS)} file.")
    try:
        arrays = _READERS[path.suffix](path)
    except FileNotFoundError as error:
        raise PointsError(f"There is no file {path} with points. Check its name.") from error
    except PointsError:
        raise
    except Exception as error:  # damaged files raise whatever their format's reader raises
        raise PointsError(f"{path} cannot be read as a {path.suffix} file: {error}. Write it again.") from error
    if not isinstance(arrays, Mapping):
        return _as_points(str(path), arrays, limit, 2)
    if not arrays:
        raise PointsError(f"{path} holds no array. Save the points in it.")
    if len(arrays) == 1:
        return _as_points(str(path), next(iter(arrays.values())), limit, 2)
    points = {str(name): _as_points(f"{name!r} of {path}", array, limit, 1) for name, array in arrays.items()}
    if len({array.shape[0] for array in arrays.values()}) > 1:
        rows = ", ".join(f"{name} {array.shape[0]}" for name, array in arrays.items())
        raise PointsError(f"The arrays of {path} have different numbers of rows ({rows}): give one for each point.")
    return points


def _as_points(name: str, array: Any, limit: int | None, dimensions: int) -> Tensor:
    """An array as a tensor that a network takes. dimensions: how many it has at least."""
    if not isinstance(array, Tensor | np.ndarray):
        raise PointsError(f"{name} is a {type(array).__name__}. Save tensors: one, or a dict of them by name.")
    if array.ndim < dimensions or len(array) == 0:
        raise PointsError(
            f"{name} has shape {tuple(array.shape)}. Points are rows: give (N, ...) with at least one row."
        )
    if isinstance(array, Tensor):
        array = array[:limit].detach()
        array = (array.float() if array.is_floating_point() else array).numpy()  # numpy has no bfloat16
    if np.issubdtype(array.dtype, np.signedinteger) or array.dtype == bool:
        return torch.from_numpy(np.array(array[:limit]))
    if not np.issubdtype(array.dtype, np.floating):
        raise PointsError(
            f"{name} has {array.dtype} numbers. Scale them as the network expects and save them as float32, or as "
            "int64 where they are indices."
        )
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, which points must not be
        return torch.from_numpy(np.array(array[:limit], dtype=np.float32))


def _read_images(folder: Path, size: int, limit: int | None) -> Tensor:
    files = image_files(folder)[:limit]
    if not files:
        raise PointsError(f"There are no images in {folder}. It takes {', '.join(_IMAGES)} files.")
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    return torch.stack([(torch.from_numpy(read_image(file, size)).float() / 255 - mean) / std for file in files])


def image_files(folder: Path) -> list[Path]:
    """The images in a folder and its subfolders, sorted; files of other kinds are passed over."""
    return sorted(file for file in folder.rglob("*") if file.suffix.lower() in _IMAGES)


def read_image(file: Path, size: int) -> npt.NDArray[np.uint8]:
    """An image as bytes (3, size, size): RGB, scaled, cropped around its centre. Raises PointsError if damaged."""
    from PIL import Image, ImageOps

    try:
        with Image.open(file) as image:
            square = ImageOps.fit(image.convert("RGB"), (size, size), Image.Resampling.BILINEAR)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise PointsError(f"{file} cannot be read as an image: {error}. Repair or remove it.") from error
    return np.array(square).transpose(2, 0, 1).copy()


def memory_bytes() -> int:
    """Bytes of memory in this machine."""
    return int(psutil.virtual_memory().total)


def _read_npy(path: Path) -> Any:
    return np.load(path, mmap_mode="r", allow_pickle=False)


def _read_npz(path: Path) -> Any:
    with np.load(path, allow_pickle=False) as arrays:
        # Compressed arrays may be a thousand times as large as their file.
        needed, there = sum(entry.file_size for entry in arrays.zip.infolist()), memory_bytes()
        if needed > there / 2:
            raise PointsError(
                f"{path} needs {needed / 2**30:.0f} GB of memory of {there / 2**30:.0f}. Save fewer points, or as .npy."
            )
        return dict(arrays)


def _read_safetensors(path: Path) -> Any:
    from safetensors.torch import load_file

    return load_file(path)


def _read_torch(path: Path) -> Any:
    return torch.load(path, map_location="cpu", weights_only=True)


_READERS = {
    ".npy": _read_npy, ".npz": _read_npz, ".safetensors": _read_safetensors, ".pt": _read_torch, ".pth": _read_torch,
}  # fmt: skip
