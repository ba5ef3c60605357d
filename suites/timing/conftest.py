"""Timings as ratios of pairs that take turns in one process: what another program does to one, it does to both.

    pytest suites/timing --benchmark-json=timing.json        (or: tox run -e timing)
    python suites/timing/table.py timing.json

A benchmark measures and asserts nothing about time; one that measured nothing fails.
"""

import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from networks import Pair

from sipp_bench.machine.system import describe_system

DEVICES = ("cpu", "cuda")


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    """The machine as every other result of this project describes it; no host name."""
    machine_info.clear()
    machine_info.update(describe_system())


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    benchmarks = getattr(session.config, "_benchmarksession", None)
    if exitstatus == 0 and not (benchmarks and benchmarks.benchmarks):
        session.exitstatus = 1
        print("\nNothing was measured.")


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> torch.device:
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device on this machine")
    return torch.device(request.param)


@pytest.fixture
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    """As many threads as the parameter says, one by default."""
    before, wanted = torch.get_num_threads(), getattr(request, "param", 1)
    torch.set_num_threads(wanted)
    yield wanted
    torch.set_num_threads(before)


@pytest.fixture
def pair(benchmark: Any, threads: int) -> Pair:
    """pair(subject, reference, device, rounds, elsewhere, **labels): time both in turn and keep every sample.

    One thread is timed by the time it ran (others may share the core), several by the clock. CUDA is synchronised
    before and after. The benchmark's own numbers are the subject's.
    """
    clock = time.thread_time if threads == 1 else time.perf_counter

    def measure(
        subject: Callable[[], Any], reference: Callable[[], Any], device: torch.device, rounds: int,
        elsewhere: bool = False, **labels: Any,
    ) -> None:  # fmt: skip
        # The thread's own time says nothing of work on a GPU or in another process.
        own_clock = time.perf_counter if device.type == "cuda" or elsewhere else clock
        samples: list[float] = []
        references: list[float] = []

        def timed(function: Callable[[], Any], into: list[float]) -> None:
            if device.type == "cuda":
                torch.cuda.synchronize()
            start = own_clock()
            function()
            if device.type == "cuda":
                torch.cuda.synchronize()
            into.append(own_clock() - start)

        with torch.no_grad():
            subject(), reference()  # first calls prepare caches and workspaces
            benchmark.pedantic(
                lambda: timed(subject, samples), setup=lambda: timed(reference, references), rounds=rounds
            )
        # The runner of rounds calls once more to check itself in some of its versions: pairs only.
        count = min(len(samples), len(references))
        if count < rounds:
            pytest.fail(f"Only {count} of {rounds} rounds were measured.")
        ratios = np.array(samples[:count]) / np.array(references[:count])
        benchmark.extra_info.update(
            labels,
            device=str(device),
            threads=threads,
            clock=own_clock.__name__,
            subject_seconds=samples[:count],
            reference_seconds=references[:count],
            ratio_quartiles=[float(q) for q in np.quantile(ratios, (0.25, 0.5, 0.75))],
        )

    return measure
