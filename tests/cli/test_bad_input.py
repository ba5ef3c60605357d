"""What is given, which error it must raise, and the words that must be in it: what was wrong, where, what to do.

One table for each way in. Afterwards the network is what it was, bit for bit, and no file is left that was not there.
"""

import io
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from small_networks import build
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import sipp_bench as sb
from sipp_bench.bench.suite import load_suite, parse_suite
from sipp_bench.cli.commands import main
from sipp_bench.compare import baseline
from sipp_bench.errors import (
    CheckpointError,
    DataError,
    ModelError,
    OptionError,
    PointsError,
    SippBenchError,
    StoreError,
    SuiteError,
)
from sipp_bench.measures.cost import multiply_adds
from sipp_bench.measures.predictions import evaluate, predict
from sipp_bench.network.point_files import read_points
from sipp_bench.report.build import build_report
from sipp_bench.store.folder import load_run
from sipp_bench.zoo import data, models
from sipp_bench.zoo.training import load_checkpoint
from theory_checks import verify


@dataclass
class Given:
    model: nn.Module
    points: torch.Tensor
    """(9, 12), for 4 classes."""
    labels: torch.Tensor
    path: Path

    def file(self, name: str, content: bytes | str) -> Path:
        """A file that the case brings along."""
        file = self.path / name
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
        return file

    def checkpoint(self, state: object) -> Path:
        buffer = io.BytesIO()
        torch.save(state, buffer)
        return self.file("net.pt", buffer.getvalue())

    def array(self, array: Any) -> Path:
        buffer = io.BytesIO()
        np.save(buffer, array)
        return self.file("points.npy", buffer.getvalue())


@pytest.fixture
def given(tmp_path: Path) -> Given:
    model, points = build("mlp")
    return Given(model, points, torch.arange(9) % 4, tmp_path)


def bits(model: nn.Module) -> list[tuple[str, bytes, bool]]:
    flags = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    return [(n, t.detach().numpy().tobytes(), flags.get(n, False)) for n, t in model.state_dict().items()]


class Two(nn.Module):
    """A network whose output is a pair."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x, x


Case = tuple[Callable[[Given], object], type[SippBenchError], list[str]]

PYTHON: dict[str, Case] = {
    "no network": (lambda g: sb.fit("net", g.points), ModelError, ["torch.nn.Module", "str"]),  # type: ignore[arg-type]
    "no network to measure": (lambda g: sb.measure_sensitivity(None, g.points), ModelError, ["NoneType"]),  # type: ignore[arg-type]
    "batch of 0": (lambda g: sb.fit(g.model, g.points, batch_size=0), OptionError, ["batch_size", "at least 1", "0"]),
    "batch of half": (lambda g: sb.fit(g.model, g.points, batch_size=2.5), OptionError, ["batch_size", "2.5"]),  # type: ignore[arg-type]
    "batch of text": (lambda g: sb.fit(g.model, g.points, batch_size="64"), OptionError, ["batch_size", "'64'"]),  # type: ignore[arg-type]
    "batch of yes": (lambda g: sb.fit(g.model, g.points, batch_size=True), OptionError, ["batch_size", "True"]),
    "batch to measure": (lambda g: sb.measure_sensitivity(g.model, g.points, batch_size=-3), OptionError, ["-3"]),
    "unknown device": (
        lambda g: sb.measure_sensitivity(g.model, g.points, device="gpu7"),
        OptionError,
        ["device", "gpu7", "cpu"],
    ),
    "absent device": (
        lambda g: sb.measure_sensitivity(g.model, g.points, device="cuda:99"),
        OptionError,
        ["device", "cuda:99"],
    ),
    "unknown backend": (
        lambda g: sb.measure_sensitivity(g.model, g.points, backend="fast"),  # type: ignore[arg-type]
        OptionError,
        ["fast", "native"],
    ),
    "layers that are no names": (
        lambda g: sb.measure_sensitivity(g.model, g.points, layers=[3]),  # type: ignore[list-item]
        OptionError,
        ["layers", "3", "0.weight"],
    ),
    "points in a list": (lambda g: sb.fit(g.model, [[1.0] * 12]), PointsError, ["type list", "tensor"]),  # type: ignore[arg-type]
    "one point without a row": (lambda g: sb.fit(g.model, g.points[0, :5]), PointsError, ["shape (5,)", "Check"]),
    "points of whole numbers": (lambda g: sb.fit(g.model, g.points.long()), PointsError, ["dtype", "shape (9, 12)"]),
    "keep above 1": (lambda g: sb.prune(g.model, g.points, keep=1.2), OptionError, ["keep", "[0, 1]", "1.2"]),
    "keep in per cent": (lambda g: sb.prune(g.model, g.points, keep="20%"), OptionError, ["keep", "20%"]),  # type: ignore[arg-type]
    "keep is yes": (lambda g: sb.prune(g.model, g.points, keep=True), OptionError, ["keep", "True"]),
    "keep is a tensor": (
        lambda g: sb.prune(g.model, g.points, keep=torch.tensor([0.5])),  # type: ignore[arg-type]
        OptionError,
        ["keep", "tensor"],
    ),
    "seed is a fraction": (lambda g: sb.prune(g.model, g.points, keep=0.5, seed=1.5), OptionError, ["seed", "1.5"]),  # type: ignore[arg-type]
    "method is no text": (lambda g: sb.fit(g.model, g.points, method=7), OptionError, ["no method 7", "wanda"]),  # type: ignore[arg-type]
    "delta of text": (lambda g: sb.make_method("sipp-rand", delta="0.1"), OptionError, ["delta", "sipp-rand"]),
    "delta beyond floats": (lambda g: sb.make_method("sipp-rand", delta=10**400), OptionError, ["delta"]),
    "weights that cannot be looked up": (lambda g: sb.make_method("sipp-det", weights=[]), OptionError, ["weights"]),
    "scope is a number": (lambda g: sb.make_method("magnitude", scope=3), OptionError, ["scope", "global", "3"]),
    "no class to register": (lambda g: sb.register_method("mine", 3), OptionError, ["subclass"]),  # type: ignore[arg-type]
    "a name that is taken": (
        lambda g: sb.register_method("wanda", type("Mine", (sb.Method,), {})),
        OptionError,
        ["'wanda'", "another name"],
    ),
    "evaluate in batches of 0": (
        lambda g: evaluate(g.model, g.points, g.labels, batch_size=0),
        OptionError,
        ["batch_size", "at least 1"],
    ),
    "evaluate with a label too few": (
        lambda g: evaluate(g.model, g.points, g.labels[:8]),
        PointsError,
        ["as many labels as images", "9, 8"],
    ),
    "evaluate with a class too many": (
        lambda g: evaluate(g.model, g.points, g.labels + 1),
        PointsError,
        ["4 classes", "labels from 1 to 4"],
    ),
    "evaluate with fractions for labels": (
        lambda g: evaluate(g.model, g.points, g.labels.float()),
        PointsError,
        ["Labels are classes", "float32", "int64"],
    ),
    "evaluate with labels in rows": (
        lambda g: evaluate(g.model, g.points, g.labels[:, None]),
        PointsError,
        ["(n,)", "(9, 1)"],
    ),
    "evaluate without logits": (
        lambda g: evaluate(Two(), g.points, g.labels),
        PointsError,
        ["one tensor of logits", "tuple"],
    ),
    "predict in batches of 0": (lambda g: predict(g.model, g.points, batch_size=0), OptionError, ["batch_size"]),
    "an example of another shape": (
        lambda g: multiply_adds(g.model, torch.ones(1, 5)),
        PointsError,
        ["shape (1, 5)", "Check"],
    ),
    "labels beside a loader that shuffles": (
        lambda g: sb.fit(g.model, DataLoader(TensorDataset(g.points), 3, shuffle=True), "snip", g.labels),
        PointsError,
        ["by position", "shuffle=False", "(input, label)"],
    ),
    "labels in words": (lambda g: sb.fit(g.model, g.points, "snip", ["cat"] * 9), PointsError, ["labels", "numbers"]),  # type: ignore[arg-type]
    "one label": (lambda g: sb.fit(g.model, g.points, "snip", torch.tensor(1)), PointsError, ["one for each point"]),
    "labels too few": (lambda g: sb.fit(g.model, g.points, "snip", g.labels[:5]), PointsError, ["one label", "9"]),
    "no budget": (
        lambda g: sb.allocate([1.0], [3], float("nan"), delta=0.1),
        OptionError,
        ["budget", "nan"],
    ),
    "totals below 0": (lambda g: sb.allocate([-1.0], [3], 1, delta=0.1), OptionError, ["totals"]),
    "a delta of 1": (lambda g: sb.allocate([1.0], [3], 1, delta=1), OptionError, ["delta", "below 1"]),
    "a pruned network in a spreadsheet": (
        lambda g: sb.prune(g.model, g.points, keep=0.5).save(g.path / "net.xlsx"),
        OptionError,
        [".safetensors, .pt or .pth"],
    ),
    "a pruned network inside a file": (
        lambda g: sb.prune(g.model, g.points, keep=0.5).save(g.file("x", "") / "net.pt"),
        StoreError,
        ["Cannot write", "net.pt", "Choose a folder"],
    ),
    "a network that changed after the fit": (
        lambda g: changed_after_fit(g).prune(0.5),
        ModelError,
        ["'0.weight' has changed", "fit again"],
    ),
    "data by a wrong name": (lambda g: data.load("digit"), OptionError, ["'digit'", "digits", "folder:PATH"]),
    "a split by a fraction": (lambda g: data.load("digits", seed=0.5), OptionError, ["seed", "0.5"]),  # type: ignore[arg-type]
    "images too small for a network": (
        lambda g: models.build("lenet-5", (1, 8, 8)),
        ModelError,
        ["28x28", "8x8", "lenet-300-100"],
    ),
    "verify with a claim that is none": (
        lambda g: verify(g.model, g.points, g.points + 1, claims=["C99"]),
        OptionError,
        ["C99", "C1"],
    ),
    "verify with no room for error": (
        lambda g: verify(g.model, g.points, g.points + 1, delta=0.0),
        OptionError,
        ["delta"],
    ),
}  # fmt: skip


def changed_after_fit(given: Given) -> sb.Fitted:
    """Of a copy: the network itself must stay."""
    model, points = build("mlp")
    fitted = sb.fit(model, points)
    with torch.no_grad():
        next(model.parameters())[0, 0] += 1
    return fitted


TOP = 'name = "x"\nseeds = [0]\nkeep = [0.5]\n'
TARGET = '[[target]]\nnetwork = "lenet-300-100"\ndata = "digits"\n'
METHOD = '[[method]]\nname = "magnitude"\n'
SUITES: dict[str, tuple[str | bytes, list[str]]] = {
    "nested a thousand times": (f"seeds = {'[' * 2000}{']' * 2000}\n", ["nested too deeply"]),
    "a number of 5000 digits": (f"points = {'9' * 5000}\n" + TOP + TARGET + METHOD, ["not TOML", "4300 digits"]),
    "a hexadecimal number of 5000 digits": (f"name = 0x{'f' * 5000}\n" + TOP[11:] + TARGET + METHOD, ["key name"]),
    "a seed beyond 32 bits": (TOP.replace("[0]", "[4294967296]") + TARGET + METHOD, ["seeds", "0 to 4294967295"]),
    "a keep beyond floats": (TOP.replace("0.5", "1e400") + TARGET + METHOD, ["keep", "inf"]),
    "a key twice": ("name = 'y'\n" + TOP + TARGET + METHOD, ["not TOML", "overwrite"]),
    "a date for a name": (TOP.replace('"x"', "2020-01-01") + TARGET + METHOD, ["key name", "text in quotes"]),
    "seeds in tables": (TOP.replace("[0]", "[{a = 1}]") + TARGET + METHOD, ["seeds (entry 1)", "whole number"]),
    "code for a network": (TOP + TARGET.replace("lenet-300-100", "os:getcwd") + METHOD, ["no network 'os:getcwd'"]),
    "code for data": (TOP + TARGET.replace('"digits"', '"os:getcwd"') + METHOD, ["no data set 'os:getcwd'"]),
    "code for a method": (TOP + TARGET + METHOD.replace("magnitude", "os:getcwd"), ["no method 'os:getcwd'"]),
    "a network's name too long for a file": (
        TOP + TARGET.replace('"digits"', f'"folder:{"a" * 300}"') + METHOD,
        ["too long for file names", "shorter"],
    ),
    "weights that nobody published": (TOP + TARGET + "weights = 'pretrained'\n" + METHOD, ["no pretrained weights"]),
    "an option of another protocol": (
        "protocol_options = { steps = 2 }\n" + TOP + TARGET + METHOD,
        ["protocol_options", "'one-shot' has no option 'steps'"],
    ),
    "an option beyond floats": (
        TOP + TARGET + METHOD.replace("magnitude", "sipp-rand") + f"delta = 1{'0' * 400}\n",
        ["delta"],
    ),
    "text behind a byte order mark": (b"\xef\xbb\xbf" + (TOP + TARGET + METHOD).encode(), ["not TOML"]),
    "a zero byte": ((TOP + TARGET + METHOD).encode() + b"\x00", ["not TOML"]),
}  # fmt: skip

FILES: dict[str, Case] = {
    "a checkpoint in text": (
        lambda g: load_checkpoint(g.model, g.file("a.pt", "weights")),
        CheckpointError,
        ["a.pt", "cannot be read as a checkpoint", "model.state_dict()"],
    ),
    "a checkpoint with a header of exabytes": (
        lambda g: load_checkpoint(g.model, g.file("a.safetensors", b"\xff" * 7 + b"\x7f{" + b" " * 99)),
        CheckpointError,
        ["a.safetensors", "truncated or damaged", "again"],
    ),
    "a checkpoint whose notes are null": (
        lambda g: load_checkpoint(g.model, g.file("a.safetensors", headed(b'{"__metadata__":null}'))),
        CheckpointError,
        ["a.safetensors"],
    ),
    "a checkpoint whose notes are nested": (
        lambda g: load_checkpoint(
            g.model, g.file("a.st", safetensors.torch.save(g.model.state_dict(), {"sipp-bench": "[" * 5000}))
        ),
        CheckpointError,
        ["a.st", "truncated or damaged"],
    ),
    "a checkpoint whose notes are a list": (
        lambda g: load_checkpoint(
            g.model, g.file("a.st", safetensors.torch.save(g.model.state_dict(), {"sipp-bench": "[1]"}))
        ),
        CheckpointError,
        ["a.st", "truncated or damaged"],
    ),
    "sparse weights": (
        lambda g: load_checkpoint(g.model, g.checkpoint({n: t.to_sparse() for n, t in g.model.state_dict().items()})),
        CheckpointError,
        ["net.pt", "0.weight sparse", "dense"],
    ),
    "weights without numbers": (
        lambda g: load_checkpoint(g.model, g.checkpoint({n: t.to("meta") for n, t in g.model.state_dict().items()})),
        CheckpointError,
        ["net.pt", "without numbers"],
    ),
    "complex weights": (
        lambda g: load_checkpoint(g.model, g.checkpoint({n: t.cfloat() for n, t in g.model.state_dict().items()})),
        CheckpointError,
        ["net.pt", "0.weight", "complex64"],
    ),
    "arrays of numpy for weights": (
        lambda g: load_checkpoint(g.model, g.checkpoint({n: t.tolist() for n, t in g.model.state_dict().items()})),
        CheckpointError,
        ["net.pt", "no state dict"],
    ),
    "a checkpoint by an impossible name": (
        lambda g: load_checkpoint(g.model, "a\0b"),
        CheckpointError,
        ["Cannot read", "path"],
    ),
    "points of exabytes": (
        lambda g: read_points(g.file("a.npy", npy_header("(999999999999999, 12)"))),
        PointsError,
        ["a.npy", "cannot be read"],
    ),
    "points in a header of nonsense": (
        lambda g: read_points(g.file("a.npy", npy_header("[" * 900))),
        PointsError,
        ["a.npy", "cannot be read", "again"],
    ),
    "points with names": (
        lambda g: read_points(g.array(np.zeros((3, 3), dtype=[("a", "f4")]))),
        PointsError,
        ["points.npy", "float32"],
    ),
    "points that are objects": (
        lambda g: read_points(g.file("a.npy", objects())),
        PointsError,
        ["a.npy", "cannot be read"],
    ),
    "points in a bomb": (
        lambda g: read_points(g.file("a.npz", bomb())),
        PointsError,
        ["a.npz", "GB of memory", "fewer points"],
    ),
    "points of complex numbers": (lambda g: read_points(g.array(np.zeros((2, 2), complex))), PointsError, ["complex"]),
    "points beyond float32": (
        lambda g: sb.fit(g.model, read_points(g.array(np.full((2, 12), 1e300)))),
        PointsError,
        ["Point 0", "infinity"],
    ),
    "no run": (lambda g: load_run(g.path / "run"), StoreError, ["no run.json", "sipp-bench run"]),
    "a run that is a list": (lambda g: load_run(run_json(g, "[]")), StoreError, ["run.json", "Delete the run folder"]),
    "a run of cells that are numbers": (
        lambda g: load_run(run_json(g, GOOD_RUN.replace('"cells":[]', '"cells":[3]'))),
        StoreError,
        ["run.json", "Delete"],
    ),
    "a run nested a thousand times": (
        lambda g: load_run(run_json(g, "[" * 100_000)),
        StoreError,
        ["run.json", "Delete"],
    ),
    "a run with a number of 100 digits": (
        lambda g: load_run(run_json(g, GOOD_RUN.replace('"data":{}', f'"data":{{"a":{{"b":1{"0" * 99}}}}}'))),
        StoreError,
        ["run.json", "Delete"],
    ),
    "a run with half a letter": (
        lambda g: load_run(run_json(g, GOOD_RUN.replace('"data":{}', r'"data":{"\ud800":{}}'))),
        StoreError,
        ["run.json", "Delete"],
    ),
    "a report on nothing": (lambda g: build_report([], g.path / "report"), StoreError, ["no run", "Give"]),
    "a report on a run without cells": (
        lambda g: build_report([run_json(g, GOOD_RUN)], g.path / "report"),
        StoreError,
        ["no finished cells", "Run its suite first"],
    ),
    "a baseline without a reason": (
        lambda g: baseline.update(run_json(g, GOOD_RUN), g.path / "base", " "),
        OptionError,
        ["reason", "what changed"],
    ),
    "a baseline of nothing": (
        lambda g: baseline.update(run_json(g, GOOD_RUN), g.path / "base", "x"),
        StoreError,
        ["no baseline", "Run its suite again"],
    ),
    "a folder of data without classes": (
        lambda g: data.load(f"folder:{g.path}"),
        DataError,
        ["two folders, one for each class"],
    ),
}  # fmt: skip

GOOD_RUN = '{"format":1,"suite":{"sha256":""},"cells":[],"data":{},"checkpoints":{},"resumed":[]}'


def run_json(given: Given, text: str) -> Path:
    return given.file("run.json", text).parent


def headed(header: bytes) -> bytes:
    return len(header).to_bytes(8, "little") + header


def npy_header(shape: str) -> bytes:
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}".ljust(1015).encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header


def objects() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.array([[object]], dtype=object), allow_pickle=True)
    return buffer.getvalue()


def bomb() -> bytes:
    """An archive that says of a small file that it unpacks to exabytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("points.npy", npy_header("(3, 4)"))
        archive.filelist[0].file_size = 2**60
        archive.filelist[0].compress_size = 2**10
    return buffer.getvalue()


def files(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}


def refused(given: Given, call: Callable[[Given], object], error: type[SippBenchError], words: list[str]) -> None:
    before = bits(given.model)
    with pytest.raises(error) as caught:
        call(given)
    message = str(caught.value)
    for word in words:
        assert word in message, message
    assert message.rstrip().endswith((".", "SUITE")), f"not a sentence: {message}"
    assert len(message) < 2000
    assert bits(given.model) == before
    assert not any(name.endswith(".tmp") for name in files(given.path))


@pytest.mark.parametrize("case", PYTHON)
def test_python(given: Given, case: str) -> None:
    refused(given, *PYTHON[case])
    assert set(files(given.path)) <= {"x"}


@pytest.mark.parametrize("case", FILES)
def test_files(given: Given, case: str) -> None:
    refused(given, *FILES[case])
    brought = {"a.pt", "a.safetensors", "a.st", "net.pt", "a.npy", "a.npz", "points.npy", "run.json"}
    assert set(files(given.path)) <= brought


@pytest.mark.parametrize("case", SUITES)
def test_suites(given: Given, case: str) -> None:
    content, words = SUITES[case]
    file = given.file("mine.toml", content)
    refused(given, lambda g: load_suite(file), SuiteError, ["mine.toml", *words])
    assert set(files(given.path)) == {"mine.toml"}


def test_half_a_letter_in_a_suite_from_python() -> None:
    with pytest.raises(SuiteError, match="mine is not TOML"):
        parse_suite(TOP.replace("x", "\ud800") + TARGET + METHOD, "mine")


PRUNE = ["prune", "--model", "tests.cli.test_cli:tiny_network", "--keep", "0.5", "-o", "out.pt", "--points"]
VERIFY = ["verify", "--model", "tests.cli.test_cli:tiny_network", "--points", "points.npy", "--fresh"]
COMMANDS: dict[str, tuple[list[str], list[str]]] = {
    "an option nested a thousand times": ([*PRUNE, "points.npy", "--option", f"a={'[' * 9999}"], ["no option 'a'"]),
    "an option of 5000 digits": ([*PRUNE, "points.npy", "--option", f"delta={'9' * 5000}"], ["delta"]),
    "an option without a name": ([*PRUNE, "points.npy", "--option", "=3"], ["KEY=VALUE"]),
    "points that are text": ([*PRUNE, "mine.toml"], ["mine.toml", ".npy"]),
    "points that are no array": ([*PRUNE, "text.npy"], ["text.npy cannot be read", "Write it again"]),
    "a checkpoint that is text": ([*PRUNE, "points.npy", "--checkpoint", "mine.toml"], ["mine.toml", "state_dict()"]),
    "a factory that is a folder": ([*PRUNE, "points.npy", "--model", "a.b/c:d"], ["a.b/c:d", "package.module:factory"]),
    "weights of nobody": ([*PRUNE, "points.npy", "--model", "lenet-5", "--pretrained"], ["lenet-5", "Train"]),
    "fresh points that are missing": ([*VERIFY, "fresh.npy"], ["no file fresh.npy", "Check its name"]),
    "a claim that is none": ([*VERIFY, "points.npy", "--claim", "C99"], ["C99"]),
    "an alpha of 2": ([*VERIFY, "points.npy", "--alpha", "2"], ["alpha"]),
    "a keep of 2": ([*VERIFY, "points.npy", "--keep", "2"], ["keep"]),
    "an effort that is none": ([*VERIFY, "points.npy", "--effort", "huge"], ["quick", "full"]),
    "verdicts into a folder": ([*VERIFY, "points.npy", "--json", "."], ["is a folder"]),
    "a suite that is missing": (["run", "absent.toml"], ["absent.toml", "No such file"]),
    "a suite that is an array": (["run", "points.npy"], ["points.npy", "UTF-8"]),
    "a run folder that is a file": (["run", "good.toml", "-o", "points.npy"], ["points.npy", "-o"]),
    "a report on a file": (["report", "points.npy"], ["points.npy", "run.json"]),
    "a folder and a file": (["compare", "empty", "points.npy"], ["do not compare", "two run folders"]),
    "nothing to compare": (["compare", "a", "b"], ["There is no a", "pytest-benchmark"]),
    "benchmarks that are an array": (["compare", "points.npy", "points.npy"], ["points.npy", "not JSON"]),
    "benchmarks of another program": (["compare", "list.json", "list.json"], ["list.json", "pytest --benchmark-json"]),
    "benchmarks without numbers": (["compare", "words.json", "words.json"], ["words.json", "pytest-benchmark"]),
    "a baseline without a run": (["baseline", "runs", "-o", "base", "--reason", "x"], ["runs", "run.json"]),
}  # fmt: skip


@pytest.fixture
def here(given: Given, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the files that the commands name."""
    given.array(np.random.default_rng(0).normal(size=(5, 6)))
    given.file("text.npy", "text")
    given.file("mine.toml", "name = ")
    given.file("good.toml", TOP + TARGET + METHOD)
    given.file("list.json", "[]")
    given.file("words.json", '{"benchmarks":[{"fullname":"a","stats":{"data":["1"]}}]}')
    (given.path / "empty").mkdir()
    monkeypatch.syspath_prepend(Path(__file__).parents[2])
    monkeypatch.chdir(given.path)
    return given.path


@pytest.mark.parametrize("case", COMMANDS)
def test_command_line(here: Path, case: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments, words = COMMANDS[case]
    before = files(here)
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    error = capsys.readouterr().err
    assert caught.value.code == 2
    for word in words:
        assert word in error, error
    assert "Traceback" not in error
    assert files(here) == before


def test_there_are_enough_cases_and_each_says_something() -> None:
    assert len(PYTHON) + len(FILES) + len(SUITES) + len(COMMANDS) >= 60
    assert all(words for *_, words in [*PYTHON.values(), *FILES.values(), *SUITES.values(), *COMMANDS.values()])
