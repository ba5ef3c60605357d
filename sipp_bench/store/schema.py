"""Where the files of a run folder are, and what they must hold before anything is made of them: folders are passed on.

Of each file only what is read is described; further keys are allowed. `records` says how values are written.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, NonNegativeInt, StringConstraints, ValidationError

from sipp_bench.errors import StoreError
from sipp_bench.machine.files import refuse_way_out
from sipp_bench.store.cell import MOST_LETTERS
from sipp_bench.store.records import check_format, damaged, read_json, unpack, unpack_predictions

CellId = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_][A-Za-z0-9._+=-]*$", max_length=MOST_LETTERS)]
"""A file name without an ending: no separator, so that no id leads out of the folder; short enough for any of them."""


def _number(value: Any) -> float | None:
    """A number as `records.plain` writes it."""
    if value is None or (isinstance(value, int | float) and not isinstance(value, bool)):
        return None if value is None else float(value)
    if value in ("Infinity", "-Infinity"):
        return float(value)
    raise ValueError("must be a number")


Number = Annotated[float | None, BeforeValidator(_number)]
Integer = Annotated[int, Field(ge=-(2**63), lt=2**63)]


class _Shape(BaseModel):
    # A model of pydantic has attributes of its own ("model_..."), which no key here is.
    model_config = ConfigDict(strict=True, extra="allow")


class _File(_Shape):
    bytes: NonNegativeInt
    sha256: str


class _SuiteFacts(_Shape):
    sha256: str
    name: str = ""
    text: str = ""


class _System(_Shape):
    machine: dict[str, Any] | None = None
    versions: dict[str, Any] | None = None
    commit: str | None = None
    dirty: bool | None = None


class Meta(_System):
    """run.json."""

    suite: _SuiteFacts
    cells: list[CellId]
    data: dict[str, dict[str, Any]]
    checkpoints: dict[str, dict[str, Any]]
    resumed: list[_System]
    started: str = ""


class Layer(_Shape):
    """One row of a cell's layers."""

    layer: str
    weights: Integer
    requested: Integer
    kept: Integer


class Check(_Shape):
    """One row of a cell's checks."""

    claim: str
    on: str
    layer: str
    verdict: str
    blocks: Integer
    vacuous: Integer
    exceeding: Integer
    points: Integer
    drawn: Integer
    exceeding_certain: Integer
    active: Integer


class Cell(_Shape):
    """ID.json of a cell; the columns of numbers are checked as the tables are made."""

    id: CellId
    network: str
    data: str
    seed: Integer
    method: str
    keep: float
    status: Literal["done", "failed"]
    blocks: _File | None
    predictions: _File | None = None
    method_name: str | None = None
    error: str | None = None
    mask_sha256: str | None = None
    checkpoint_sha256: str | None = None
    retrained_sha256: str | None = None
    options: dict[str, Any] = {}
    class_accuracies: list[Number] | None = None
    class_loss_changes: list[Number] | None = None
    layers: list[Layer] = []
    checks: list[Check] = []


def require(shape: type[BaseModel], file: Path, content: Any) -> None:
    """Raise StoreError, naming `file`, unless `content` has that shape."""
    try:
        shape.model_validate(content)
    except (ValidationError, OverflowError) as error:
        raise damaged(file) from error


def number(file: Path, value: Any) -> float:
    """A number that was read from `file`: null is NaN. Raises StoreError for anything else."""
    try:
        found = _number(value)
    except (ValueError, OverflowError) as error:
        raise damaged(file) from error
    return float("nan") if found is None else found


# Where a cell's files are in the run folder `path`.


def cell_path(path: Path, cell_id: str) -> Path:
    return path / "cells" / f"{cell_id}.json"


def timing_path(path: Path, cell_id: str) -> Path:
    return path / "cells" / f"{cell_id}.timing.json"


def arrays_path(path: Path, cell_id: str) -> Path:
    return path / "cells" / f"{cell_id}.safetensors"


def predictions_path(path: Path, cell_id: str) -> Path:
    return path / "cells" / f"{cell_id}.predictions.npz"


def ids(path: Path, meta: Mapping[str, Any]) -> list[str]:
    """The cells that are finished, in the suite's order."""
    return [cell for cell in meta["cells"] if cell_path(path, cell).is_file()]


def read_meta(path: Path) -> dict[str, Any]:
    """run.json of a run folder. Raises StoreError when there is none, or it is damaged or of another format."""
    file = path / "run.json"
    if not file.is_file():
        raise StoreError(f"{path} is not a run folder: it has no run.json. Make one with: sipp-bench run SUITE")
    for entry in (file, path / "cells"):
        refuse_way_out(path, entry)
    meta = read_json(file)
    check_format(file, meta)
    require(Meta, file, meta)
    return meta


def read_cell(path: Path, cell_id: str) -> dict[str, Any]:
    """ID.json of a cell. Raises StoreError when it, or the size of a file that belongs to it, is not as written."""
    file, arrays, predictions = (where(path, cell_id) for where in (cell_path, arrays_path, predictions_path))
    timing = timing_path(path, cell_id)
    for entry in (file, timing, arrays, predictions):
        refuse_way_out(path, entry)
    cell = read_json(file)
    check_format(file, cell)
    require(Cell, file, cell)
    if cell["id"] != cell_id:
        raise damaged(file)
    for file, described in ((arrays, cell["blocks"]), (predictions, cell.get("predictions"))):
        if described and not (file.is_file() and file.stat().st_size == described["bytes"]):
            raise damaged(file)
    if not timing.is_file():
        raise damaged(timing)
    return cell


def read_whole(path: Path, cell_id: str) -> dict[str, Any]:
    """As `read_cell`, and its arrays and predictions are what such files hold."""
    cell = read_cell(path, cell_id)
    if cell["blocks"]:
        unpack(arrays_path(path, cell_id), cell["blocks"])
    if cell.get("predictions"):
        unpack_predictions(predictions_path(path, cell_id), cell["predictions"])
    return cell
