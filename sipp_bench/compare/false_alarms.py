"""How often the timing gate gives a false alarm on this machine, measured: the same code, timed twice and compared.

    python -m sipp_bench.compare.false_alarms reports/baselines/false-alarms.json

A repetition is two runs, one after the other, of a small set of operations, each beside a matrix product of a similar
size; the runs are compared as `sipp-bench compare` does. Every "regression" is a false alarm, every "better" as well.
Ratios to the matrix product are judged, and apart from them the plain seconds, by the clock, of the same rounds.
"""

import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from scipy import stats

from sipp_bench.compare.findings import ALPHA, THRESHOLD
from sipp_bench.compare.timings import Timing, judge
from sipp_bench.files import write_atomically

REPETITIONS, ROUNDS = 200, 20
CONFIDENCE = 0.95

Operation = Callable[[], object]


@dataclass
class _Samples:
    """One operation of one run: by the thread's own clock as a ratio, and by the wall clock in seconds."""

    ratios: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)


def measure(
    repetitions: int = REPETITIONS, rounds: int = ROUNDS, pairs: dict[str, tuple[Operation, Operation]] | None = None
) -> dict[str, Any]:
    """The counts, JSON-ready, with exact two-sided 95 % intervals for the rates.

    pairs: name -> operation and its reference; by default `operations()`.
    """
    from sipp_bench.system import describe_system

    pairs, system = operations() if pairs is None else pairs, describe_system()
    start, threads = time.perf_counter(), torch.get_num_threads()
    torch.set_num_threads(1)
    found: dict[str, list[list[str]]] = {"ratios to a reference": [], "seconds": []}
    try:
        for _ in range(repetitions):
            base, new = _run(pairs, rounds), _run(pairs, rounds)
            ratios = [Timing(name, tuple(base[name].ratios), tuple(new[name].ratios), "") for name in pairs]
            seconds = [Timing(name, tuple(base[name].seconds), tuple(new[name].seconds), "s") for name in pairs]
            for kind, timings in (("ratios to a reference", ratios), ("seconds", seconds)):
                found[kind].append([finding.status for finding in judge(timings)])
    finally:
        torch.set_num_threads(threads)
    return {
        "format": 1,
        "alpha": ALPHA,
        "threshold": THRESHOLD,
        "repetitions": repetitions,
        "rounds": rounds,
        "operations": list(pairs),
        "repetitions_with": {kind: _counts(statuses) for kind, statuses in found.items()},
        "took_seconds": round(time.perf_counter() - start, 1),
        **system,
    }


def operations() -> dict[str, tuple[Operation, Operation]]:
    """The max-times product and a prune by magnitude, each with a matrix product that takes about as long."""
    import sipp_bench as sb
    from sipp_bench import maxtimes
    from sipp_bench.patches import Windows
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
    fitted = sb.fit(model, torch.rand(8, 1, 28, 28, generator=generator), "magnitude")
    return {
        "max-times product": (lambda: maxtimes.max_product(windows, z, positive, out), lambda: torch.mm(a, r)),
        "prune by magnitude": (lambda: fitted.prune(0.2, 0), lambda: torch.mm(square, square)),
    }


def _run(pairs: dict[str, tuple[Operation, Operation]], rounds: int) -> dict[str, _Samples]:
    """One run: after a first call each, rounds in which every operation takes its turn beside its reference."""
    samples = {name: _Samples() for name in pairs}
    for subject, reference in pairs.values():
        reference(), subject()
    for _ in range(rounds):
        for name, (subject, reference) in pairs.items():
            beside, _ = _timed(reference)
            own, wall = _timed(subject)
            samples[name].ratios.append(own / beside)
            samples[name].seconds.append(wall)
    return samples


def _timed(operation: Operation) -> tuple[float, float]:
    """Seconds by the thread's clock and by the wall clock."""
    wall, own = time.perf_counter(), time.thread_time()
    operation()
    return time.thread_time() - own, time.perf_counter() - wall


def _counts(statuses: Sequence[Sequence[str]]) -> dict[str, Any]:
    counts: dict[str, Any] = {}
    for status in ("regression", "better"):
        count = sum(status in each for each in statuses)
        interval = stats.binomtest(count, len(statuses)).proportion_ci(CONFIDENCE, method="exact")
        counts[status] = {"count": count, "rate_low": float(interval.low), "rate_high": float(interval.high)}
    return counts


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(f"Usage: {(__doc__ or '').splitlines()[2].strip()}")
    result = measure()
    write_atomically(Path(sys.argv[1]), json.dumps(result, indent=1) + "\n")
    print(json.dumps(result["repetitions_with"], indent=1))
