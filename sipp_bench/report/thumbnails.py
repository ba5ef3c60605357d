"""Small pictures of the test images whose predictions changed, and the names of classes, where the data is at hand."""

from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sipp_bench.errors import SippBenchError
from sipp_bench.zoo import data

SHOWN = 200
"""At most this many images of one network on one data set: those whose predictions changed in most models."""
LARGEST = 48
"""Pixels of a thumbnail's longer side; smaller images keep their size."""
COLUMNS = 20


@dataclass(frozen=True)
class Sheet:
    """All thumbnails of one network as one PNG: `columns` a row, each `width` x `height` pixels, in the given order."""

    png: bytes
    width: int
    height: int
    columns: int = COLUMNS


def class_names(name: str, count: int) -> list[str]:
    """The names of a data set's classes; their numbers where it is not known or not here."""
    try:
        names = list(data.describe(name).classes)
    except (SippBenchError, OSError):
        names = []
    return names if len(names) >= count else [str(index) for index in range(count)]


def most_flipped(dense: NDArray[Any], others: list[NDArray[Any]]) -> NDArray[np.int64]:
    """Positions in the test part that most of the `others` predict otherwise than `dense`, at most SHOWN, sorted."""
    counts = np.zeros(len(dense), dtype=np.int64)
    for predicted in others:
        counts += predicted != dense
    by_count = np.argsort(-counts, kind="stable")[:SHOWN]
    return np.sort(by_count[counts[by_count] > 0])


def draw_sheet(
    name: str, seed: int, positions: NDArray[np.int64], labels: NDArray[Any], known: Mapping[str, Any]
) -> tuple[Sheet | None, str]:
    """The sheet of these test images, or None and the reason why there is none.

    labels: of the whole test part, as the run stored them; known: what run.json says of the data. Images of other
    data than the run's would be worse than none: the hash and the labels must agree.
    """
    try:
        loaded = data.load(name, seed=seed)
        source = data.describe(name)
    except (SippBenchError, OSError) as error:
        return None, f"The images are not shown: {error}"
    if loaded.sha256 != known.get("sha256", loaded.sha256) or not np.array_equal(loaded.test.labels.numpy(), labels):
        return None, f"The images are not shown: {name} on this machine is not the data that the run had."
    pixels = loaded.test.images[positions].numpy()
    if source.mean is not None and source.std is not None:
        pixels = pixels * np.reshape(source.std, (-1, 1, 1)) + np.reshape(source.mean, (-1, 1, 1))
    return _sheet((255 * pixels).round().clip(0, 255).astype(np.uint8)), ""


def _sheet(pixels: NDArray[np.uint8]) -> Sheet:
    """From (n, channels, height, width)."""
    count, channels, height, width = pixels.shape
    scale = min(1.0, LARGEST / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    rows = -(-count // COLUMNS)
    grey = channels != 3
    page = Image.new("L" if grey else "RGB", (COLUMNS * size[0], rows * size[1]))
    for index, image in enumerate(pixels):
        tile = Image.fromarray(image[0] if grey else image.transpose(1, 2, 0))
        page.paste(tile.resize(size), ((index % COLUMNS) * size[0], index // COLUMNS * size[1]))
    buffer = BytesIO()
    page.save(buffer, format="PNG", optimize=True)
    return Sheet(buffer.getvalue(), *size)
