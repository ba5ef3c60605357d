"""Points from files: arrays as they are, images as classification networks of torchvision expect them."""

import errno
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sipp_bench.errors import PointsError
from sipp_bench.machine.files import load_tensors, open_regular, read_regular
from sipp_bench.machine.memory import require_room

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
        open_regular(path).close()
        arrays = _READERS[path.suffix](path)
        _require_room(arrays if isinstance(arrays, Mapping) else {"": arrays}, limit)
    except FileNotFoundError as error:
        raise PointsError(f"There is no file {path} with points. Check its name.") from error
    except OSError as error:
        advice = "Give a file of points"
        if error.errno == errno.ENOMEM:
            advice = "Save fewer points, or read the first so many of an .npy file with limit"
        raise PointsError(f"{path} cannot be read: {error.strerror or error}. {advice}.") from error
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


def _require_room(arrays: Mapping[str, Any], limit: int | None) -> None:
    """Raise OSError unless there is memory for the arrays' copies; an .npy file is on the disk until it is copied."""
    shapes = [array.shape for array in arrays.values() if isinstance(array, Tensor | np.ndarray) and array.ndim]
    require_room(sum(8 * min(limit or shape[0], shape[0]) * math.prod(shape[1:]) for shape in shapes))


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
    try:
        require_room(2 * 4 * 3 * len(files) * size**2)  # one by one, and all together
    except OSError as error:
        raise PointsError(
            f"The {len(files)} images in {folder} cannot be read: {error.strerror}. Read fewer points with limit."
        ) from error
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    return torch.stack([(torch.from_numpy(read_image(file, size)).float() / 255 - mean) / std for file in files])


def image_files(folder: Path) -> list[Path]:
    """The images in a folder and its subfolders, sorted; files of other kinds are passed over."""
    return sorted(file for file in folder.rglob("*") if file.suffix.lower() in _IMAGES)


def read_image(file: Path, size: int) -> npt.NDArray[np.uint8]:
    """An image as bytes (3, size, size): RGB, scaled, cropped around its centre. Raises PointsError if damaged."""
    from PIL import Image, ImageOps

    try:
        with open_regular(file) as opened, Image.open(opened) as image:
            require_room(8 * image.width * image.height)  # as it is, and as RGB
            square = ImageOps.fit(image.convert("RGB"), (size, size), Image.Resampling.BILINEAR)
    except (OSError, ValueError, SyntaxError, MemoryError, Image.DecompressionBombError) as error:
        reason = getattr(error, "strerror", None) or error
        raise PointsError(f"{file} cannot be read as an image: {reason}. Repair or remove it.") from error
    return np.array(square).transpose(2, 0, 1).copy()


def _read_npy(path: Path) -> Any:
    return np.load(path, mmap_mode="r", allow_pickle=False)


def _read_npz(path: Path) -> Any:
    with np.load(path, allow_pickle=False) as arrays:
        # Compressed arrays may be a thousand times as large as their file.
        require_room(sum(entry.file_size for entry in arrays.zip.infolist()))
        return dict(arrays)


def _read_safetensors(path: Path) -> Any:
    from safetensors.torch import load_file

    require_room(path.stat().st_size)
    return load_file(path)


def _read_torch(path: Path) -> Any:
    return load_tensors(read_regular(path))


_READERS = {
    ".npy": _read_npy, ".npz": _read_npz, ".safetensors": _read_safetensors, ".pt": _read_torch, ".pth": _read_torch,
}  # fmt: skip
