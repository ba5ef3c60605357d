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
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pandas as pd
from numpy.typing import NDArray

from sipp_bench.errors import StoreError
from sipp_bench.machine.files import refuse_irregular, refuse_way_out, sweep, write_atomically
from sipp_bench.store.cell import Cell
from sipp_bench.store.records import (
    FORMAT,
    Arrays,
    pack,
    pack_predictions,
    plain,
    read_json,
    sealed_json,
    unpack,
    unpack_predictions,
)
from sipp_bench.store.schema import (
    arrays_path,
    cell_path,
    ids,
    predictions_path,
    read_cell,
    read_meta,
    read_whole,
    timing_path,
)
from sipp_bench.store.tables import make_tables

_SYSTEM = ("machine", "versions", "commit", "dirty")


class Store:
    """A run folder open for writing, by one process at a time. Use it as a context manager.

    `meta` describes the run: at least `suite` (with its `sha256`) and `cells` (the ids in order). A new
    folder gets it as run.json. One that has a run in it keeps what it has; where the machine, the versions or
    the commit are not what they were, the new ones are added to its list `resumed`.

    Raises StoreError when the folder cannot be written, belongs to another suite or is no run folder, when
    another process is writing to it, when a finished cell in it is damaged, and when the folder or a finished cell is
    gone while it is open: what was measured since would be a part that looks like the whole.
    """

    def __init__(self, path: Path | str, meta: Mapping[str, Any]) -> None:
        self.path = Path(path)
        self._cells = self.path / "cells"
        try:
            _refuse_strange_folder(self.path)
            self._cells.mkdir(parents=True, exist_ok=True)
            refuse_way_out(self.path, self._cells)
            refuse_irregular(self.path / ".lock")
            # Not through a link: a folder that somebody else made could have anything behind it.
            self._lock = os.fdopen(os.open(self.path / ".lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666), "w")
        except OSError as error:
            raise StoreError(
                f"Cannot write to the run folder {self.path}: {error.strerror}. Choose another with -o."
            ) from error
        try:
            self._take_lock()
            for folder in (self.path, self._cells):
                sweep(folder)
            self._meta = self._begin(plain(meta))
            self._status = {cell: read_whole(self.path, cell)["status"] for cell in ids(self.path, self._meta)}
        except BaseException:
            self._lock.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self._require_there()
        finally:
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
            self._write(trace, traceback)
        self._write(timing_path(self.path, cell.id), sealed_json(timing))
        described = None
        if blocks:
            content, described = pack(blocks)
            self._write(arrays_path(self.path, cell.id), content)
        classes = None
        if predicted:
            content, classes = pack_predictions(predicted)
            self._write(predictions_path(self.path, cell.id), content)
        keys = {"network": cell.network, "data": cell.data, "seed": cell.seed, "method": cell.method}
        record = {"format": FORMAT, "id": cell.id, **keys, "keep": cell.keep, **result, "blocks": described}
        record["predictions"] = classes
        self._write(cell_path(self.path, cell.id), sealed_json(record))
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
        self._meta = read_meta(self.path)
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
        self._write(self.path / "run.json", sealed_json(self._meta))

    def _write(self, path: Path, content: bytes | str) -> None:
        self._require_folder()
        write_atomically(path, content)

    def _require_folder(self) -> None:
        """Raise StoreError unless the run folder is still the one that was opened: its lock is in it."""
        try:
            same = os.path.samestat(os.fstat(self._lock.fileno()), (self.path / ".lock").lstat())
        except OSError:
            same = False
        if not same:
            raise StoreError(
                f"The run folder {self.path} was deleted, moved or replaced while the run was writing to it. "
                "Run the suite again; what is not there is measured anew."
            )

    def _require_there(self) -> None:
        self._require_folder()
        gone = [cell for cell in self._status if not cell_path(self.path, cell).is_file()]
        if gone:
            raise StoreError(
                f"{len(gone)} finished cells, the first {gone[0]}, were deleted from {self.path} while the run went "
                "on. Run the suite again; it measures them anew."
            )


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
        described = read_cell(self.path, cell_id)["blocks"]
        return unpack(arrays_path(self.path, cell_id), described) if described else {}

    def predictions(self, cell_id: str) -> dict[str, NDArray[Any]]:
        """Classes (test points,) of a cell by name: labels, dense, pruned, retrained, control; {} where it has none.

        In the order of the data set's test part. Runs of before have none, and neither have failed cells. Raises
        StoreError when the file is missing or damaged.
        """
        described = read_cell(self.path, cell_id).get("predictions")
        return unpack_predictions(predictions_path(self.path, cell_id), described) if described else {}


def load_run(path: Path | str) -> Run:
    """Read a run folder, finished or not.

    Raises StoreError when it is no run folder, of another format version, or when a file in it is damaged.
    """
    path = Path(path)
    meta = read_meta(path)
    cells = [read_cell(path, cell) for cell in ids(path, meta)]
    timings = [read_json(timing_path(path, cell["id"])) | {"id": cell["id"]} for cell in cells]
    return Run(path=path, meta=meta, **make_tables(path, cells, timings))


def _refuse_strange_folder(path: Path) -> None:
    if not path.is_dir() or (path / "run.json").exists():
        return
    strange = {entry.name for entry in path.iterdir() if not entry.name.endswith(".tmp")} - {"cells", ".lock"}
    if strange:
        raise StoreError(f"{path} is not empty and not a run folder (it holds {min(strange)}). Choose another with -o.")
