"""One run by this process, by three local workers and by three of Dask, undisturbed and with a worker killed in it.

    python tests/reliability/workers.py -o reports/reliability/workers.json

The suite is that of the soak with fewer seeds; its networks are trained beforehand. Every file of each run without a
time in it must be, byte for byte, that of the run by this process. In the disturbed runs one worker is killed (-9) when
a number of cells, drawn at random, is in the run folder.

Noted are the seconds by the clock and, since the machine may be shared, those of the processor: of this process, which
sends out the cells and writes what comes back, and of the local workers (Dask's are not its children).
"""

import argparse
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
from faults import results
from soak import make_suite

from sipp_bench.bench.executors import dask_executor
from sipp_bench.bench.runner import run
from sipp_bench.machine.files import write_atomically
from sipp_bench.machine.system import describe_system
from sipp_bench.store.records import to_json
from sipp_bench.zoo import data, training

WORKERS = 3


@contextmanager
def dask_workers() -> Iterator[tuple[str, list[int]]]:
    """The scheduler file of a Dask cluster on loopback, and the ids of its workers, which nobody restarts."""
    folder = Path(tempfile.mkdtemp())
    file = str(folder / "scheduler.json")
    place = ["--scheduler-file", file, "--host", "127.0.0.1", "--no-dashboard"]
    worker = ["worker", *place, "--no-nanny", "--nthreads", "1", "--name"]
    commands = [["scheduler", *place, "--port", "0"], *([*worker, str(number)] for number in range(WORKERS))]
    with (folder / "dask.log").open("w") as log:
        processes = [
            subprocess.Popen([sys.executable, "-m", "dask", *command], cwd=folder, stdout=log, stderr=log)
            for command in commands
        ]
    try:
        yield file, [process.pid for process in processes[1:]]
    finally:
        for process in processes:
            process.kill()
            process.wait()
        shutil.rmtree(folder)


def local_workers() -> list[int]:
    """Ids of this process's children that run Python's spawned processes; its resource tracker is none."""
    here = psutil.Process().children()
    return [child.pid for child in here if "spawn_main" in " ".join(child.cmdline())]


def kill_one(folder: Path, at: int, workers: Callable[[], list[int]], killed: list[int]) -> None:
    """Kill a worker once `at` cells are in the run folder, and note how many there were."""
    while (count := len(list(folder.glob("cells/*.timing.json")))) < at:
        time.sleep(0.005)
    os.kill(random.choice(workers()), signal.SIGKILL)
    killed.append(count)


def measure(how: str, folder: Path, cache: Path, seeds: int, kill_at: int | None) -> dict[str, Any]:
    """One run into `folder`, by `how` ("one process", "local", "dask"), and what it took."""
    suite, killed = make_suite(seeds), list[int]()

    def begin(workers: Callable[[], list[int]]) -> None:
        if kill_at is not None:
            threading.Thread(target=kill_one, args=(folder, kill_at, workers, killed), daemon=True).start()

    start, own = time.perf_counter(), time.process_time()
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    if how == "dask":
        with dask_workers() as (address, ids), dask_executor(address) as executor:
            begin(lambda: ids)
            run(suite, folder, cache_dir=cache, progress=False, executor=executor)
    else:
        begin(local_workers)
        run(suite, folder, cache_dir=cache, progress=False, workers=WORKERS if how == "local" else 1)
    seconds, own = time.perf_counter() - start, time.process_time() - own
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    found = {"how": how, "seconds": seconds, "cpu_seconds": own, "killed_after_cells": killed}
    if how == "local":
        found["cpu_seconds_of_workers"] = after.ru_utime + after.ru_stime - children.ru_utime - children.ru_stime
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, required=True, help="The JSON file.")
    parser.add_argument("--seeds", type=int, default=8, help="50 cells each.")
    parser.add_argument("--kills", type=int, default=3, help="Disturbed runs of each kind.")
    options = parser.parse_args()
    seed = random.SystemRandom().randrange(2**32)
    random.seed(seed)
    cells = 50 * options.seeds
    plan = [("one process", None), ("local", None), ("dask", None)]
    plan += [(how, random.randrange(1, cells - 50)) for _ in range(options.kills) for how in ("local", "dask")]
    runs = []
    with tempfile.TemporaryDirectory() as name:
        cache, expected = Path(name) / "cache", dict[str, bytes]()
        for number in range(options.seeds):
            training.trained_model("lenet-300-100", data.load("digits", number), number, cache)
        for number, (how, kill_at) in enumerate(plan):
            folder = Path(name) / str(number)
            found = measure(how, folder, cache, options.seeds, kill_at)
            written = results(folder)
            expected = expected or written
            differing = sorted(
                file for file in expected.keys() | written.keys() if expected.get(file) != written.get(file)
            )
            runs.append(found | {"files": len(written), "differing": differing})
            print({key: value for key, value in runs[-1].items() if key != "differing"}, len(differing), flush=True)
    content = {
        "command": "python tests/reliability/workers.py -o reports/reliability/workers.json",
        **describe_system(),
        "workers": WORKERS, "cells": cells, "seed": seed, "runs": runs,
    }  # fmt: skip
    write_atomically(options.output, to_json(content))


if __name__ == "__main__":
    main()
