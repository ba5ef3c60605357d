"""Files that pytest-benchmark wrote: every benchmark by its full name, as ratios where a reference was timed too."""

import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from statistics import median
from typing import Any

from sipp_bench.compare.findings import Comparison, nothing, sort
from sipp_bench.compare.timings import (
    LOST_REFERENCE,
    NOT_IN_TURNS,
    ONE_RUN,
    OTHER_MACHINE,
    Timing,
    as_moment,
    judge,
    took_turns,
)
from sipp_bench.errors import StoreError
from sipp_bench.machine.files import read_regular

HISTORY = "history.json"
"""The file of a baseline's folder that is no run."""


def compare(base: Path, new: Path) -> Comparison:
    """Two JSON files of pytest-benchmark, or two folders of such files, one a run. Raises StoreError for a file that
    is none.

    Ratios to a reference: every round is a sample. Seconds: where there are several runs on both sides that took turns
    (never more than two of one side in a row), the median of each run is a sample; else a difference decides nothing.
    With turns, what the machine does meanwhile, it does to both sides: the test is exact for an order drawn at random,
    and errs on the safe side for turns where moments near each other are alike.
    """
    sides = [[read(file) for file in _files(path)] for path in (base, new)]
    found = [_by_name(runs) for runs in sides]
    if not found[0].keys() & found[1].keys():
        return nothing(str(base), str(new), "timing", "BASE and NEW have no benchmark in common.")
    machines = [machine(run) for runs in sides for run in runs]
    same_machine = machines[0] is not None and all(other == machines[0] for other in machines)
    several = min(map(len, sides)) > 1
    in_turns = took_turns(*([moment(run) for run in runs] for runs in sides))
    doubt = ONE_RUN if not several else None if in_turns else NOT_IN_TURNS
    names = [*found[0], *(name for name in found[1] if name not in found[0])]
    timings = [
        _timing(name, [each.get(name, []) for each in found], [len(runs) for runs in sides], same_machine, doubt)
        for name in names
    ]
    notes = () if same_machine else ("The machines differ, or one is not described: only ratios to a reference count.",)
    return Comparison(str(base), str(new), "timing", sort(judge(timings)), notes)


def read(path: Path) -> dict[str, Any]:
    """What is in a JSON file of pytest-benchmark. Raises StoreError, naming the file, when it is none."""
    try:
        content = json.loads(read_regular(path))
    except OSError as error:
        raise StoreError(f"Cannot read {path}: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise StoreError(f"{path} is not JSON, or not all of it. Run the benchmarks again.") from error
    listed = content.get("benchmarks") if isinstance(content, dict) else None
    if not isinstance(listed, list) or not all(_is_benchmark(each) for each in listed):
        raise StoreError(f"{path} was not written by pytest-benchmark. Make one with: pytest --benchmark-json={path}")
    return dict(content)


def ratios(benchmark: Mapping[str, Any]) -> tuple[float, ...]:
    """Subject over reference, round by round; empty where no reference was timed."""
    info = benchmark.get("extra_info") or {}
    pairs = zip(info.get("subject_seconds") or (), info.get("reference_seconds") or (), strict=False)
    return _finite([subject / reference for subject, reference in pairs if reference > 0])


def seconds(benchmark: Mapping[str, Any]) -> tuple[float, ...]:
    """The seconds of every round."""
    info, stats = benchmark.get("extra_info") or {}, benchmark.get("stats") or {}
    return _finite(info.get("subject_seconds") or stats.get("data") or [])


def machine(run: Mapping[str, Any]) -> Any:
    """What makes seconds comparable, or None where it is not said: the project's description, or what of
    pytest-benchmark's own stays as it is from run to run. Host names and the momentary clock rate do not."""
    info = run.get("machine_info")
    if not isinstance(info, dict):
        return None
    if isinstance(info.get("machine"), dict):
        return info["machine"]
    cpu = info.get("cpu")
    if not isinstance(cpu, dict) or not cpu.get("brand_raw"):
        return None
    return [info.get("system"), info.get("release"), info.get("machine"), cpu["brand_raw"], cpu.get("count")]


def moment(run: Mapping[str, Any]) -> datetime | None:
    """When the run was, by its file; None where it does not say."""
    return as_moment(run.get("datetime"))


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    files = sorted(file for file in path.glob("*.json") if file.name != HISTORY)
    if not files:
        raise StoreError(f"{path} holds no JSON file. Give a folder of files that pytest-benchmark wrote.")
    return files


def _is_benchmark(content: Any) -> bool:
    if not isinstance(content, dict) or "fullname" not in content:
        return False
    parts = [content.get(part) or {} for part in ("extra_info", "stats")]
    if not all(isinstance(part, dict) for part in parts):
        return False
    lists = [parts[0].get("subject_seconds"), parts[0].get("reference_seconds"), parts[1].get("data")]
    return all(_are_numbers(each) for each in lists)


def _is_number(value: Any) -> bool:
    # JSON's whole numbers have no end, floats do.
    return isinstance(value, float) or (isinstance(value, int) and abs(value) <= sys.float_info.max)


def _are_numbers(samples: Any) -> bool:
    return samples is None or (isinstance(samples, list) and all(map(_is_number, samples)))


def _by_name(runs: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    """Name -> the benchmark in each run that has it."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    for run in runs:
        for name, benchmark in {_text(each["fullname"]): each for each in run["benchmarks"]}.items():
            found.setdefault(name, []).append(benchmark)
    return found


def _text(name: object) -> str:
    # JSON can hold half a surrogate pair, which no file that is written here can.
    return str(name).encode("utf-8", "replace").decode()


def _timing(
    name: str, sides: list[list[Mapping[str, Any]]], runs: list[int], same_machine: bool, doubt: str | None
) -> Timing:
    beside = [all(_has_reference(each) for each in benchmarks) for benchmarks in sides]
    measured = [sum(bool(seconds(each)) for each in benchmarks) for benchmarks in sides]
    lost = None
    if measured[0] == runs[0] and 0 < measured[1] < runs[1]:
        lost = f"Missing or empty in {runs[1] - measured[1]} of {runs[1]} runs of NEW."
    if all(beside):
        base, new = (tuple(_flat(ratios(each) for each in benchmarks)) for benchmarks in sides)
        return Timing(name, base, new, "of the reference", lost=lost)
    if sides[0] and sides[1] and beside[0]:
        lost = LOST_REFERENCE
    base, new = (_independent([seconds(each) for each in benchmarks], doubt) for benchmarks in sides)
    return Timing(name, base, new, "s", None if same_machine or lost else OTHER_MACHINE, doubt, lost)


def _has_reference(benchmark: Mapping[str, Any]) -> bool:
    return "reference_seconds" in (benchmark.get("extra_info") or {})


def _independent(runs: list[tuple[float, ...]], doubt: str | None) -> tuple[float, ...]:
    """The median of every run, or all rounds where there is one run."""
    if doubt == ONE_RUN:
        return tuple(_flat(runs))
    return tuple(median(samples) for samples in runs if samples)


def _flat(runs: Iterator[tuple[float, ...]] | Sequence[tuple[float, ...]]) -> Iterator[float]:
    return (sample for samples in runs for sample in samples)


def _finite(samples: Sequence[float]) -> tuple[float, ...]:
    return tuple(float(sample) for sample in samples if math.isfinite(sample))
