"""Runs on many workers: the files of a run in one process, whatever is killed, raises or is interrupted meanwhile."""

import contextlib
import itertools
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import fragile
import psutil
import pytest
import torch
from run_folders import results

from sipp_bench.bench import executors, jobs, runner
from sipp_bench.bench.executors import LocalWorkers, LostWorker, assign_devices, dask_executor
from sipp_bench.bench.runner import run
from sipp_bench.bench.suite import Suite, parse_suite
from sipp_bench.errors import OptionError, WorkerError
from sipp_bench.methods import _REGISTRY
from sipp_bench.report import prose
from sipp_bench.store.cell import Cell
from sipp_bench.store.folder import Run, load_run

SUITE = """
name = "tiny"
seeds = [0, 1]
keep = [1.0, 0.3, 0.05]
points = 32

[[target]]
network = "lenet-300-100"
data = "digits"

[[method]]
name = "sipp-hybrid"

[[method]]
name = "fragile"
label = "fragile"
marker = "{marker}"
raise_below = 5000

[[method]]
name = "random"
"""
ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": os.pathsep.join([*map(str, sys.path), str(Path(fragile.__file__).parent)]),
    "OMP_NUM_THREADS": "1",
}


@pytest.fixture(scope="module", autouse=True)
def registered() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_REGISTRY, "classes", dict(_REGISTRY.classes))
        fragile.register()
        yield


@pytest.fixture(scope="module")
def marker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("marker") / "stalled"


@pytest.fixture(scope="module")
def suite(marker: Path) -> Suite:
    return parse_suite(SUITE.format(marker=marker), "tiny.toml")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def alone(suite: Suite, marker: Path, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The run in this process that all others are compared with."""
    marker.touch()
    return run(suite, tmp_path_factory.mktemp("alone") / "run", cache_dir=cache, progress=False)


@pytest.fixture(scope="module")
def scheduler(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The scheduler file of a Dask cluster on loopback with two workers, each a process that nobody restarts."""
    folder = tmp_path_factory.mktemp("dask")
    file = str(folder / "scheduler.json")
    at = ["--scheduler-file", file, "--host", "127.0.0.1", "--no-dashboard"]
    worker = ["--scheduler-file", file, "--host", "127.0.0.1", "--no-dashboard", "--no-nanny", "--nthreads", "1"]
    commands = [["scheduler", *at, "--port", "0"], *(["worker", *worker, "--name", name] for name in ("one", "two"))]
    with (folder / "log").open("w") as log:
        processes = [
            subprocess.Popen(
                [sys.executable, "-m", "dask", *command], cwd=folder, env=ENVIRONMENT, stdout=log, stderr=log
            )
            for command in commands
        ]
    yield file
    for process in processes:
        process.kill()
        process.wait()


def wait_for(condition: Callable[[], Any], seconds: float = 120) -> Any:
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)
    return value


def stalled(marker: Path) -> int:
    """The id of the process that stalls in the middle of a cell, once it does."""
    wait_for(marker.exists)
    return int(marker.read_text())


def killing(marker: Path) -> threading.Thread:
    """Have the process that stalls in the middle of a cell killed."""
    marker.unlink()
    thread = threading.Thread(target=lambda: os.kill(stalled(marker), signal.SIGKILL), daemon=True)
    thread.start()
    return thread


def test_a_local_worker_killed_in_a_cell_costs_time_only(
    suite: Suite, cache: Path, marker: Path, alone: Run, tmp_path: Path
) -> None:
    killer = killing(marker)
    finished = run(suite, tmp_path, cache_dir=cache, progress=False, workers=2)
    assert not killer.is_alive()
    assert results(tmp_path) == results(alone.path)
    failed = finished.cells[finished.cells["status"] == "failed"]
    assert set(failed["method"]) == {"fragile"}, "a cell that raises is recorded, as it is in one process"
    assert list(failed["keep"]) == [0.05, 0.05]
    assert "in select" in (tmp_path / "cells" / f"{failed['id'].iloc[0]}.traceback.txt").read_text()
    assert finished.meta["machine"]["workers"] == 2
    assert {key: finished.meta[key] for key in ("data", "checkpoints")} == {
        key: alone.meta[key] for key in ("data", "checkpoints")
    }


def test_a_dask_worker_killed_in_a_cell_costs_time_only(
    suite: Suite, cache: Path, marker: Path, alone: Run, scheduler: str, tmp_path: Path
) -> None:
    killer = killing(marker)
    wait_for(Path(scheduler).exists)
    with dask_executor(scheduler) as executor:
        run(suite, tmp_path, cache_dir=cache, progress=False, executor=executor)
    assert not killer.is_alive()
    assert results(tmp_path) == results(alone.path)


def test_kill_9_of_the_run_ends_every_worker_and_fewer_go_on(
    suite: Suite, cache: Path, marker: Path, alone: Run, tmp_path: Path
) -> None:
    marker.unlink()
    (tmp_path / "tiny.toml").write_bytes(suite.text.encode())
    command = "import fragile, sipp_bench.cli.commands; fragile.register(); sipp_bench.cli.commands.main()"
    process = subprocess.Popen(
        [sys.executable, "-c", command, "run", str(tmp_path / "tiny.toml"), "-o", str(tmp_path / "run"), "--workers=2"],
        env=ENVIRONMENT | {"SIPP_BENCH_CACHE": str(cache)},
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    assert stalled(marker) != process.pid
    process.kill()
    process.wait()
    wait_for(lambda: not group_alive(process.pid))
    assert len(results(tmp_path / "run")) < len(results(alone.path))
    run(suite, tmp_path / "run", cache_dir=cache, progress=False)
    assert results(tmp_path / "run") == results(alone.path)


def group_alive(group: int) -> bool:
    """Whether a process of the group runs; a dead one stays listed where the first process reaps no orphans."""
    for process in psutil.process_iter(["status"]):
        with contextlib.suppress(ProcessLookupError):
            if os.getpgid(process.pid) == group and process.info["status"] != psutil.STATUS_ZOMBIE:
                return True
    return False


def test_local_workers_are_replaced_and_end_with_the_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executors, "TRIES", 1)
    before = threading.active_count()
    found: dict[str, Any] = {}

    def interrupted() -> None:
        with LocalWorkers(1) as workers:
            with pytest.raises(LostWorker, match="exit code 3"):
                workers.submit(os._exit, 3).result()
            pid = found["pid"] = workers.submit(os.getpid).result()
            with pytest.raises(ValueError, match="invalid literal"):
                workers.submit(int, "seven").result()
            os.kill(pid, signal.SIGINT)  # a terminal sends it to every process; what to do is for this one to say
            assert workers.submit(os.getpid).result() == pid, "neither an exception nor an interrupt ends it"
            found["endless"], found["later"] = workers.submit(time.sleep, 600), workers.submit(int, "7")
            wait_for(found["endless"].running)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    with pytest.raises(LostWorker):
        found["endless"].result()
    assert found["later"].cancelled()
    with pytest.raises(ProcessLookupError):
        os.kill(found["pid"], 0)
    assert threading.active_count() == before


class Watched(Executor):
    """Threads; counts how many jobs it has at a time, and loses some of them."""

    def __init__(self, loses: Callable[[list[Any]], bool] = lambda cells: False) -> None:
        self.loses = loses
        self.held = self.most = 0
        self.counting = threading.Lock()
        self.threads = ThreadPoolExecutor(3)

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        with self.counting:
            self.held += 1
            self.most = max(self.most, self.held)
        return self.threads.submit(self.call, fn, *args)

    def call(self, fn: Any, work: jobs.Work, cells: list[Any], only_prepare: bool) -> Any:
        try:
            if self.loses(cells) and not only_prepare:
                raise BrokenProcessPool("a child process terminated abruptly")
            return fn(work, cells, only_prepare)
        finally:
            with self.counting:
                self.held -= 1


def test_any_executor_will_do_and_gets_no_more_jobs_than_allowed(
    suite: Suite, cache: Path, alone: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "IN_FLIGHT", 3)
    before = torch.get_rng_state(), torch.get_num_threads()
    executor = Watched()
    run(suite, tmp_path, cache_dir=cache, progress=False, executor=executor)
    assert executor.most == 3
    assert results(tmp_path) == results(alone.path)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert torch.get_num_threads() == before[1]


def test_what_a_lost_worker_had_is_said_and_the_rest_is_kept(
    suite: Suite, cache: Path, alone: Run, tmp_path: Path
) -> None:
    broken = Watched(loses=lambda cells: cells[0].method == "random" and cells[0].seed == 1)
    sentence = re.escape(
        "3 cells were not measured, the first lenet-300-100--digits--random--s1--k1.0, since their worker was lost: "
        "BrokenProcessPool: a child process terminated abruptly. Everything else is in the run folder; run the same "
        "again, and it goes on from there."
    )
    with pytest.raises(WorkerError, match=sentence):
        run(suite, tmp_path, cache_dir=cache, progress=False, executor=broken)
    assert len(load_run(tmp_path).cells) == 15
    run(suite, tmp_path, cache_dir=cache, progress=False)
    assert results(tmp_path) == results(alone.path)


def test_a_worker_with_other_versions_is_refused(
    suite: Suite, marker: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    marker.touch()  # nothing stalls, should a cell be measured
    own = jobs.system()
    monkeypatch.setattr(runner, "system", lambda: own | {"versions": own["versions"] | {"torch": "1.0"}})
    with pytest.raises(OptionError, match=re.escape(f"A worker has torch {own['versions']['torch']} instead of 1.0")):
        run(suite, tmp_path, cache_dir=cache, progress=False, executor=Watched())
    assert len(load_run(tmp_path).cells) == 0


def test_the_machines_of_workers_are_recorded(
    suite: Suite, cache: Path, alone: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = jobs.system()
    monkeypatch.setattr(runner, "system", lambda: own | {"machine": {"cpu": "another"}})
    shutil.copytree(alone.path, tmp_path, dirs_exist_ok=True)
    next(tmp_path.glob("cells/*random--s1--k0.3.json")).unlink()
    (tmp_path / "run.json").unlink()
    finished = run(suite, tmp_path, cache_dir=cache, progress=False, executor=Watched())
    assert finished.meta["data"] == alone.meta["data"]
    assert finished.meta["checkpoints"] == alone.meta["checkpoints"]
    assert list(finished.meta["workers"].values()) == [own["machine"]]
    assert "other machines" in prose.timing_conditions(finished)
    assert "workers" not in alone.meta
    assert "workers" not in alone.meta["machine"]


def test_results_depend_on_the_threads_that_are_asked_for_and_no_others(
    suite: Suite, cache: Path, alone: Run, tmp_path: Path
) -> None:
    torch.set_num_threads(3)
    try:
        run(suite, tmp_path, cache_dir=cache, progress=False)
    finally:
        torch.set_num_threads(1)
    assert results(tmp_path) == results(alone.path)
    assert alone.meta["machine"]["torch_threads"] == 1
    meta = run(suite, tmp_path, cache_dir=cache, progress=False, threads=2).meta
    assert meta["machine"]["torch_threads"] == 1
    assert meta["resumed"][-1]["machine"]["torch_threads"] == 2


def test_a_job_has_the_threads_of_its_run_and_deterministic_kernels() -> None:
    def state() -> tuple[int, bool]:
        return torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()

    def measure(cells: list[Cell], only_prepare: bool) -> jobs.Outbox:
        seen.append(state())
        return jobs.Outbox()

    before, seen = state(), list[tuple[int, bool]]()
    jobs.run_job(jobs.Work(measure, before[0] + 1, jobs.system(), {}), [], True)
    assert seen == [(before[0] + 1, True)]
    assert state() == before


def test_devices_are_taken_in_turn() -> None:
    assert assign_devices(5, 2) == [0, 1, 0, 1, 0]
    assert assign_devices(2, 0) == [None, None]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"workers": 0}, "workers is a whole number of at least 1, not 0"),
        ({"threads": 1.5}, "threads is a whole number"),
        ({"device": "tpu9"}, "'tpu9' is no device: give cpu, cuda or cuda:NUMBER"),
        ({"device": "meta"}, "not on meta"),
        ({"device": "cuda:99"}, "There is no device cuda:99"),
    ],
)
def test_bad_options_are_refused_before_anything_is_written(
    suite: Suite, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(OptionError, match=re.escape(message)):
        run(suite, tmp_path / "run", progress=False, **options)
    assert not (tmp_path / "run").exists()


def test_a_scheduler_that_does_not_answer() -> None:
    message = "No Dask scheduler answers at tcp://127.0.0.1:9"
    with pytest.raises(WorkerError, match=message), dask_executor("tcp://127.0.0.1:9", 0.5):
        pass


def test_an_executor_that_gives_its_jobs_up_has_lost_its_scheduler(
    suite: Suite, cache: Path, alone: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Dask's does when the connection to the scheduler is lost: it cancels all futures, and nobody answers again."""

    monkeypatch.setattr(runner, "IN_FLIGHT", 1)
    submitted = itertools.count()

    class Orphaned(Watched):
        def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
            if next(submitted) < 4:  # one that prepares, and three that measure
                return super().submit(fn, *args, **kwargs)
            future: Future[Any] = Future()
            future.cancel()
            future.set_running_or_notify_cancel()
            return future

    sentence = r"cells were not measured, the first .*, since the scheduler of the workers ended, or cannot be reached"
    with pytest.raises(WorkerError, match=sentence) as caught:
        run(suite, tmp_path, cache_dir=cache, progress=False, executor=Orphaned())
    assert "worker was lost" not in str(caught.value)
    assert 0 < len(load_run(tmp_path).cells) < 18
    run(suite, tmp_path, cache_dir=cache, progress=False)
    assert results(tmp_path) == results(alone.path)
