"""The command line: exit codes, plain messages, and an example at the end of every --help."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import sipp_bench as sb
from sipp_bench.cli.commands import main

SUITE = """
name = "tiny"
seeds = [0]
keep = [0.5]
points = 16

[[target]]
network = "lenet-300-100"
data = "digits"

[[method]]
name = "magnitude"

[[method]]
name = "random"
"""


def tiny_network() -> torch.nn.Module:
    """A user's own network, named on the command line as tests.cli.test_cli:tiny_network."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))


@pytest.fixture
def points(tmp_path: Path) -> Path:
    np.save(tmp_path / "points.npy", np.random.default_rng(0).normal(size=(5, 6)))
    return tmp_path / "points.npy"


def call(*arguments: object) -> int:
    with pytest.raises(SystemExit) as caught:
        main([str(argument) for argument in arguments])
    return int(caught.value.code or 0)


def prune(points: object, output: object, *more: object, model: str = "tests.cli.test_cli:tiny_network") -> int:
    return call("prune", "--model", model, "--points", points, "--keep", 0.4, "-o", output, *more)


@pytest.mark.parametrize("command", [[], ["run"], ["report"], ["prune"], ["list"], ["info"]])
def test_help_ends_with_an_example(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert call(*command, "--help") == 0
    example = capsys.readouterr().out.rpartition("Example:")[2].split()
    assert example[: 1 + len(command)] == ["sipp-bench", *(command or ["run"])][: 1 + len(command)]


def test_help_needs_no_heavy_imports() -> None:
    heavy = "{'pandas', 'scipy', 'torchvision', 'pydantic'}"
    code = f"import sys, sipp_bench.cli.commands; print({heavy} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"


def test_module_and_version() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "sipp_bench", "--version"], capture_output=True, text=True, check=False
    )
    assert (result.returncode, result.stdout[:11]) == (0, "sipp-bench ")


def test_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("list", "methods") == 0
    assert capsys.readouterr().out.split() == sb.list_methods()
    assert call("list") == 0
    assert {"methods:", "sipp-det", "lenet-5", "mnist-digits", "quick"} <= set(capsys.readouterr().out.split())


def test_info_says_which_backend_and_why(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIPP_BENCH_BACKEND", "torch")
    assert call("info") == 0
    shown = capsys.readouterr().out
    assert "cores: " in shown
    assert "max-times backends on cpu (SIPP_BENCH_BACKEND=torch):" in shown
    assert "  torch: chosen\n" in shown
    assert "  reference: available\n" in shown


def test_prune_own_network(points: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "deep" / "out.safetensors"
    assert prune(points, output, "--method", "sipp-det", "--option", "weights=layer") == 0
    printed = capsys.readouterr().out
    assert "0.weight" in printed
    assert f"Saved to {output}" in printed
    assert "On the 5 points looked at" in printed
    network = tiny_network()
    network.load_state_dict(load_file(output))
    kept = sum(int(network[index].weight.count_nonzero()) for index in (0, 2))
    assert kept == round(0.4 * (48 + 24))


def test_prune_with_a_checkpoint(points: Path, tmp_path: Path) -> None:
    weights = {name: value + 1 for name, value in tiny_network().state_dict().items()}
    torch.save(weights, tmp_path / "trained.pt")
    output = tmp_path / "out.safetensors"
    assert prune(points, output, "--checkpoint", tmp_path / "trained.pt", "--method", "magnitude") == 0
    pruned = load_file(output)
    assert torch.equal(pruned["0.bias"], weights["0.bias"])
    assert torch.equal(pruned["0.weight"][pruned["0.weight"] != 0], weights["0.weight"][pruned["0.weight"] != 0])


def test_prune_says_when_a_zoo_network_has_random_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save(tmp_path / "x.npy", np.ones((2, 1, 8, 8)))
    output = tmp_path / "o.safetensors"
    assert prune(tmp_path / "x.npy", output, "--method", "random", model="lenet-300-100") == 0
    captured = capsys.readouterr()
    assert "weights of lenet-300-100 are random" in captured.err
    assert "This method gives no guarantee." in captured.out


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--keep", 1.5], "keep is a fraction from 0 to 1"),
        (["--keep", "nan"], "keep is a fraction from 0 to 1"),
        (["--method", "sip-det"], "sipp-det"),
        (["--option", "colour=red"], "colour"),
        (["--option", "colour"], "KEY=VALUE"),
        (["--checkpoint", "missing.safetensors"], "missing.safetensors"),
        (["--model", "lenet-6"], "no network 'lenet-6'"),
        (["--model", "tests.cli.test_cli:nothing"], "nothing"),
        (["--model", "torchvision:resnet19"], "resnet18"),
        (["--points", "missing.npy"], "missing.npy"),
        (["--points", "."], "no images"),
        (["--seed", -1], "seed"),
        (["-o", "/dev/null/x.safetensors"], "/dev/null"),
        (["-o", "."], "is a folder"),
        (["-o", "out.bin"], "should end in"),
        (["--limit", 0], "limit"),
    ],
)
def test_bad_input_is_exit_code_2_and_a_sentence(
    arguments: list[object],
    sentence: str,
    points: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.syspath_prepend(Path(__file__).parents[2])
    monkeypatch.chdir(here)
    assert prune(points, "out.safetensors", *arguments) == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert "Traceback" not in error
    assert list(here.iterdir()) == []


def test_points_that_the_network_cannot_take(points: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "out.safetensors"
    array = np.load(points)
    np.save(points, array[:, :5])
    assert prune(points, output) == 2
    assert "shape (5, 5)" in capsys.readouterr().err
    array[3, 2] = np.nan
    np.save(points, array)
    assert prune(points, output) == 2
    assert "Point 3 holds NaN" in capsys.readouterr().err
    assert not output.exists()


def test_an_unwritable_output_is_refused_before_the_work(points: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    worked: list[object] = []
    monkeypatch.setattr("sipp_bench.methods.fit", lambda *arguments, **options: worked.append(arguments))
    assert prune(points, "/dev/null/x/out.safetensors") == 2
    assert worked == []


def test_images(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for shade in (10, 200):
        Image.new("RGB", (40, 30), (shade, 0, 90)).save(folder / f"{shade}.png")
    output = tmp_path / "out.safetensors"
    arguments = ("--image-size", 64, "--method", "magnitude")
    assert prune(folder, output, *arguments, model="torchvision:resnet18") == 0
    kept = sum(int(value.count_nonzero()) for name, value in load_file(output).items() if value.ndim in (2, 4))
    total = sum(value.numel() for name, value in load_file(output).items() if value.ndim in (2, 4))
    assert kept == round(0.4 * total)


@pytest.mark.parametrize("arguments", [["frobnicate"], ["run"], ["prune"], ["list", "colours"], ["report"]])
def test_bad_usage_is_exit_code_2(arguments: list[str]) -> None:
    assert call(*arguments) == 2


def test_run_refuses_an_unknown_suite(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("run", "quik") == 2
    assert "Did you mean quick?" in capsys.readouterr().err


def test_report_refuses_what_is_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("report", tmp_path, "-o", tmp_path / "out") == 2
    assert "not a run folder" in capsys.readouterr().err


@pytest.fixture
def suite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SIPP_BENCH_CACHE", str(tmp_path / "cache"))
    (tmp_path / "tiny.toml").write_text(SUITE)
    return tmp_path / "tiny.toml"


def test_run_and_resume(suite: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"
    assert call("run", suite, "-o", folder, "--no-report") == 0
    printed = capsys.readouterr().out
    assert "2 of 2 cells done, 0 failed" in printed
    assert "lenet-300-100 on digits" in printed
    assert not (folder / "report").exists()
    assert call("run", suite, "-o", folder) == 0
    assert (folder / "report").is_dir()
    suite.write_text(SUITE + "# edited\n")
    assert call("run", suite, "-o", folder, "--no-report") == 2
    assert "belongs to another suite" in capsys.readouterr().err


def test_the_default_folder_is_named_by_the_suite(suite: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert call("run", suite, "--no-report") == 0
    assert (tmp_path / "runs" / "tiny" / "run.json").exists()


def test_a_failed_cell_is_exit_code_1(
    suite: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise RuntimeError("out of luck")

    monkeypatch.setattr("sipp_bench.bench.measuring.fit", fail)
    assert call("run", suite, "-o", tmp_path / "run", "--no-report") == 1
    assert "out of luck" in capsys.readouterr().out


def test_interruption_keeps_what_is_finished(
    suite: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("sipp_bench.bench.measuring.fit", interrupt)
    assert call("run", suite, "-o", tmp_path / "run") == 130
    assert "the same command goes on from there" in capsys.readouterr().err
    assert list((tmp_path / "run" / "cells").iterdir()) == []


def test_an_unwritable_run_folder_is_refused(suite: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("run", suite, "-o", "/dev/null/run") == 2
    assert "Cannot write to the run folder" in capsys.readouterr().err
