"""Where jobs run: processes of this machine, or the workers of a Dask cluster; both as `concurrent.futures` has it."""

import contextlib
import multiprocessing
import os
import queue
import signal
import threading
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor, Executor, Future, ThreadPoolExecutor
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any, ParamSpec, TypeVar

import torch

from sipp_bench.errors import OptionError, WorkerError

_Given = ParamSpec("_Given")
_Result = TypeVar("_Result")

TRIES = 3
"""How often a job is begun whose process ends under it, before it is given up: it may be the job that ends it."""


class LostWorker(BrokenExecutor):
    """A process ended during a job, and so did others that began it anew."""


class LocalWorkers(Executor):
    """Processes of this machine, one job at a time in each; what is submitted must be picklable.

    A process that ends is replaced and its job begun anew, up to TRIES times; the others' jobs are not touched (a
    `ProcessPoolExecutor` gives up every job with the first process that ends, and does not say which one it was).
    No process outlives this one, however it ends, nor a `with` block that is left by an exception.

    workers: how many. device: "cuda" for the GPUs of this machine in turn, as each process's own default.
    """

    def __init__(self, workers: int, device: str = "cpu") -> None:
        count = torch.cuda.device_count() if device == "cuda" else 0
        self._workers = [_Process(gpu) for gpu in assign_devices(workers, count)]
        self._idle: queue.SimpleQueue[_Process] = queue.SimpleQueue()
        for worker in self._workers:
            self._idle.put(worker)
        self._threads = ThreadPoolExecutor(workers)

    def submit(self, fn: Callable[_Given, _Result], /, *args: _Given.args, **kwargs: _Given.kwargs) -> Future[_Result]:
        return self._threads.submit(self._run, fn, args, kwargs)

    def _run(self, work: Callable[..., _Result], arguments: tuple[Any, ...], options: dict[str, Any]) -> _Result:
        worker = self._idle.get()
        try:
            for _ in range(TRIES):
                with contextlib.suppress(EOFError, OSError):
                    worker.send(work, arguments, options)
                    succeeded, value = worker.receive()
                    break
                worker.restart()
            else:
                raise LostWorker(f"{TRIES} processes ended while they worked on it, the last with {worker.ending}.")
        finally:
            self._idle.put(worker)
        if not succeeded:
            raise value
        return value  # type: ignore[no-any-return]  # what `work` returned, sent through a pipe

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End the processes: after the jobs that were submitted, or with wait=False at once."""
        if not wait:
            for worker in self._workers:
                worker.kill()
        self._threads.shutdown(wait=True, cancel_futures=cancel_futures or not wait)
        for worker in self._workers:
            worker.close()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.shutdown(wait=kind is None)


class _Process:
    """A process that is sent calls and answers them one by one. gpu: its default CUDA device, if any."""

    def __init__(self, gpu: int | None) -> None:
        self.gpu = gpu
        self.ending = "exit code None"
        self._ended_for_good = False
        self._changing = threading.Lock()
        self._start()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")  # forked processes may inherit locks that threads of torch hold
        self._connection, other = context.Pipe()
        self._process = context.Process(target=_serve, args=(other, self.gpu), daemon=True)
        # A process has the signals blocked that its parent has: interrupts are the parent's business, while this one
        # is still importing too.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            self._process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        other.close()  # so that the process's own end is the only one, and its death is noticed here

    def send(self, *call: Any) -> None:
        self._connection.send(call)

    def receive(self) -> tuple[bool, Any]:
        answer: tuple[bool, Any] = self._connection.recv()
        return answer

    def restart(self) -> None:
        with self._changing:
            self._process.kill()
            self._process.join()
            self.ending = f"exit code {self._process.exitcode}"
            if self._ended_for_good:
                raise LostWorker("The processes were stopped.")
            self._connection.close()
            self._start()

    def kill(self) -> None:
        with self._changing:
            self._ended_for_good = True
            self._process.kill()

    def close(self) -> None:
        self._connection.close()  # the process reads the end of its input, and ends
        self._process.join(timeout=10)
        self._process.kill()
        self._process.join()


def _serve(connection: "Connection[Any, Any]", gpu: int | None) -> None:
    """A worker's life: answer calls until the other end is closed."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if gpu is not None:
        torch.cuda.set_device(gpu)
    with contextlib.suppress(EOFError):
        while True:
            work, arguments, options = connection.recv()
            try:
                answer = (True, work(*arguments, **options))
            except Exception as error:
                answer = (False, error)
            connection.send(answer)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None  # this runs in a process that multiprocessing started
    parent.join()
    os._exit(1)


def assign_devices(workers: int, count: int) -> list[int | None]:
    """A CUDA device's number for each worker: those of `count` devices in turn, or None where there are none."""
    return [index % count if count else None for index in range(workers)]


def require_device(name: str) -> None:
    """Raise OptionError unless this machine has the device."""
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise OptionError(f"{name!r} is no device: give cpu, cuda or cuda:NUMBER.") from error
    if device.type not in ("cpu", "cuda"):
        raise OptionError(f"Runs are on cpu, cuda or cuda:NUMBER, not on {name}.")
    there = torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= there:
        raise OptionError(f"There is no device {name}: torch sees {there} CUDA devices here. Use cpu.")


@contextlib.contextmanager
def dask_executor(address: str, timeout: float = 30) -> Iterator[Executor]:
    """The workers of the Dask scheduler at `address`, such as tcp://10.0.0.1:8786 or the path of a scheduler file.

    A job whose worker is lost goes to another one; the scheduler gives it up after the third (its setting
    distributed.scheduler.allowed-failures). Start the workers with one thread each: jobs in one process take turns.
    Raises OptionError when Dask is not installed, and WorkerError when nobody answers within `timeout` seconds.
    """
    try:
        from distributed import Client
    except ImportError as error:
        raise OptionError('A scheduler needs Dask, which is not installed: pip install "sipp-bench[dask]".') from error
    where = {"scheduler_file": address} if address.endswith(".json") else {"address": address}
    try:
        client = Client(**where, timeout=timeout, set_as_default=False)
    except (OSError, ValueError) as error:
        raise WorkerError(
            f"No Dask scheduler answers at {address}. Start one with: dask scheduler; it says its address."
        ) from error
    if not client.scheduler_info()["workers"]:
        warnings.warn(f"The Dask scheduler at {address} has no workers yet: cells wait for the first.", stacklevel=3)
    executor = client.get_executor(pure=False)
    try:
        yield executor
    except BaseException:
        executor.shutdown(wait=False)
        raise
    finally:
        client.close()
