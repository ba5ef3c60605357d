"""A dry run counts cells, needs no data, runs nothing, and says how it estimates."""

from pathlib import Path

import pytest

from sipp_bench.bench.estimate import Estimate, estimate
from sipp_bench.bench.suite import parse_suite
from sipp_bench.cli.commands import main

SUITE = """
name = "small"
seeds = [0, 1]
keep = [0.5, 0.1]
points = 32
protocol = "{protocol}"

[[target]]
network = "lenet-300-100"
data = "mnist"

[[method]]
name = "sipp-det"

[[method]]
name = "magnitude"
"""


def test_a_dry_run_needs_no_data_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SIPP_BENCH_DATA", str(tmp_path / "none"))
    (tmp_path / "small.toml").write_text(SUITE.format(protocol="one-shot"))
    with pytest.raises(SystemExit) as caught:
        main(["run", "small.toml", "--dry-run"])
    assert not caught.value.code
    text = capsys.readouterr().out
    assert "small: 8 cells on 2 networks, about" in text
    assert "How this was estimated" in text
    assert [file.name for file in tmp_path.iterdir()] == ["small.toml"]


def test_retraining_takes_longer() -> None:
    one, other = (estimate(parse_suite(SUITE.format(protocol=name), "x")) for name in ("one-shot", "lottery"))
    assert one.cells == other.cells == 8
    assert other.cell_seconds > 5 * one.cell_seconds
    assert other.cell_seconds > 2 * other.training_seconds, "eight times twice the training, for two networks"


@pytest.mark.parametrize(
    ("seconds", "words"), [(5.2, "5 seconds"), (600, "10.0 minutes"), (7200, "2.0 hours"), (864000, "10.0 days")]
)
def test_durations_are_in_a_unit_that_suits(seconds: float, words: str) -> None:
    assert f"about {words} to train" in str(Estimate(1, 1, seconds, 0))
