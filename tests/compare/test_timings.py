"""Timings: planted changes are found, noise is not, and what cannot be decided is said to be so."""

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from sipp_bench.compare import Comparison, compare
from sipp_bench.compare.false_alarms import measure
from sipp_bench.compare.findings import ALPHA, holm
from sipp_bench.compare.timings import Timing, judge, smallest_p
from sipp_bench.errors import StoreError
from theory_checks.statistics import critical_count

CPU = {"system": "Linux", "machine": "x86_64", "cpu": {"brand_raw": "one", "count": 2, "hz_actual_friendly": "2 GHz"}}
NOISE = 0.05


def samples(generator: np.random.Generator, scale: float = 1.0, count: int = 20) -> NDArray[np.float64]:
    return scale * generator.lognormal(0.0, NOISE, count)


def benchmark(seconds: NDArray[np.float64] | list[float], reference: Any = None, name: str = "one") -> dict[str, Any]:
    info = {} if reference is None else {"subject_seconds": list(seconds), "reference_seconds": list(reference)}
    return {"fullname": name, "stats": {"data": list(seconds)}, "extra_info": info}


def write(path: Path, benchmarks: list[dict[str, Any]], machine: Any = CPU) -> Path:
    path.write_text(json.dumps({"machine_info": machine, "benchmarks": benchmarks}))
    return path


def compared(tmp_path: Path, base: list[Any], new: list[Any], machines: tuple[Any, Any] = (CPU, CPU)) -> Comparison:
    files = (write(tmp_path / "base.json", base, machines[0]), write(tmp_path / "new.json", new, machines[1]))
    return compare(*files)


@pytest.mark.parametrize(
    ("scale", "status", "code"), [(1.15, "regression", 1), (1 / 1.12, "better", 0), (1, "same", 0)]
)
@pytest.mark.parametrize("paired", [False, True])
def test_planted_changes(tmp_path: Path, scale: float, status: str, code: int, paired: bool) -> None:
    generator = np.random.default_rng(1)
    sides = []
    for factor in (1.0, scale):
        # A machine that is twice as slow for a while, for a pair: the ratio does not see it.
        slow = generator.choice([1.0, 2.0], 20) if paired else np.ones(20)
        reference = slow * samples(generator) if paired else None
        sides.append([benchmark(slow * samples(generator, factor), reference)])
    comparison = compared(tmp_path, *sides)
    (finding,) = comparison.findings
    assert finding.status == status
    assert comparison.exit_code == code
    assert finding.n == (20, 20)
    assert finding.unit == ("of the reference" if paired else "s")
    assert finding.medians is not None
    assert finding.p is not None


def test_pairs_compare_across_machines_and_seconds_do_not(tmp_path: Path) -> None:
    generator = np.random.default_rng(2)
    other = {"cpu": {"brand_raw": "another"}}
    plain = [benchmark(samples(generator))]
    pairs = [benchmark(samples(generator), samples(generator))]
    assert compared(tmp_path, plain, plain, (CPU, other)).exit_code == 2
    assert compared(tmp_path, plain, plain, ({}, {})).exit_code == 2, "machines that are not described"
    assert compared(tmp_path, pairs, pairs, (CPU, other)).exit_code == 0
    own = {"machine": {"cpu": "one"}, "versions": {"torch": "1"}}
    assert compared(tmp_path, plain, plain, (own, own | {"versions": {"torch": "2"}})).exit_code == 0
    faster_clock = CPU | {"cpu": CPU["cpu"] | {"hz_actual_friendly": "3 GHz"}, "node": "another"}  # type: ignore[operator]
    assert compared(tmp_path, plain, plain, (CPU, faster_clock)).exit_code == 0


def test_missing_and_empty_benchmarks_are_regressions(tmp_path: Path) -> None:
    good = [benchmark([1.0] * 20, name="kept"), benchmark([1.0] * 20, name="lost")]
    for lost in ([], [benchmark([], name="lost")], [{"fullname": "lost"}], [benchmark([], [], name="lost")]):
        comparison = compared(tmp_path, good, [good[0], *lost])
        assert comparison.exit_code == 1
        assert (comparison.findings[0].name, comparison.findings[0].status) == ("lost", "regression")
    comparison = compared(tmp_path, good[:1], good)
    assert comparison.exit_code == 0
    assert comparison.findings[0].message == "Not measured in BASE."


def test_nothing_in_common_does_not_compare(tmp_path: Path) -> None:
    good = [benchmark([1.0] * 20)]
    assert compared(tmp_path, good, []).exit_code == 2
    assert compared(tmp_path, [], good).exit_code == 2
    assert compared(tmp_path, good, [benchmark([1.0] * 20, name="another")]).exit_code == 2


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"benchmarks": [1]}', '{"benchmarks": [{}]}'])
def test_files_that_are_none_are_refused(tmp_path: Path, content: str) -> None:
    good, bad = write(tmp_path / "good.json", [benchmark([1.0])]), tmp_path / "bad.json"
    bad.write_text(content)
    with pytest.raises(StoreError, match=r"bad\.json"):
        compare(good, bad)


def test_few_samples_decide_nothing_but_equality(tmp_path: Path) -> None:
    comparison = compared(tmp_path, [benchmark([1.0, 1.1, 1.2])], [benchmark([2.0, 2.1, 2.2])])
    assert comparison.findings[0].status == "undecided"
    assert comparison.exit_code == 2, "nothing was decided"
    assert compared(tmp_path, [benchmark([1.0])], [benchmark([1.0])]).exit_code == 0
    assert smallest_p(3, 3) == pytest.approx(0.1)


def test_a_certain_but_small_difference_is_the_same() -> None:
    generator = np.random.default_rng(3)
    base, new = (tuple(samples(generator, scale, 200)) for scale in (1.0, 1.05))
    (finding,) = judge([Timing("t", base, new, "s")])
    assert finding.status == "same"
    assert finding.p is not None
    assert finding.p < ALPHA


def test_holm() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []


@pytest.mark.statistical
@pytest.mark.parametrize("noise", [0.05, 0.3])
def test_noise_alone_is_flagged_as_rarely_as_stated(noise: float) -> None:
    """200 self-comparisons of 10 timings each: an exact binomial test of "rate <= alpha" at 1e-3 does not reject.

    With noise of 5 % the 10 % rule alone keeps nearly all out; with 30 % the tests must.
    """
    generator = np.random.default_rng(4)
    flagged = rejected = 0
    for _ in range(200):
        drawn = generator.lognormal(0.0, noise, (10, 2, 20))
        findings = judge([Timing(str(i), tuple(base), tuple(new), "s") for i, (base, new) in enumerate(drawn)])
        flagged += any(finding.status != "same" for finding in findings)
        rejected += any(finding.p_adjusted is not None and finding.p_adjusted <= ALPHA for finding in findings)
    assert flagged <= rejected
    assert rejected < critical_count(200, ALPHA, 1e-3)


def test_the_measurement_of_false_alarms_counts_them() -> None:
    seconds = iter([0.0] + 4 * [0.0005] + [0.0] + 4 * [0.002])

    def work(duration: float) -> None:
        end = time.thread_time() + duration
        while time.thread_time() < end:
            pass

    pairs = {"slower": (lambda: work(next(seconds)), lambda: work(0.001))}
    result = measure(repetitions=1, rounds=4, pairs=pairs)
    # Four samples a side cannot be told apart at alpha; that is no alarm.
    counts = result["repetitions_with"]["ratios to a reference"]
    assert {status: found["count"] for status, found in counts.items()} == {"regression": 0, "better": 0}
    assert counts["regression"]["rate_high"] == pytest.approx(0.975)
    seconds = iter([0.0] + 6 * [0.0005] + [0.0] + 6 * [0.002])
    counts = measure(repetitions=1, rounds=6, pairs=pairs)["repetitions_with"]["ratios to a reference"]
    assert {status: found["count"] for status, found in counts.items()} == {"regression": 1, "better": 0}
