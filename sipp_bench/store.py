"""Run folders: one file a finished cell, so that a killed run loses the cell in flight and no more.

    RUN/run.json                 what was run, on what: suite, machine, versions, hashes, start
    RUN/cells/ID.json            results of a finished or failed cell; its existence is what "finished" means.
                                 The same in every run of the suite on one machine: no time and no path in it
    RUN/cells/ID.timing.json     its times in seconds
    RUN/cells/ID.safetensors     arrays (neurons, 2), "weight name/array name"; for methods with a bound
    RUN/cells/ID.predictions.npz the class that each network predicts for each test point: dense, pruned, and after
                                 retraining where the protocol has that; and the labels
    RUN/cells/ID.traceback.txt   where a failed cell failed; the only file with paths of the machine in it

`records` says how values are written, `schemas/` which keys the JSON files have.
"""

import contextlib
import fcntl
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pandas as pd
from numpy.typing import NDArray

from sipp_bench import run_schema
from sipp_bench.errors import StoreError
from sipp_bench.files import write_atomically
from sipp_bench.records import (
    FORMAT,
    Arrays,
    check_format,
    damaged,
    pack,
    pack_predictions,
    plain,
    read_json,
    sealed_json,
    unpack,
    unpack_predictions,
)
from sipp_bench.run_tables import KEYS, SKIPPED, TABLES
from sipp_bench.suite import Cell

_SYSTEM = ("machine", "versions", "commit", "dirty")


class Store:
    """A run folder open for writing, by one process at a time. Use it as a context manager.

    `meta` describes the run: at least `suite` (with its `sha256`) and `cells` (the ids in order). A new
    folder gets it as run.json. One that has a run in it keeps what it has; where the machine, the versions or
    the commit are not what they were, the new ones are added to its list `resumed`.

    Raises StoreError when the folder cannot be written, belongs to another suite or is no run folder, when
    another process is writing to it, and when a finished cell in it is damaged.
    """

    def __init__(self, path: Path | str, meta: Mapping[str, Any]) -> None:
        self.path = Path(path)
        self._cells = self.path / "cells"
        try:
            _refuse_strange_folder(self.path)
            self._cells.mkdir(parents=True, exist_ok=True)
            _refuse_way_out(self.path, self._cells)
            # Not through a link: a folder that somebody else made could have anything behind it.
            self._lock = os.fdopen(os.open(self.path / ".lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666), "w")
        except OSError as error:
            raise StoreError(
                f"Cannot write to the run folder {self.path}: {error.strerror}. Choose another with -o."
            ) from error
        try:
            self._take_lock()
            for leftover in [*self.path.glob(".*.tmp"), *self._cells.glob(".*.tmp")]:
                with contextlib.suppress(OSError):
                    leftover.unlink()
            self._meta = self._begin(plain(meta))
            self._status = {cell: _read_cell(self.path, cell)["status"] for cell in _ids(self.path, self._meta)}
        except BaseException:
            self._lock.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._lock.close()

    def status(self, cell: Cell) -> str | None:
        """Of a cell: "done", "failed", or None when it has not been run."""
        return self._status.get(cell.id)

    def record(self, section: str, name: str, facts: Mapping[str, Any]) -> None:
        """Write what is found out during the run (the hash of data, of a checkpoint; a worker) to run.json, once.

        Raises StoreError when an earlier part of the run found something else under that name: its cells
        could not be compared with the new ones.
        """
        known = self._meta.setdefault(section, {})
        if known.get(name, plain(facts)) != plain(facts):
            raise StoreError(
                f"{name} ({section}) is not what it was when the run in {self.path} was begun. "
                "Delete that folder, or choose another with -o, to run everything again."
            )
        if name not in known:
            known[name] = plain(facts)
            self._write_meta()

    def write_cell(
        self,
        cell: Cell,
        result: Mapping[str, Any],
        timing: Mapping[str, float | list[float]],
        blocks: Arrays | None = None,
        predicted: Mapping[str, NDArray[Any]] | None = None,
        traceback: str | None = None,
    ) -> None:
        """Write a cell's files, ID.json last, so that all are there and whole once that one is.

        `result` is everything but the cell's own keys; `traceback` is for a failed cell.
        """
        trace = self._cells / f"{cell.id}.traceback.txt"
        with contextlib.suppress(OSError):  # where this cannot be removed, the next line says so
            trace.unlink()
        if traceback is not None:
            write_atomically(trace, traceback)
        write_atomically(_timing_path(self.path, cell.id), sealed_json(timing))
        described = None
        if blocks:
            content, described = pack(blocks)
            write_atomically(_arrays_path(self.path, cell.id), content)
        classes = None
        if predicted:
            content, classes = pack_predictions(predicted)
            write_atomically(_predictions_path(self.path, cell.id), content)
        keys = {"network": cell.network, "data": cell.data, "seed": cell.seed, "method": cell.method}
        record = {"format": FORMAT, "id": cell.id, **keys, "keep": cell.keep, **result, "blocks": described}
        record["predictions"] = classes
        write_atomically(_cell_path(self.path, cell.id), sealed_json(record))
        self._status[cell.id] = str(result["status"])

    def _take_lock(self) -> None:
        # The kernel drops the lock with the process, however that ends; nothing stays behind to clear up.
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise StoreError(
                f"Another process is running in {self.path}. Wait for it, or choose another folder with -o."
            ) from error

    def _begin(self, meta: dict[str, Any]) -> dict[str, Any]:
        """What run.json says from now on."""
        if not (self.path / "run.json").exists():
            self._meta = {"format": FORMAT, "data": {}, "checkpoints": {}, "resumed": [], **meta}
            self._write_meta()
            return self._meta
        self._meta = _read_meta(self.path)
        if self._meta["suite"]["sha256"] != meta["suite"]["sha256"]:
            raise StoreError(
                f"The run folder {self.path} belongs to another suite, or to this one before it was edited. "
                "Choose another folder with -o, or delete that one."
            )
        system = {key: meta[key] for key in _SYSTEM if key in meta}
        latest = (self._meta["resumed"] or [self._meta])[-1]
        if any(latest.get(key) != value for key, value in system.items()):
            self._meta["resumed"].append(system)
            self._write_meta()
        return self._meta

    def _write_meta(self) -> None:
        write_atomically(self.path / "run.json", sealed_json(self._meta))


@dataclass(frozen=True)
class Run:
    """A run folder, read. Every table has its columns even when it has no rows."""

    path: Path
    meta: dict[str, Any]
    cells: pd.DataFrame
    """One row a finished or failed cell, in the suite's order."""
    layers: pd.DataFrame
    checks: pd.DataFrame
    timings: pd.DataFrame
    skipped: pd.DataFrame
    """One row a cell and layer that stayed dense, with the reason."""

    def blocks(self, cell_id: str) -> dict[str, dict[str, NDArray[Any]]]:
        """Weight name -> array name -> array (neurons, 2) of a cell; {} where the method has no bound.

        Raises StoreError when the file is missing or damaged.
        """
        described = _read_cell(self.path, cell_id)["blocks"]
        return unpack(_arrays_path(self.path, cell_id), described) if described else {}

    def predictions(self, cell_id: str) -> dict[str, NDArray[Any]]:
        """Classes (test points,) of a cell by name: labels, dense, pruned, retrained, control; {} where it has none.

        In the order of the data set's test part. Runs of before have none, and neither have failed cells. Raises
        StoreError when the file is missing or damaged.
        """
        described = _read_cell(self.path, cell_id).get("predictions")
        return unpack_predictions(_predictions_path(self.path, cell_id), described) if described else {}


def load_run(path: Path | str) -> Run:
    """Read a run folder, finished or not.

    Raises StoreError when it is no run folder, of another format version, or when a file in it is damaged.
    """
    path = Path(path)
    meta = _read_meta(path)
    cells = [_read_cell(path, cell) for cell in _ids(path, meta)]
    timings = [read_json(_timing_path(path, cell["id"])) | {"id": cell["id"]} for cell in cells]
    return Run(
        path=path,
        meta=meta,
        cells=_table(path, cells, TABLES["cells"]),
        layers=_table(path, _rows_of("layers", cells), TABLES["layers"]),
        checks=_table(path, _rows_of("checks", cells), TABLES["checks"]),
        timings=_table(path, timings, TABLES["timings"]),
        skipped=_table(path, _skipped(cells), SKIPPED),
    )


def _rows_of(part: str, cells: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    # Early rows of layers have a `keep` of their own, which is not the cell's.
    return [row | {key: cell[key] for key in KEYS} for cell in cells for row in cell.get(part, ())]


def _skipped(cells: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [
        {key: cell[key] for key in KEYS} | {"layer": layer, "reason": reason}
        for cell in cells
        for layer, reason in (cell.get("skipped") or {}).items()
    ]


def _table(path: Path, rows: list[dict[str, Any]], columns: Mapping[str, str]) -> pd.DataFrame:
    table = {}
    for name, dtype in columns.items():
        values = [row.get(name) for row in rows]
        if dtype == "float64":  # null is NaN, and float() reads "Infinity"
            files = (_cell_path(path, row["id"]) for row in rows)
            values = [run_schema.number(file, value) for file, value in zip(files, values, strict=True)]
        table[name] = pd.Series(values, dtype=dtype)
    return pd.DataFrame(table)


def _cell_path(path: Path, cell_id: str) -> Path:
    return path / "cells" / f"{cell_id}.json"


def _timing_path(path: Path, cell_id: str) -> Path:
    return path / "cells" / f"{cell_id}.timing.json"


def _arrays_path(path: Path, cell_id: str) -> Path:
    return path / "cells" / f"{cell_id}.safetensors"


def _predictions_path(path: Path, cell_id: str) -> Path:
    return path / "cells" / f"{cell_id}.predictions.npz"


def _ids(path: Path, meta: Mapping[str, Any]) -> list[str]:
    return [cell for cell in meta["cells"] if _cell_path(path, cell).is_file()]


def _refuse_way_out(path: Path, entry: Path) -> None:
    """Raise StoreError when `entry` of a run folder is a link that leads out of it."""
    if entry.is_symlink() and not entry.resolve().is_relative_to(path.resolve()):
        raise StoreError(f"{entry} is a link that leads out of the run folder. Put what it leads to there instead.")


def _refuse_strange_folder(path: Path) -> None:
    if not path.is_dir() or (path / "run.json").exists():
        return
    strange = {entry.name for entry in path.iterdir() if not entry.name.endswith(".tmp")} - {"cells", ".lock"}
    if strange:
        raise StoreError(f"{path} is not empty and not a run folder (it holds {min(strange)}). Choose another with -o.")


def _read_meta(path: Path) -> dict[str, Any]:
    file = path / "run.json"
    if not file.is_file():
        raise StoreError(f"{path} is not a run folder: it has no run.json. Make one with: sipp-bench run SUITE")
    for entry in (file, path / "cells"):
        _refuse_way_out(path, entry)
    meta = read_json(file)
    check_format(file, meta)
    run_schema.require(run_schema.Meta, file, meta)
    return meta


def _read_cell(path: Path, cell_id: str) -> dict[str, Any]:
    file, arrays, predictions = (where(path, cell_id) for where in (_cell_path, _arrays_path, _predictions_path))
    timing = _timing_path(path, cell_id)
    for entry in (file, timing, arrays, predictions):
        _refuse_way_out(path, entry)
    cell = read_json(file)
    check_format(file, cell)
    run_schema.require(run_schema.Cell, file, cell)
    if cell["id"] != cell_id:
        raise damaged(file)
    for file, described in ((arrays, cell["blocks"]), (predictions, cell.get("predictions"))):
        if described and not (file.is_file() and file.stat().st_size == described["bytes"]):
            raise damaged(file)
    if not timing.is_file():
        raise damaged(timing)
    return cell
