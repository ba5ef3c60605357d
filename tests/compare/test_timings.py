"""Timings: planted changes are found, noise is not, and what cannot be decided is said to be so."""

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from numpy.typing import NDArray
from scipy.signal import lfilter

from sipp_bench.compare import Comparison, compare
from sipp_bench.compare.false_alarms import measure, summarise
from sipp_bench.compare.findings import ALPHA, holm
from sipp_bench.compare.timings import LOST_REFERENCE, NOT_IN_TURNS, ONE_RUN, Timing, judge, smallest_p
from sipp_bench.errors import OptionError, StoreError
from theory_checks.evidence.statistics import critical_count

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


PLANTED = [(1.15, "regression", 1), (1 / 1.12, "better", 0), (1, "same", 0)]


@pytest.mark.parametrize(("scale", "status", "code"), PLANTED)
def test_planted_changes_are_found_by_ratios(tmp_path: Path, scale: float, status: str, code: int) -> None:
    generator = np.random.default_rng(1)
    sides = []
    for factor in (1.0, scale):
        # A machine that is twice as slow for a while, for a pair: the ratio does not see it.
        slow = generator.choice([1.0, 2.0], 20)
        sides.append([benchmark(slow * samples(generator, factor), slow * samples(generator))])
    comparison = compared(tmp_path, *sides)
    (finding,) = comparison.findings
    assert (finding.status, finding.n, finding.unit) == (status, (20, 20), "of the reference")
    assert comparison.exit_code == code
    assert finding.medians is not None
    assert finding.p is not None


def write_runs(folder: Path, runs: list[list[dict[str, Any]]], hours: list[int], machine: Any = CPU) -> Path:
    """A folder of files, one a run, each with the hour when it was."""
    folder.mkdir()
    for number, (benchmarks, hour) in enumerate(zip(runs, hours, strict=True)):
        content = {"machine_info": machine, "benchmarks": benchmarks, "datetime": f"2026-01-01T{hour:02}:00:00+00:00"}
        (folder / f"{number:04}.json").write_text(json.dumps(content))
    return folder


def alternating(tmp_path: Path, scale: float, turns: bool = True, runs: int = 6) -> tuple[Path, Path]:
    """Runs of two sides on a machine that is busier in some hours, a whole run long."""
    generator = np.random.default_rng(5)
    busy = generator.lognormal(0.0, 0.03, 2 * runs)
    hours = [list(range(side, 2 * runs, 2) if turns else range(side * runs, (side + 1) * runs)) for side in (0, 1)]
    folders = []
    for name, factor, when in zip(("base", "new"), (1.0, scale), hours, strict=True):
        timed = [[benchmark(busy[hour] * samples(generator, factor))] for hour in when]
        folders.append(write_runs(tmp_path / name, timed, when))
    return folders[0], folders[1]


@pytest.mark.parametrize(("scale", "status", "code"), PLANTED)
def test_planted_changes_are_found_by_seconds_of_runs_that_took_turns(
    tmp_path: Path, scale: float, status: str, code: int
) -> None:
    comparison = compare(*alternating(tmp_path, scale))
    (finding,) = comparison.findings
    assert (finding.status, finding.n, finding.unit) == (status, (6, 6), "s")
    assert comparison.exit_code == code


def test_seconds_decide_nothing_without_turns(tmp_path: Path) -> None:
    base, new = alternating(tmp_path, 1.15, turns=False)
    (finding,) = compare(base, new).findings
    assert (finding.status, finding.n) == ("undecided", (6, 6))
    assert NOT_IN_TURNS in finding.message
    (finding,) = compare(base / "0000.json", new / "0000.json").findings
    assert (finding.status, finding.n) == ("undecided", (20, 20))
    assert ONE_RUN in finding.message
    assert compare(base / "0000.json", new / "0000.json").exit_code == 2, "nothing was decided"
    for file in base.iterdir():
        file.write_text(file.read_text().replace("datetime", "when"))
    assert NOT_IN_TURNS in compare(base, new).findings[0].message


def test_too_few_runs_in_turns_decide_nothing(tmp_path: Path) -> None:
    (finding,) = compare(*alternating(tmp_path, 1.5, runs=4)).findings
    assert finding.status == "undecided"
    assert "too few" in finding.message


def test_a_benchmark_that_some_runs_lack_is_a_regression(tmp_path: Path) -> None:
    base, new = alternating(tmp_path, 1.0)
    file = new / "0003.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"benchmarks": [benchmark([])]}))
    (finding,) = compare(base, new).findings
    assert (finding.status, finding.message) == ("regression", "Missing or empty in 1 of 6 runs of NEW.")


def test_a_lost_reference_is_a_regression(tmp_path: Path) -> None:
    plain, pair = [benchmark([1.0] * 20)], [benchmark([1.0] * 20, [1.0] * 20)]
    comparison = compared(tmp_path, pair, plain)
    assert comparison.exit_code == 1
    assert comparison.findings[0].message == LOST_REFERENCE
    assert compared(tmp_path, plain, pair).exit_code == 0


def test_a_folder_without_files_is_refused(tmp_path: Path) -> None:
    good = write(tmp_path / "good.json", [benchmark([1.0])])
    (tmp_path / "empty").mkdir()
    with pytest.raises(OptionError, match="do not compare"):
        compare(good, tmp_path / "empty")
    with pytest.raises(StoreError, match="is not a run folder"):
        compare(tmp_path / "empty", tmp_path / "empty")


@pytest.mark.statistical
@pytest.mark.parametrize(("runs", "power"), [(6, 0.5), (12, 0.9)])
def test_runs_in_turns_are_right_where_rounds_of_one_run_are_not(runs: int, power: float) -> None:
    """500 comparisons of equal code on a machine whose load wanders by 10 %: an AR(1) process, nearly a random walk.

    Of runs in turns, no more false alarms than alpha (exact binomial test at 1e-3), and a slow-down of 15 % is found as
    often as stated; rounds of one run taken for samples give more than ten times alpha.
    """
    generator, rounds, repetitions = np.random.default_rng(6), 5, 500
    count = {"turns": 0, "rounds": 0, "found": 0}
    for _ in range(repetitions):
        load = lfilter([0.025], [1.0, -0.97], generator.standard_normal(300 + 2 * runs * rounds))[300:]
        noise = np.exp(load.reshape(2 * runs, rounds)) * generator.lognormal(0.0, 0.01, (2 * runs, rounds))
        first, second = (tuple(np.median(noise[side::2], axis=1).tolist()) for side in (0, 1))
        slower = tuple(1.15 * value for value in second)
        base, new = (tuple(half.ravel().tolist()) for half in (noise[:runs], noise[runs:]))
        count["turns"] += judge([Timing("turns", first, second, "s")])[0].status != "same"
        count["found"] += judge([Timing("found", first, slower, "s")])[0].status == "regression"
        count["rounds"] += judge([Timing("rounds", base, new, "s")])[0].status != "same"
    assert count["turns"] < critical_count(repetitions, ALPHA, 1e-3)
    assert count["rounds"] > 10 * ALPHA * repetitions
    assert count["found"] > power * repetitions, count


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


@pytest.mark.parametrize(
    "content",
    [
        "", "{", "[]", "{}", '{"benchmarks": [1]}', '{"benchmarks": [{}]}', '[' * 100_000,
        '{"benchmarks": [{"fullname": "a", "stats": 1}]}',
        '{"benchmarks": [{"fullname": "a", "stats": {"data": "123"}}]}',
        '{"benchmarks": [{"fullname": "a", "extra_info": {"subject_seconds": [null]}}]}',
    ],
)  # fmt: skip
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
    def work() -> None:
        end = time.thread_time() + 0.0005
        while time.thread_time() < end:
            pass

    samples = measure(repetitions=1, runs=2, rounds=3, pairs={"one": (work, work)})
    assert samples["ratios"].shape == samples["seconds"].shape == (1, 3, 2, 3, 1)
    ratios = np.median(samples["ratios"], axis=(0, 2, 3, 4))
    assert ratios[2] > 1.05 * ratios[0], "the slower side really is"

    made_up = np.tile(np.linspace(1, 1.001, 8, dtype=np.float32)[:, None], (3, 3, 6, 1, 1))
    made_up[0, 1] *= 2  # equal code that is slower in the first repetition, faster in the second
    made_up[1, 1] /= 2
    made_up[:, 2] *= 1.15
    counts = summarise({"ratios": made_up, "seconds": np.ones_like(made_up)})
    same, slower = (counts["repetitions_with"][side]["ratios, one run a side"] for side in ("same", "slower"))
    assert (same["regression"]["count"], same["better"]["count"], slower["regression"]["count"]) == (1, 1, 3)
    assert same["regression"]["rate_high"] == pytest.approx(0.905700, abs=1e-6)
    assert counts["repetitions_with"]["same"]["seconds, medians of runs in turns"]["regression"]["count"] == 0
    assert counts["operations_found_slower"]["ratios, all runs"]["count"] == 3


def test_the_published_rates_are_those_of_their_samples() -> None:
    published = Path(__file__).parents[2] / "reports" / "baselines" / "false-alarms.json"
    said = json.loads(published.read_bytes())
    samples = safetensors.numpy.load_file(published.with_suffix(".safetensors"))
    found = json.loads(json.dumps(summarise(samples)))
    assert found == {key: said[key] for key in found}
    assert found["repetitions"] == 200
    assert not said["dirty"]
