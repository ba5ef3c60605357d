"""Work on a weight by parts of its rows: few enough numbers at a time for the cache, parts in parallel on the CPU."""

import functools
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Condition
from typing import TypeVar

import numpy as np
import torch

_Result = TypeVar("_Result")

# Numbers in one part of a weight's rows (see `row_parts`): 2 MiB of float64. Fresh memory costs more than arithmetic;
# with less, two threads wait for each other between their operations.
PART = 1 << 18


def row_parts(rows: int, columns: int) -> Iterator[slice]:
    """Slices of whole rows, few enough numbers each that a handful of temporaries stays in the cache."""
    step = max(1, PART // max(1, columns))
    if rows > step:
        _keep_freed_memory()
    return (slice(start, min(start + step, rows)) for start in range(0, rows, step))


@functools.cache
def _keep_freed_memory() -> None:
    """Have one part's temporaries find those of the last still there; once a process.

    glibc hands freed memory back to the system beyond twice the largest block (of up to 32 MiB) that it has mapped and
    freed so far. This one is never touched; torch would fill it where its algorithms are to be deterministic.
    """
    np.empty(24 << 20, dtype=np.uint8)


def over_parts(work: Callable[[slice], _Result], rows: int, columns: int) -> list[_Result]:
    """What `work` gives for each of `row_parts`, in order; on as many threads as torch has, one for an operation.

    A part is too small to be worth dividing an operation, and what is done to different parts does not depend on each
    other: the results are the same for any number of threads.
    """
    parts, threads = list(row_parts(rows, columns)), torch.get_num_threads()
    if threads == 1 or len(parts) == 1:
        return [work(part) for part in parts]
    with torch_threads(1), ThreadPoolExecutor(threads) as pool:
        return list(pool.map(work, parts))


class Turns:
    """Lets parts that are worked on in parallel do one thing in their order: draw from one generator."""

    def __init__(self) -> None:
        self._row = 0
        self._moved = Condition()

    @contextmanager
    def turn(self, part: slice) -> Iterator[None]:
        """The turn of `part`, after those of the parts before it."""
        try:
            with self._moved:
                self._moved.wait_for(lambda: self._row >= part.start)
            yield
        finally:
            self.done(part)

    def done(self, part: slice) -> None:
        """Nothing (more) to do for `part`. To be called for every part, also for one that fails: the next one waits."""
        with self._moved:
            self._moved.wait_for(lambda: self._row >= part.start)
            self._row = max(self._row, part.stop)
            self._moved.notify_all()


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Sums are split between threads, so their rounding depends on the number of threads; hold it at `count`."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
