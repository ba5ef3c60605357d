"""How often the timing gate is wrong on this machine, measured: false alarms on equal code, misses of slower code.

    python -m sipp_bench.compare.false_alarms reports/baselines/false-alarms.json

A repetition is a few short runs of each of three sides that take turns: BASE, the same code again, and code that really
takes 15 % longer (each operation is followed by work of that length). A run times a small set of operations, each
beside a matrix product of a similar size, and is compared as `sipp-bench compare` does. For the same code every
"regression" is a false alarm, and every "better" as well; for the slower code a "regression" is what must be found.

Judged are, from the same rounds: ratios to the matrix product, one run a side and all; seconds by the clock, medians of
runs that took turns. For comparison also seconds of one run a side with rounds as samples, which decides nothing in
`compare`: the machine may have been busier. All samples are kept, beside the JSON, as .safetensors.
"""

import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
import torch
from numpy.typing import NDArray
from scipy import stats

from sipp_bench.compare.findings import ALPHA, THRESHOLD
from sipp_bench.compare.timings import Timing, judge
from sipp_bench.machine.files import write_atomically

REPETITIONS, RUNS, ROUNDS = 200, 6, 12
SLOWER = 0.15
CONFIDENCE = 0.95
SIDES = ("base", "same", "slower")
KINDS = (
    "ratios, one run a side", "ratios, all runs", "seconds, medians of runs in turns",
    "seconds, rounds of one run (compare does not decide by them)",
)  # fmt: skip

Operation = Callable[[], object]
Samples = dict[str, NDArray[np.float32]]


def measure(
    repetitions: int = REPETITIONS,
    runs: int = RUNS,
    rounds: int = ROUNDS,
    pairs: dict[str, tuple[Operation, Operation]] | None = None,
) -> Samples:
    """Arrays `ratios` (by the thread's own clock) and `seconds` (by the wall clock), float32, of shape (repetitions,
    sides, runs, rounds, operations).

    pairs: name -> operation and its reference; by default `operations()`.
    """
    pairs = operations() if pairs is None else pairs
    threads, measured = torch.get_num_threads(), np.empty((2, repetitions, len(SIDES), runs, rounds, len(pairs)))
    torch.set_num_threads(1)
    try:
        for repetition in range(repetitions):
            for turn in range(runs):
                # The sides take turns, and who goes first changes from turn to turn.
                for side in range(len(SIDES))[:: 1 if turn % 2 == 0 else -1]:
                    slower = SLOWER if SIDES[side] == "slower" else 0.0
                    measured[:, repetition, side, turn] = _run(list(pairs.values()), rounds, slower)
    finally:
        torch.set_num_threads(threads)
    return {"ratios": measured[0].astype(np.float32), "seconds": measured[1].astype(np.float32)}


def summarise(samples: Samples) -> dict[str, Any]:
    """The counts, JSON-ready, with exact two-sided 95 % intervals for the rates."""
    repetitions, _, runs, rounds, operations = samples["ratios"].shape
    found = [_statuses({name: array[index] for name, array in samples.items()}) for index in range(repetitions)]
    return {
        "alpha": ALPHA,
        "threshold": THRESHOLD,
        "slower_by": SLOWER,
        "repetitions": repetitions,
        "runs_a_side": runs,
        "rounds_a_run": rounds,
        "operations": operations,
        "repetitions_with": {
            side: {kind: _counts([each[side][kind] for each in found]) for kind in KINDS} for side in SIDES[1:]
        },
        "operations_found_slower": {kind: _share([each["slower"][kind] for each in found]) for kind in KINDS},
    }


def operations() -> dict[str, tuple[Operation, Operation]]:
    """The max-times product and a prune by magnitude, each with a matrix product that takes about as long."""
    from sipp_bench import maxtimes
    from sipp_bench.methods import fit
    from sipp_bench.network.patches import Windows
    from sipp_bench.zoo import models

    generator = torch.Generator().manual_seed(0)
    patches, n, neurons = 256, 784, 300
    x = torch.rand(1, n, patches, generator=generator)
    z = torch.rand(1, 1, 2 * neurons, patches, generator=generator) + 0.1
    positive = torch.rand(1, neurons, n, generator=generator) < 0.5
    out, windows = torch.zeros(1, neurons, n), Windows(x)
    a, r = x[0].contiguous(), z[0, 0].t().contiguous()
    square = torch.rand(768, 768, generator=generator)
    with models.seeded(0):
        model = models.build("lenet-300-100", (1, 28, 28), 10).eval()
    fitted = fit(model, torch.rand(8, 1, 28, 28, generator=generator), "magnitude")
    return {
        "max-times product": (lambda: maxtimes.max_product(windows, z, positive, out), lambda: torch.mm(a, r)),
        "prune by magnitude": (lambda: fitted.prune(0.2, 0), lambda: torch.mm(square, square)),
    }


def _run(pairs: Sequence[tuple[Operation, Operation]], rounds: int, slower: float) -> NDArray[np.float64]:
    """(2, rounds, operations): ratios and seconds of one run; each operation beside its reference in every round."""
    samples = np.empty((2, rounds, len(pairs)))
    for subject, reference in pairs:
        reference(), subject()
    for number in range(rounds):
        for place, (subject, reference) in enumerate(pairs):
            beside, _ = _timed(reference, 0.0)
            own, wall = _timed(subject, slower)
            samples[:, number, place] = own / beside, wall
    return samples


def _timed(operation: Operation, slower: float) -> tuple[float, float]:
    """Seconds by the thread's clock and by the wall clock, of the operation and the planted work after it."""
    wall, own = time.perf_counter(), time.thread_time()
    operation()
    end = time.thread_time() + slower * (time.thread_time() - own)
    while slower and time.thread_time() < end:
        pass
    return time.thread_time() - own, time.perf_counter() - wall


def _statuses(samples: Samples) -> dict[str, dict[str, list[str]]]:
    """Of one repetition: side -> kind -> the status of each operation, that side against BASE."""
    ratios, seconds = (samples[name] for name in ("ratios", "seconds"))
    sides, _, _, operations = ratios.shape
    # Samples of each kind: (sides, samples, operations).
    kinds = (ratios[:, 0], ratios.reshape(sides, -1, operations), np.median(seconds, axis=2), seconds[:, 0])
    return {
        SIDES[side]: {
            kind: [
                finding.status for finding in judge([_timing(of[0], of[side], place) for place in range(operations)])
            ]
            for kind, of in zip(KINDS, kinds, strict=True)
        }
        for side in range(1, sides)
    }


def _timing(base: NDArray[Any], new: NDArray[Any], place: int) -> Timing:
    return Timing(str(place), tuple(base[:, place].tolist()), tuple(new[:, place].tolist()), "")


def _counts(statuses: Sequence[Sequence[str]]) -> dict[str, Any]:
    """Repetitions in which any operation has the status: the gate fails, or praises, as a whole."""
    return {
        status: _rate(sum(status in each for each in statuses), len(statuses)) for status in ("regression", "better")
    }


def _share(statuses: Sequence[Sequence[str]]) -> dict[str, Any]:
    """Operations that are called slower, of all."""
    flat = [status for each in statuses for status in each]
    return _rate(flat.count("regression"), len(flat))


def _rate(count: int, of: int) -> dict[str, Any]:
    interval = stats.binomtest(count, of).proportion_ci(CONFIDENCE, method="exact")
    return {"count": count, "of": of, "rate_low": float(interval.low), "rate_high": float(interval.high)}


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(f"Usage: {(__doc__ or '').splitlines()[2].strip()}")
    from sipp_bench.machine.system import describe_system

    system, start, path = describe_system(), time.perf_counter(), Path(sys.argv[1])
    samples = measure()
    took = {"took_seconds": round(time.perf_counter() - start, 1)}
    result = {"format": 2, **summarise(samples), **took, **system}
    write_atomically(path.with_suffix(".safetensors"), safetensors.numpy.save(samples))
    write_atomically(path, json.dumps(result, indent=1) + "\n")
    print(json.dumps(result["repetitions_with"], indent=1))
