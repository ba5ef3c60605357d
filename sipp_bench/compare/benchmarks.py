"""Files that pytest-benchmark wrote: every benchmark by its full name, as ratios where a reference was timed too."""

import json
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sipp_bench.compare.findings import Comparison, nothing, sort
from sipp_bench.compare.timings import Timing, judge
from sipp_bench.errors import StoreError

OTHER_MACHINE = (
    "Seconds of different or undescribed machines do not compare, and no reference operation was timed beside them."
)


def compare(base: Path, new: Path) -> Comparison:
    """Two JSON files of pytest-benchmark. Raises StoreError for a file that is none."""
    runs = [_read(path) for path in (base, new)]
    # JSON can hold half a surrogate pair, which no file that is written here can.
    found = [{_text(benchmark["fullname"]): benchmark for benchmark in run["benchmarks"]} for run in runs]
    for path, benchmarks in zip((base, new), found, strict=True):
        _require_numbers(path, benchmarks)
    if not found[0].keys() & found[1].keys():
        return nothing(str(base), str(new), "timing", "BASE and NEW have no benchmark in common.")
    machines = [_machine(run.get("machine_info")) for run in runs]
    same_machine = machines[0] is not None and machines[0] == machines[1]
    names = [*found[0], *(name for name in found[1] if name not in found[0])]
    timings = [_timing(name, found[0].get(name), found[1].get(name), same_machine) for name in names]
    notes = () if same_machine else ("The machines differ, or one is not described: only ratios to a reference count.",)
    return Comparison(str(base), str(new), "timing", sort(judge(timings)), notes)


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise StoreError(f"Cannot read {path}: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise StoreError(f"{path} is not JSON, or not all of it. Run the benchmarks again.") from error
    listed = content.get("benchmarks") if isinstance(content, dict) else None
    if not isinstance(listed, list) or not all(isinstance(each, dict) and "fullname" in each for each in listed):
        raise StoreError(f"{path} was not written by pytest-benchmark. Make one with: pytest --benchmark-json={path}")
    return dict(content)


def _require_numbers(path: Path, benchmarks: Mapping[str, Mapping[str, Any]]) -> None:
    """Raise StoreError unless what is read of each benchmark is there in tables, and samples in lists of numbers."""
    for name, benchmark in benchmarks.items():
        info, stats = benchmark.get("extra_info", {}), benchmark.get("stats") or {}
        tables = isinstance(info, dict) and isinstance(stats, dict)
        samples = [info.get("subject_seconds"), info.get("reference_seconds"), stats.get("data")] if tables else []
        if not tables or not all(_is_numbers(each) for each in samples):
            raise StoreError(f"{path} has no list of seconds for the benchmark {name}. Run the benchmarks again.")


def _is_numbers(value: object) -> bool:
    """Nothing, or a list of numbers that a float can hold, NaN and infinities included."""
    return value is None or (isinstance(value, list) and all(_is_number(each) for each in value))


def _is_number(value: object) -> bool:
    return isinstance(value, float) or (isinstance(value, int) and abs(value) <= sys.float_info.max)


def _text(name: object) -> str:
    return str(name).encode("utf-8", "replace").decode()


def _timing(name: str, base: Mapping[str, Any] | None, new: Mapping[str, Any] | None, same_machine: bool) -> Timing:
    present = [benchmark for benchmark in (base, new) if benchmark is not None]
    if all("reference_seconds" in benchmark.get("extra_info", {}) for benchmark in present):
        return Timing(name, _ratios(base), _ratios(new), "of the reference")
    return Timing(name, _seconds(base), _seconds(new), "s", None if same_machine else OTHER_MACHINE)


def _ratios(benchmark: Mapping[str, Any] | None) -> tuple[float, ...]:
    """Subject over reference, round by round."""
    info = {} if benchmark is None else benchmark["extra_info"]
    pairs = zip(info.get("subject_seconds") or (), info.get("reference_seconds") or (), strict=False)
    return _finite([subject / reference for subject, reference in pairs if reference > 0])


def _seconds(benchmark: Mapping[str, Any] | None) -> tuple[float, ...]:
    info = {} if benchmark is None else benchmark.get("extra_info", {})
    stats = {} if benchmark is None else benchmark.get("stats") or {}
    return _finite(info.get("subject_seconds") or stats.get("data") or [])


def _finite(samples: list[float]) -> tuple[float, ...]:
    return tuple(float(sample) for sample in samples if math.isfinite(sample))


def _machine(info: Any) -> Any:
    """What makes seconds comparable, or None where it is not said: the project's description, or what of
    pytest-benchmark's own stays as it is from run to run. Host names and the momentary clock rate do not."""
    if not isinstance(info, dict):
        return None
    if isinstance(info.get("machine"), dict):
        return info["machine"]
    cpu = info.get("cpu")
    if not isinstance(cpu, dict) or not cpu.get("brand_raw"):
        return None
    return [info.get("system"), info.get("release"), info.get("machine"), cpu["brand_raw"], cpu.get("count")]
