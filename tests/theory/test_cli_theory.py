"""The commands `claims` and `verify`: what they print and write, and their exit codes."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from sipp_bench.cli.commands import main
from theory_checks.claims import claims

NETWORK = "tests.theory.test_cli_theory:network"


def network() -> torch.nn.Module:
    """A user's own network."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return torch.nn.Sequential(torch.nn.Linear(20, 12), torch.nn.ReLU(), torch.nn.Linear(12, 3))


def call(*arguments: object) -> int:
    with pytest.raises(SystemExit) as caught:
        main([str(argument) for argument in arguments])
    return int(caught.value.code or 0)


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(Path(__file__).parents[2])
    rng = np.random.default_rng(0)
    np.save(tmp_path / "s.npy", rng.random((30, 20)))
    np.save(tmp_path / "fresh.npy", rng.random((60, 20)))
    return tmp_path


def verify(files: Path, *more: object) -> int:
    given = ("--model", NETWORK, "--points", files / "s.npy", "--fresh", files / "fresh.npy", "--method", "sipp-det")
    return call("verify", *given, *more)


def test_claims_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("claims") == 0
    printed = capsys.readouterr().out
    for claim in claims().values():
        assert f"{claim.number}  {claim.title} ({claim.kind.value})" in printed
        assert claim.statement in printed
        assert all(name in printed for name in claim.rejects)
    assert "Assumes:" in printed
    assert call("claims", "--json") == 0
    content = json.loads(capsys.readouterr().out)
    assert [entry["number"] for entry in content] == list(claims())


@pytest.mark.parametrize("command", ["claims", "verify"])
def test_help_ends_with_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(command, "--help") == 0
    assert f"Example: sipp-bench {command}" in capsys.readouterr().out


def test_nothing_falsified_is_exit_code_0(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = files / "deep"
    code = verify(files, "--keep", 0.4, "--keep", 0.8, "--json", out / "v.json", "--html", out / "v.html")
    printed = capsys.readouterr().out
    assert code == 0
    assert "nothing falsified" in printed
    assert "C2          0.4  " in printed
    content = json.loads((out / "v.json").read_text())
    assert content["ok"] is True
    assert content["settings"]["keep"] == [0.4, 0.8]
    assert (out / "v.html").read_text().startswith("<section")


def test_nothing_checked_is_exit_code_1(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert verify(files, "--keep", 0, "--claim", "C2") == 1
    assert "NOTHING WAS CHECKED" in capsys.readouterr().out


def test_falsified_is_exit_code_1(
    files: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import sipp_bench.methods.sipp as sipp

    honest = sipp.deterministic_epsilon
    monkeypatch.setattr(sipp, "deterministic_epsilon", lambda s, dim=None: honest(s, dim) / 2)
    assert verify(files, "--keep", 0.9, "--claim", "C2") == 1
    assert "FALSIFIED" in capsys.readouterr().out


def test_checkpoint_options_and_limit(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_file({name: value + 1 for name, value in network().state_dict().items()}, files / "w.safetensors")
    more: tuple[Any, ...] = ("--checkpoint", files / "w.safetensors", "--limit", 25, "--option", "weights=layer")
    assert verify(files, "--claim", "C1", "--json", files / "v.json", *more) == 0
    settings = json.loads((files / "v.json").read_text())["settings"]
    assert (settings["points"], settings["fresh_points"]) == (25, 25)
    assert settings["options"]["weights"] == "layer"
    capsys.readouterr()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--keep", 1.5], "keep is a fraction"),
        (["--method", "sip-det"], "sipp-det"),
        (["--claim", "C99"], "C99"),
        (["--delta", 0], "delta"),
        (["--alpha", 2], "alpha"),
        (["--seed", -1], "seed"),
        (["--effort", "most"], "effort"),
        (["--option", "colour=red"], "colour"),
        (["--checkpoint", "missing.safetensors"], "missing.safetensors"),
        (["--model", "lenet-6"], "no network 'lenet-6'"),
        (["--fresh", "missing.npy"], "missing.npy"),
        (["--json", "."], "is a folder"),
        (["--html", "/dev/null/x.html"], "/dev/null"),
    ],
)
def test_bad_input_is_exit_code_2_and_a_sentence(
    arguments: list[object], sentence: str, files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert verify(files, *arguments) == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert "Traceback" not in error


def test_points_that_are_not_fresh_are_refused(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert verify(files, "--fresh", files / "s.npy") == 2
    assert "All fresh points" in capsys.readouterr().err


def test_the_library_does_not_need_the_checks() -> None:
    import subprocess
    import sys

    code = "import sys, sipp_bench, sipp_bench.cli.commands; print([name for name in sys.modules if 'theory' in name])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "['sipp_bench.cli.theory']"
