"""From a suite to results on disk: each cell is written by itself, so a run can stop anywhere and go on."""

import contextlib
from collections.abc import Iterable
from concurrent.futures import Executor
from dataclasses import replace
from datetime import UTC, datetime
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import Any

from tqdm import tqdm

from sipp_bench.bench.executors import LocalWorkers, require_device
from sipp_bench.bench.jobs import IN_FLIGHT, Outbox, Quiet, Work, distribute, reproducible, system
from sipp_bench.bench.measuring import Measuring
from sipp_bench.bench.suite import Suite
from sipp_bench.errors import DataError, require_counts
from sipp_bench.machine.system import describe_system
from sipp_bench.methods import make_method
from sipp_bench.store.cell import Cell
from sipp_bench.store.folder import Run, Store, load_run
from sipp_bench.zoo import data


def run(
    suite: Suite,
    output: Path | str,
    *,
    cache_dir: Path | None = None,
    progress: bool = True,
    download: bool = False,
    workers: int = 1,
    executor: Executor | None = None,
    threads: int = 1,
    device: str = "cpu",
) -> Run:
    """Measure every cell of `suite` that the folder `output` does not hold yet, and return the whole run.

    A cell that raises is recorded as failed and the others go on; the next run tries failed cells again.
    Interrupting or killing the process loses the cell in flight; with workers, what each had measured of its method.

    A cell's results depend on the cell alone, not on which others ran before it in the same process: a run in pieces
    gives the files of one in one go, and so does one with any number of workers, here or elsewhere, byte for byte, on
    the same kind of processor, with the same versions (workers with others are refused) and the same `threads`.

    cache_dir: where trained networks are kept; None for the default of `training.trained_model`. download: fetch data
    that is not on the machine. workers: how many processes of this machine measure; with 1 it is this process, with
    more a script needs its `if __name__ == "__main__"`. executor: instead of them any executor in the manner of
    `concurrent.futures`, such as that of `executors.dask_executor`; it stays open. threads: of torch, in each cell;
    sums are split between threads, so that the last bits of results depend on their number, which run.json has.
    device: where networks are and points go, "cpu", "cuda" or "cuda:1"; with "cuda" the workers take turns at the
    devices of this machine.

    Raises StoreError when the folder cannot be used, OptionError for a device that is not there or fewer workers or
    threads than 1, and WorkerError when cells were lost with their worker; all others are in the folder then.
    """
    require_counts(workers=workers, threads=threads)
    if executor is None:
        require_device(device)
    cells = suite.cells()
    with reproducible(threads):
        meta = _meta(suite, cells)
    # What times depend on. Not there in the plain case, as in run folders of before.
    meta["machine"] |= {"device": device} if device != "cpu" else {}
    meta["machine"] |= {"workers": workers} if workers > 1 and executor is None else {}
    with Store(output, meta) as store:
        missing = [cell for cell in cells if store.status(cell) != "done"]
        with tqdm(total=len(cells), initial=len(cells) - len(missing), unit="cell", disable=not progress) as bar:
            measuring = Measuring(suite, store, bar, cache_dir, download, device)
            if executor is None and workers == 1:
                with reproducible(threads):
                    for _, group in groupby(missing, attrgetter("subject")):
                        measuring.run_cells(list(group))
            elif missing:
                if download:  # before several workers of this machine do
                    _fetch({cell.data for cell in missing})
                methods = {method.name: type(make_method(method.name, **method.options)) for method in suite.methods}
                work = Work(replace(measuring, store=Outbox(), bar=Quiet()).job, threads, system(), methods)
                if executor is not None:
                    distribute(executor, work, missing, store, bar, IN_FLIGHT)
                else:
                    with LocalWorkers(min(workers, len(missing)), device) as here:
                        distribute(here, work, missing, store, bar, 2 * workers)
    return load_run(output)


def _meta(suite: Suite, cells: tuple[Cell, ...]) -> dict[str, Any]:
    """What a run folder says of the run as a whole."""
    return {
        "suite": {"name": suite.name, "text": suite.text, "sha256": suite.sha256},
        "seeds": suite.seeds,
        "cells": [cell.id for cell in cells],
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        **describe_system(),
    }


def _fetch(names: Iterable[str]) -> None:
    for name in names:
        fetch = data.describe(name).fetch
        if fetch is not None:
            with contextlib.suppress(DataError):  # the cells will say so
                fetch()
