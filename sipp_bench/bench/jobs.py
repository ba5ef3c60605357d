"""Cells sent away to be measured: what goes to a worker, what comes back, and the loop that writes it down.

    this process                                   a worker
    distribute ---- Work, some cells ---------->   run_job: prepare the network, measure the cells
    Store, Bar <--- Outbox: facts and results --

One process alone writes to the run folder. A job is small: the suite and the cells of one method on one network, since
fitting is done once for all of them. A network's first job only trains it (and puts it into the cache), so that it is
trained once where workers share a file system; where they don't, each worker trains its own, to the same weights,
since training follows from the seed. Results come back method by method, so that what a lost worker had measured of
its method is measured again.
"""

import contextlib
import functools
import hashlib
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, CancelledError, Executor, Future, wait
from dataclasses import dataclass, field
from itertools import groupby
from operator import attrgetter
from typing import Any, Protocol, TypeAlias

import torch

from sipp_bench.errors import OptionError, SippBenchError, WorkerError
from sipp_bench.machine.parts import torch_threads
from sipp_bench.machine.system import describe_system
from sipp_bench.methods import Method, register_method
from sipp_bench.store.cell import Cell
from sipp_bench.store.folder import Store
from sipp_bench.store.records import to_json

IN_FLIGHT = 256
"""How many jobs an executor of unknown size is given at a time: enough for as many workers, few enough to remember."""

_alone = threading.Lock()
"""Seeds and the number of threads belong to the process, so that jobs in threads of one process take turns."""


class Bar(Protocol):
    """What is used of a progress bar of tqdm."""

    def update(self) -> object: ...

    def set_postfix_str(self, s: str) -> object: ...


@dataclass(frozen=True)
class Quiet:
    """The `Bar` of a worker: none."""

    def update(self) -> None:
        return None

    def set_postfix_str(self, s: str) -> None:
        return None


@dataclass
class Outbox:
    """What would be written to a `Store`, kept to be delivered in the process that holds it."""

    facts: list[tuple[str, str, Mapping[str, Any]]] = field(default_factory=list)
    cells: list[tuple[tuple[Any, ...], dict[str, Any]]] = field(default_factory=list)

    def record(self, section: str, name: str, facts: Mapping[str, Any]) -> None:
        """As of a `Store`."""
        self.facts.append((section, name, facts))

    def write_cell(self, *arguments: Any, **options: Any) -> None:
        """As of a `Store`."""
        self.cells.append((arguments, options))

    def deliver(self, store: Store, bar: Bar) -> None:
        """Write everything to `store`. Raises what it raises."""
        for fact in self.facts:
            store.record(*fact)
        for arguments, options in self.cells:
            store.write_cell(*arguments, **options)
            bar.update()


Writer: TypeAlias = Store | Outbox


@dataclass(frozen=True)
class Work:
    """What all jobs of a run have in common.

    measure: from cells of one network, data set and seed to what is found out about them; told with True that the
    network is to be prepared and no more. system: where the process that sends the work runs, as `system` describes it.
    methods: the classes behind their names.
    """

    measure: Callable[[list[Cell], bool], Outbox]
    threads: int
    system: Mapping[str, Any]
    methods: Mapping[str, type[Method]]


def run_job(work: Work, cells: list[Cell], only_prepare: bool) -> Outbox:
    """Do the work on `cells`; called in a worker. A cell that raises comes back as failed, like any other result.

    Another machine than that of the process that sends the work is noted. Raises StoreError when the cache cannot be
    written, and OptionError when the versions of the worker are not those of that process.
    """
    _require_versions(work.system)
    for name, cls in work.methods.items():
        register_method(name, cls)
    with _alone, reproducible(work.threads):
        outbox = work.measure(cells, only_prepare)
    machine = system()["machine"]
    if machine != work.system["machine"]:
        outbox.record("workers", hashlib.sha256(to_json(machine).encode()).hexdigest()[:8], machine)
    return outbox


def distribute(executor: Executor, work: Work, cells: Sequence[Cell], store: Store, bar: Bar, in_flight: int) -> None:
    """Have the workers of `executor` measure `cells`, and write to `store` what comes back, as it does.

    At most `in_flight` jobs are with the executor. Raises WorkerError at the end when workers were lost and their
    cells with them, and at once when the executor cancels jobs by itself; OptionError or StoreError at once when one
    comes back, with the other jobs cancelled.
    """
    waiting = deque((list(group), True) for _, group in groupby(cells, attrgetter("subject")))
    running: dict[Future[Outbox], tuple[list[Cell], bool]] = {}
    lost: list[Cell] = []
    reason: BaseException | None = None
    abandoned = False
    try:
        while (waiting or running) and not abandoned:
            while waiting and len(running) < in_flight:
                job = waiting.popleft()
                running[_submitted(executor, work, *job)] = job
            bar.set_postfix_str(f"{len(running)} jobs at the workers")
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                group, only_prepared = running.pop(future)
                try:
                    outbox = future.result()
                except SippBenchError:
                    raise
                except (Exception, CancelledError) as error:
                    lost += group
                    reason = error
                    # Not cancelled by us: the executor has given up its jobs, as Dask's does without its scheduler.
                    abandoned = abandoned or isinstance(error, CancelledError)
                    continue
                outbox.deliver(store, bar)
                if only_prepared and not outbox.cells:  # where preparing fails, all of them are there as failed
                    # In front: the network is at hand in one worker, and results come early.
                    methods = [list(part) for _, part in groupby(group, lambda cell: cell.method)]
                    waiting.extendleft((part, False) for part in reversed(methods))
    finally:
        for future in running:
            future.cancel()
    if reason is not None:
        lost += [cell for group, _ in [*running.values(), *waiting] for cell in group]
        why = f"since their worker was lost: {_sentence(reason)}"
        if abandoned:
            why = "since the scheduler of the workers ended, or cannot be reached any more."
        raise WorkerError(
            f"{len(lost)} cells were not measured, the first {lost[0].id}, {why} Everything else is in the run folder; "
            "run the same again, and it goes on from there."
        ) from reason


@contextlib.contextmanager
def reproducible(threads: int) -> Iterator[None]:
    """Deterministic kernels where torch has them, and so many torch threads, for this block only.

    Sums are split between threads, so that their last bits depend on how many there are.
    """
    enabled = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with torch_threads(threads):
            yield
    finally:
        torch.use_deterministic_algorithms(enabled, warn_only=warn_only)


@functools.cache
def system() -> dict[str, Any]:
    """`describe_system`, once a process, without the threads, which depend on when one asks."""
    found = describe_system()
    return found | {"machine": {key: value for key, value in found["machine"].items() if key != "torch_threads"}}


def _require_versions(wanted: Mapping[str, Any]) -> None:
    """Raise OptionError unless this process has the Python, the packages and the commit that are `wanted`."""
    expected, own = ({**each["versions"], "commit": each["commit"]} for each in (wanted, system()))
    other = [f"{name} {own[name]} instead of {expected[name]}" for name in expected if own[name] != expected[name]]
    if other:
        raise OptionError(
            f"A worker has {', '.join(other)}: its results would not compare. Install the same versions everywhere, "
            "and start the workers anew."
        )


def _submitted(executor: Executor, work: Work, cells: list[Cell], only_prepare: bool) -> Future[Outbox]:
    """The job's future; an executor that is broken gives one that holds the error."""
    try:
        return executor.submit(run_job, work, cells, only_prepare)
    except BrokenExecutor as error:
        future: Future[Outbox] = Future()
        future.set_exception(error)
        return future


def _sentence(error: BaseException) -> str:
    text = f"{type(error).__name__}: {error}".strip().rstrip(":")
    return text if text.endswith(".") else f"{text}."
