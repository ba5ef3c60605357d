"""Several runs in, one set of tables out: every row says which run it came from."""

import json
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sipp_bench.errors import StoreError
from sipp_bench.report.merge import Merged, fill_dense_validation, merge
from sipp_bench.store.tables import LISTS

TARGET = ["run", "network", "data"]
METHOD = ["method_name", "method"]
_NEEDED = ("method_name", "accuracy", "weights", "kept", "achieved_keep")
"""Of a finished cell: runs of every version have these."""
CELL_KEYS = [*TARGET, "seed", *METHOD, "keep"]


class RunLike(Protocol):
    """What the report needs of a run; `sipp_bench.store.folder.Run` is one."""

    @property
    def meta(self) -> dict[str, Any]: ...
    @property
    def cells(self) -> pd.DataFrame: ...
    @property
    def layers(self) -> pd.DataFrame: ...
    @property
    def checks(self) -> pd.DataFrame: ...
    @property
    def timings(self) -> pd.DataFrame: ...
    @property
    def skipped(self) -> pd.DataFrame: ...

    def blocks(self, cell_id: str, /) -> Mapping[str, Mapping[str, Any]]:
        """Per layer the arrays `epsilon`, `error_S`, `error_fresh`, each (neurons, 2): + and - blocks."""

    def predictions(self, cell_id: str, /) -> Mapping[str, NDArray[Any]]:
        """`labels`, and by network the classes that it predicts, each (test points,); {} where none are stored."""


@dataclass(frozen=True)
class Collected:
    """The concatenated tables of some runs. `runs` maps the label used in the `run` column to the run.

    A network that several runs made, equal by content, is in `cells` once; `merged` has the rows left out.
    """

    runs: Mapping[str, RunLike]
    cells: pd.DataFrame
    layers: pd.DataFrame
    checks: pd.DataFrame
    timings: pd.DataFrame
    skipped: pd.DataFrame
    merged: Merged

    @property
    def all_cells(self) -> pd.DataFrame:
        """Every run's own cells, those included that are counted elsewhere."""
        again = self.merged.again
        return self.cells if again.empty else pd.concat([self.cells, again[list(self.cells.columns)]])

    def blocks(self, run: str, cell: str) -> Mapping[str, Mapping[str, Any]]:
        """`RunLike.blocks` of the first of the cells that this one stands for that has any."""
        found = (self.runs[label].blocks(own) for label, own in self.merged.sources[run, cell])
        return next((blocks for blocks in found if blocks), {})

    def predictions(self, run: str, cell: str) -> Mapping[str, NDArray[Any]]:
        """`RunLike.predictions`, likewise."""
        found = (self.runs[label].predictions(own) for label, own in self.merged.sources[run, cell])
        return next((classes for classes in found if classes), {})

    @property
    def done(self) -> pd.DataFrame:
        """The cells that finished, with `compression` (1 / achieved keep) and `multiply_add_reduction`."""
        return self.cells[self.cells["status"] == "done"]

    @property
    def failed(self) -> pd.DataFrame:
        return self.cells[self.cells["status"] == "failed"]

    def targets(self) -> "Iterator[Target]":
        """One (run, network, data) after the other, in the order of the cells, with the finished cells' rows."""
        for key, cells in self.done.groupby(TARGET, sort=False):
            run, network, data = (str(part) for part in key)
            ids = set(cells["id"])
            several = len(self.runs) > 1
            yield Target(
                run=run,
                network=network,
                data=data,
                label=f"{network} on {data}" + (f", run {run}" if several else ""),
                protocol=str(suite_table(self.runs[run]).get("protocol", "one-shot")),
                cells=cells,
                layers=_of(self.layers, run, ids),
                checks=_of(self.checks, run, ids),
                timings=_of(self.timings, run, ids),
            )


@dataclass(frozen=True)
class Target:
    """One network on one data set in one run: what every comparison of methods is made within."""

    run: str
    network: str
    data: str
    label: str
    protocol: str
    cells: pd.DataFrame
    layers: pd.DataFrame
    checks: pd.DataFrame
    timings: pd.DataFrame

    @property
    def keeps(self) -> list[float]:
        """The requested keep ratios, largest first."""
        return sorted((float(keep) for keep in self.cells["keep"].unique()), reverse=True)

    @property
    def retrained(self) -> bool:
        """Whether any network was retrained after pruning; its cells then have the accuracy before that as well."""
        return "pruned_accuracy" in self.cells and bool(self.cells["pruned_accuracy"].notna().any())

    @property
    def middle_keep(self) -> float:
        """The middle one of the keep ratios that prune something and leave something."""
        inner = [keep for keep in self.keeps if 0 < keep < 1] or self.keeps
        return inner[len(inner) // 2]


def collect(runs: Mapping[str, RunLike]) -> Collected:
    """Concatenate the runs' tables, with a `run` column first.

    Raises StoreError when there is no run, or a run holds no cells or a finished one without a result: a report of
    nothing would look like one.
    """
    if not runs:
        raise StoreError("There is no run to report on. Give at least one run folder.")
    for label, run in runs.items():
        if run.cells.empty:
            raise StoreError(f"The run {label} holds no finished cells. Run its suite first, then report on it.")
        done = run.cells[run.cells["status"] == "done"]
        for key in _NEEDED:
            for cell in done["id"][done[key].isna()]:
                raise StoreError(f"The cell {cell} of the run {label} has no {key}. Delete its files and run it again.")
    merged = merge(fill_dense_validation(_derived(_stacked({label: run.cells for label, run in runs.items()}))))
    keys = merged.cells[["run", "id", *[key for key in CELL_KEYS if key != "run"]]]

    def table(name: str, once: bool = False) -> pd.DataFrame:
        stacked = _stacked({label: getattr(run, name) for label, run in runs.items()})
        return _keyed(merged.moved(stacked, once), keys)

    return Collected(
        runs=runs,
        cells=merged.cells,
        layers=table("layers"),
        checks=table("checks"),
        timings=table("timings", once=True),
        skipped=table("skipped"),
        merged=merged,
    )


def suite_table(run: RunLike) -> dict[str, Any]:
    """The suite file of a run, parsed; {} when its text is not TOML."""
    try:
        return tomllib.loads(run.meta["suite"].get("text", ""))
    except tomllib.TOMLDecodeError:
        return {}


def _stacked(frames: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    labelled = []
    for label, frame in frames.items():
        copy = frame.reset_index(drop=True)
        copy.insert(0, "run", label)
        labelled.append(copy)
    # Empty frames would change column types; if all are empty, the columns are kept.
    filled = [frame for frame in labelled if not frame.empty]
    return pd.concat(filled, ignore_index=True) if filled else labelled[0]


def _derived(cells: pd.DataFrame) -> pd.DataFrame:
    kept = cells["achieved_keep"].astype(float)
    reached = cells["multiply_adds"].astype(float)
    with np.errstate(divide="ignore", invalid="ignore"):
        cells = cells.assign(
            compression=1.0 / kept,
            multiply_add_reduction=cells["dense_multiply_adds"].astype(float) / reached,
        )
    # Text, as CSV has no lists.
    lists = {name: cells[name].map(json.dumps, na_action="ignore") for name in LISTS if name in cells}
    return cells.assign(**lists)


def _keyed(frame: pd.DataFrame, keys: pd.DataFrame) -> pd.DataFrame:
    """Each row with the keys of its cell, by (run, id); the frame's own columns of these names are dropped."""
    own = frame.drop(columns=[key for key in CELL_KEYS if key != "run" and key in frame.columns])
    return keys.merge(own, on=["run", "id"], how="right", validate="one_to_many")


def _of(frame: pd.DataFrame, run: str, ids: set[str]) -> pd.DataFrame:
    if frame.empty:
        return frame
    return frame[(frame["run"] == run) & frame["id"].isin(ids)]
