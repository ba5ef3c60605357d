"""Long soak: 2,000 cells through the runner. Do memory and the time of a cell grow, and what does the harness cost?

    python tests/reliability/soak.py -o reports/reliability/soak.json

One small network (LeNet-300-100 on 8x8 digits), 40 seeds, 5 methods and 10 keep ratios, one thread; networks are
trained beforehand. A cell's time runs from the end of the last `Store.write_cell` to the end of its own, and is divided
into

    work       what `runner` times: fit, prune, evaluate, check; and the preparation of a seed's network and data
    measures   multiply-adds, and the measures of predictions and cost
    harness    the rest: tables, hashes, JSON, arrays, files flushed to disk, progress bar

by the clock and by the processor's time of the process. After each cell the resident memory, the memory that is in use
(glibc's `mallinfo2`: what is resident has what the allocator keeps as well) and the open files are noted; after each
seed the tensors alive. A slope is Theil-Sen's over the 40 means by seed, which hold the same methods and keep ratios,
with its 95 % interval.
"""

import argparse
import ctypes
import gc
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from scipy import stats

from sipp_bench.bench import measuring, runner
from sipp_bench.bench.suite import Suite, parse_suite
from sipp_bench.machine.files import write_atomically
from sipp_bench.machine.system import describe_system
from sipp_bench.store.folder import Store, load_run
from sipp_bench.store.records import to_json
from sipp_bench.zoo import data, training

METHODS = ("magnitude", "random", "wanda", "sipp-det", "sipp-hybrid")
KEEPS = (0.9, 0.7, 0.5, 0.4, 0.3, 0.2, 0.1, 0.05, 0.02, 0.01)


def make_suite(seeds: int) -> Suite:
    """`seeds` times 50 cells."""
    text = f'name = "soak"\nseeds = {list(range(seeds))}\nkeep = {list(KEEPS)}\npoints = 64\n'
    text += '[[target]]\nnetwork = "lenet-300-100"\ndata = "digits"\n'
    return parse_suite(text + "".join(f'[[method]]\nname = "{name}"\n' for name in METHODS), "soak")


class Clock:
    """Seconds by the clock and of the processor, by kind of work. Nested work counts once, for the outer kind."""

    def __init__(self) -> None:
        self.spent: dict[str, list[float]] = {}
        self.inside = False

    def around(self, kind: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any, **options: Any) -> Any:
            if self.inside:
                return function(*arguments, **options)
            self.inside = True
            start = time.perf_counter(), time.process_time()
            try:
                return function(*arguments, **options)
            finally:
                self.inside = False
                total = self.spent.setdefault(kind, [0.0, 0.0])
                total[0] += time.perf_counter() - start[0]
                total[1] += time.process_time() - start[1]

        return timed


def resident_bytes() -> int:
    """Memory of this process that is in RAM."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


class _Allocated(ctypes.Structure):
    """The `struct mallinfo2` of glibc."""

    # In use: uordblks, and hblkhd in blocks of their own.
    _fields_ = [*((f"other{number}", ctypes.c_size_t) for number in range(4)), ("hblkhd", ctypes.c_size_t),
                *((f"more{number}", ctypes.c_size_t) for number in range(2)), ("uordblks", ctypes.c_size_t),
                *((f"last{number}", ctypes.c_size_t) for number in range(2))]  # fmt: skip


def allocated_bytes() -> int:
    """Memory that has been asked for and not given back, without what the allocator keeps; by glibc's mallinfo2."""
    mallinfo = ctypes.CDLL(None).mallinfo2
    mallinfo.restype = _Allocated
    found = mallinfo()
    return int(found.uordblks + found.hblkhd)


def live_tensors() -> int:
    """Tensors that the garbage collector knows of."""
    gc.collect()
    return sum(1 for each in gc.get_objects() if issubclass(type(each), torch.Tensor))


def soak(suite: Suite, output: Path, cache: Path) -> tuple[list[dict[str, Any]], list[int]]:
    """One row a cell, and the tensors alive after each seed."""
    clock, rows, tensors = Clock(), list[dict[str, Any]](), list[int]()
    write_cell, last = Store.write_cell, [0.0, 0.0]
    per_seed = len(suite.cells()) // len(suite.seeds)

    def noted(store: Store, cell: Any, *arguments: Any, **options: Any) -> None:
        start = time.perf_counter(), time.process_time()
        write_cell(store, cell, *arguments, **options)
        now = time.perf_counter(), time.process_time()
        work, measures = (clock.spent.get(kind, [0.0, 0.0]) for kind in ("work", "measures"))
        rows.append({
            "id": cell.id,
            "seconds": now[0] - last[0], "work": work[0], "measures": measures[0], "write": now[0] - start[0],
            "cpu_seconds": now[1] - last[1], "cpu_work": work[1], "cpu_measures": measures[1],
            "cpu_write": now[1] - start[1],
            "resident_bytes": resident_bytes(), "allocated_bytes": allocated_bytes(),
            "open_files": len(os.listdir("/proc/self/fd")),  # noqa: PTH208
        })  # fmt: skip
        clock.spent.clear()
        if len(rows) % per_seed == 0:
            tensors.append(live_tensors())
        last[:] = time.perf_counter(), time.process_time()

    Store.write_cell = noted  # type: ignore[method-assign]
    measuring.timed = clock.around("work", measuring.timed)  # type: ignore[attr-defined]
    measuring.Measuring._prepare = clock.around("work", measuring.Measuring._prepare)  # type: ignore[method-assign]
    measuring.prediction_measures = clock.around("measures", measuring.prediction_measures)  # type: ignore[attr-defined]
    measuring.cost_measures = clock.around("measures", measuring.cost_measures)  # type: ignore[attr-defined]
    last[:] = time.perf_counter(), time.process_time()
    finished = runner.run(suite, output, cache_dir=cache)
    assert (finished.cells["status"] == "done").all(), "a cell failed"
    return rows, tensors


def figures(rows: list[dict[str, Any]], tensors: list[int], seeds: int) -> dict[str, Any]:
    """What the report quotes, all from `rows`; milliseconds a cell, bytes, and their slopes."""
    per_seed = len(rows) // seeds
    harness = {
        clock: [1000 * (row[f"{clock}seconds"] - row[f"{clock}work"] - row[f"{clock}measures"]) for row in rows]
        for clock in ("", "cpu_")
    }
    series = {
        "harness_ms": harness[""],
        "harness_cpu_ms": harness["cpu_"],
        "harness_and_measures_ms": [h + 1000 * row["measures"] for h, row in zip(harness[""], rows, strict=True)],
        "harness_and_measures_cpu_ms": [
            h + 1000 * row["cpu_measures"] for h, row in zip(harness["cpu_"], rows, strict=True)
        ],
        "write_ms": [1000 * row["write"] for row in rows],
        "write_cpu_ms": [1000 * row["cpu_write"] for row in rows],
        "cell_ms": [1000 * row["seconds"] for row in rows],
        "cell_cpu_ms": [1000 * row["cpu_seconds"] for row in rows],
        "resident_bytes": [row["resident_bytes"] for row in rows],
        "allocated_bytes": [row["allocated_bytes"] for row in rows],
    }
    return {
        "cells": len(rows),
        "open_files": [min(row["open_files"] for row in rows), max(row["open_files"] for row in rows)],
        "tensors_alive": [tensors[0], tensors[-1], max(tensors)],
        **{name: describe(values, per_seed) for name, values in series.items()},
    }


def describe(values: list[float], per_seed: int) -> dict[str, Any]:
    """Mean, quantiles, and the growth a cell: over all seeds, and over the second half, where caches are filled."""
    means = [sum(values[i : i + per_seed]) / per_seed for i in range(0, len(values), per_seed)]
    ordered = sorted(values)
    found: dict[str, Any] = {
        "mean": sum(values) / len(values),
        "median": statistics.median(ordered),
        "p95": ordered[int(0.95 * len(ordered))],
        "first_seed_mean": means[0],
        "last_seed_mean": means[-1],
    }
    for name, part in (("slope_per_cell", means), ("slope_per_cell_second_half", means[len(means) // 2 :])):
        if len(part) > 2:
            slope, _, low, high = stats.theilslopes(part, [per_seed * i for i in range(len(part))], 0.95)
            found[name] = {"slope": slope, "low": low, "high": high}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, required=True, help="The JSON file.")
    parser.add_argument("--seeds", type=int, default=40, help="50 cells each.")
    options = parser.parse_args()
    torch.set_num_threads(1)
    suite = make_suite(options.seeds)
    with tempfile.TemporaryDirectory() as folder:
        for seed in suite.seeds:
            training.trained_model("lenet-300-100", data.load("digits", seed), seed, Path(folder) / "cache")
        rows, tensors = soak(suite, Path(folder) / "run", Path(folder) / "cache")
        start = time.perf_counter(), time.process_time()
        load_run(Path(folder) / "run")
        read = {"seconds": time.perf_counter() - start[0], "cpu_seconds": time.process_time() - start[1]}
    content = {
        "command": "python tests/reliability/soak.py -o reports/reliability/soak.json",
        **describe_system(),
        "figures": figures(rows, tensors, options.seeds) | {"load_run": read},
        "tensors_alive": tensors,
        "cells": rows,
    }
    write_atomically(options.output, to_json(content))
    print(to_json(content["figures"]))  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
