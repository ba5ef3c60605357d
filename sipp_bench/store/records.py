"""What the files of a run folder hold: values to JSON text and arrays to safetensors, and back, checked.

The JSON is standard: keys sorted, NaN written as null, infinities as the strings "Infinity" and "-Infinity". Every file
carries a hash of its content. The same content gives the same bytes.
"""

import functools
import hashlib
import io
import json
import math
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray

from sipp_bench.errors import StoreError
from sipp_bench.machine.files import printable, read_regular

FORMAT = 1
"""The version of the format of run folders, which `schemas/` states key by key.

A new key that may be missing goes into the schema alone. A key that goes away or changes its meaning needs a new
version, and `store.load_run` must go on reading the old one.
"""

SEAL = "content_sha256"
"""The key of a JSON file's hash over everything else in it."""

_DEPTH = 32
_BLOCK_ARRAYS = frozenset({"epsilon", "error_S", "error_fresh"})
_PREDICTIONS = frozenset({"labels", "dense", "pruned"})
_MOST_CLASSES = 1 << 20
_MOST_UNPACKED = 1 << 30
"""Bytes that the predictions of a cell may unpack to: a few networks' on a hundred million points."""

Arrays = Mapping[str, Mapping[str, NDArray[Any]]]
"""Weight name -> array name -> array of shape (neurons, 2); the second axis is (+ block, - block)."""


def to_json(content: Mapping[str, Any]) -> str:
    """JSON text of `content`; numbers of numpy and torch, tuples and non-finite floats are allowed in it."""
    return json.dumps(plain(content), allow_nan=False, sort_keys=True, indent=1, ensure_ascii=False) + "\n"


def sealed_json(content: Mapping[str, Any]) -> str:
    """As `to_json`, with a hash of all the rest under `SEAL`, by which `read_json` notices what was changed since."""
    return to_json({**content, SEAL: _seal(content)})


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file, without its seal; files of before have none.

    Raises StoreError, naming the file, when it cannot be read, is not as it was written, or is more than results need:
    nested deeply, or with numbers beyond 64 bits.
    """
    try:
        content = json.loads(read_regular(path))
    except OSError as error:
        raise StoreError(f"Cannot read {path}: {error.strerror}. {_repair(path)}") from error
    except (ValueError, RecursionError) as error:
        raise damaged(path) from error
    if not isinstance(content, dict) or not _is_plain(content):
        raise damaged(path)
    seal = content.pop(SEAL, None)
    # Another format may have another seal; `check_format` refuses it in better words.
    if seal not in (None, _seal(content)) and content.get("format", FORMAT) == FORMAT:
        raise damaged(path)
    return content


def _seal(content: Mapping[str, Any]) -> str:
    rest = {key: value for key, value in content.items() if key != SEAL}
    return hashlib.sha256(json.dumps(plain(rest), allow_nan=False, sort_keys=True).encode()).hexdigest()


def _is_plain(content: Any) -> bool:
    """Whether it is what `to_json` writes, in a depth that results have."""
    level = [content]
    for _ in range(_DEPTH):
        inner: list[Any] = []
        for each in level:
            if isinstance(each, dict):
                inner += each.keys()
                inner += each.values()
            elif isinstance(each, list):
                inner += each
            elif isinstance(each, str):
                if not each.isascii() and any("\ud800" <= letter <= "\udfff" for letter in each):
                    return False  # half a surrogate pair, which nothing can print
            elif isinstance(each, int | float) and not abs(each) < (math.inf if isinstance(each, float) else 2**63):
                return False
        if not inner:
            return True
        level = inner
    return False


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


def floats(values: Iterable[Any]) -> list[float]:
    """A list of numbers as `read_json` gives it, in which NaN is None and an infinity is a word."""
    return [math.nan if value is None else float(value) for value in values]


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
    """The arrays in a file that `pack` made.

    Raises StoreError when it is missing or not as described, or holds other arrays than those of a cell's blocks: a
    hash is of what somebody wrote, whatever that is.
    """
    content = _read_as_described(path, described)
    blocks: dict[str, dict[str, NDArray[Any]]] = {}
    try:
        for key, array in safetensors.numpy.load(content).items():
            weight, _, name = key.rpartition("/")
            blocks.setdefault(weight, {})[name] = array
    except Exception as error:  # on other content, the library raises about anything
        raise damaged(path) from error
    for named in blocks.values():
        shapes = {array.shape for array in named.values()}
        numbers = all(array.dtype.kind in "fiu" for array in named.values())
        if not (named.keys() >= _BLOCK_ARRAYS and numbers and len(shapes) == 1 and shapes.pop()[1:] == (2,)):
            raise damaged(path)
    return blocks


def pack_predictions(predicted: Mapping[str, NDArray[Any]]) -> tuple[bytes, dict[str, Any]]:
    """Classes (points,) by name as the content of a compressed npz file, in the smallest dtype; its size and hash."""
    small = {name: classes.astype(np.min_scalar_type(int(classes.max()))) for name, classes in predicted.items()}
    content = io.BytesIO()
    np.savez_compressed(content, **dict(sorted(small.items())))  # type: ignore[arg-type]  # its stub minds a flag
    return content.getvalue(), {"bytes": content.tell(), "sha256": hashlib.sha256(content.getvalue()).hexdigest()}


def unpack_predictions(path: Path, described: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
    """The classes in a file that `pack_predictions` made.

    Raises StoreError when it is missing or not as described, or holds anything but classes of the same points.
    """
    content = _read_as_described(path, described)
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
        if unpacked > _MOST_UNPACKED:
            raise damaged(path)
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            found = dict(arrays)
    except StoreError:
        raise
    except Exception as error:  # on other content, numpy and zipfile raise about anything
        raise damaged(path) from error
    shapes = {classes.shape for classes in found.values()}
    fine = (
        found.keys() >= _PREDICTIONS
        and len(shapes) == 1
        and all(
            classes.ndim == 1 and classes.dtype.kind == "u" and classes.size > 0 and classes.max() < _MOST_CLASSES
            for classes in found.values()
        )
    )
    if not fine:
        raise damaged(path)
    return found


def _read_as_described(path: Path, described: Mapping[str, Any]) -> bytes:
    try:
        content = read_regular(path)
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
def _(value: str) -> str:
    return printable(value)


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
