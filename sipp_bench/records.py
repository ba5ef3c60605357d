"""What the files of a run folder hold: values to JSON text and arrays to safetensors, and back, checked.

The JSON is standard: keys sorted, NaN written as null, infinities as the strings "Infinity" and "-Infinity".
The same content gives the same bytes.
"""

import functools
import hashlib
import io
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray

from sipp_bench.errors import StoreError

FORMAT = 1
"""The version of the format of run folders."""

Arrays = Mapping[str, Mapping[str, NDArray[Any]]]
"""Weight name -> array name -> array of shape (neurons, 2); the second axis is (+ block, - block)."""


def to_json(content: Mapping[str, Any]) -> str:
    """JSON text of `content`; numbers of numpy and torch, tuples and non-finite floats are allowed in it."""
    return json.dumps(plain(content), allow_nan=False, sort_keys=True, indent=1, ensure_ascii=False) + "\n"


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises StoreError, naming it, when it cannot be read or is damaged."""
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise StoreError(f"Cannot read {path}: {error.strerror}. {_repair(path)}") from error
    except ValueError as error:
        raise damaged(path) from error
    if not isinstance(content, dict):
        raise damaged(path)
    return content


def check_format(path: Path, content: Mapping[str, Any]) -> None:
    """Raise StoreError when `content`, read from `path`, is of a format that this version does not read."""
    if content.get("format") != FORMAT:
        raise StoreError(
            f"{path} has format {content.get('format')!r}; this sipp-bench reads format {FORMAT}. "
            "Use the version of sipp-bench that wrote it."
        )


def damaged(path: Path) -> StoreError:
    """The error for a file of a run folder that is not as it was written; raise it."""
    return StoreError(f"{path} is missing, truncated or changed. {_repair(path)}")


def _repair(path: Path) -> str:
    what = "the run folder" if path.name == "run.json" else "the files of that cell"
    return f"Delete {what} and run the suite again."


def pack(blocks: Arrays) -> tuple[bytes, dict[str, Any]]:
    """Arrays as the content of a safetensors file, keys "weight name/array name"; and its size and hash."""
    arrays = {
        f"{weight}/{name}": np.ascontiguousarray(array)
        for weight, named in blocks.items()
        for name, array in named.items()
    }
    content = safetensors.numpy.save(dict(sorted(arrays.items())))
    return content, {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def unpack(path: Path, described: Mapping[str, Any]) -> dict[str, dict[str, NDArray[Any]]]:
    """The arrays in a file that `pack` made. Raises StoreError when it is missing or not as described."""
    blocks: dict[str, dict[str, NDArray[Any]]] = {}
    for key, array in safetensors.numpy.load(_read_as_described(path, described)).items():
        weight, _, name = key.rpartition("/")
        blocks.setdefault(weight, {})[name] = array
    return blocks


def pack_predictions(predicted: Mapping[str, NDArray[Any]]) -> tuple[bytes, dict[str, Any]]:
    """Classes (points,) by name as the content of a compressed npz file, in the smallest dtype; its size and hash."""
    small = {name: classes.astype(np.min_scalar_type(int(classes.max()))) for name, classes in predicted.items()}
    content = io.BytesIO()
    np.savez_compressed(content, **dict(sorted(small.items())))  # type: ignore[arg-type]  # its stub minds a flag
    return content.getvalue(), {"bytes": content.tell(), "sha256": hashlib.sha256(content.getvalue()).hexdigest()}


def unpack_predictions(path: Path, described: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
    """The classes in a file that `pack_predictions` made. Raises StoreError when it is missing or not as described."""
    with np.load(io.BytesIO(_read_as_described(path, described)), allow_pickle=False) as arrays:
        return dict(arrays)


def _read_as_described(path: Path, described: Mapping[str, Any]) -> bytes:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise damaged(path) from error
    if hashlib.sha256(content).hexdigest() != described["sha256"]:
        raise damaged(path)
    return content


@functools.singledispatch
def plain(value: Any) -> Any:
    """`value` in the types of JSON, as reading it back from JSON would give it."""
    return plain(value.item()) if hasattr(value, "item") else value


@plain.register
def _(value: float) -> float | str | None:
    if math.isfinite(value):
        return float(value)
    return None if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


@plain.register
def _(value: Mapping) -> dict[str, Any]:  # type: ignore[type-arg]  # singledispatch takes bare classes only
    return {str(key): plain(item) for key, item in value.items()}


@plain.register(list)
@plain.register(tuple)
def _(value: Iterable[Any]) -> list[Any]:
    return [plain(item) for item in value]
