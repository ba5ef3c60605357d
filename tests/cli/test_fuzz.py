"""Damaged and made-up files: whatever they hold, a reader gives a result or one of the errors of sipp_bench/errors.py.

Seconds here; tests/reliability/fuzz.py runs the same functions for minutes, from other seeds, and records it.
"""

import io
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

import sipp_bench as sb
from sipp_bench.bench.suite import list_suites, load_suite, parse_suite
from sipp_bench.cli.prune import parse_options
from sipp_bench.compare import baseline, compare
from sipp_bench.errors import SippBenchError
from sipp_bench.network.point_files import read_points
from sipp_bench.report.collect import collect
from sipp_bench.store.cell import Cell
from sipp_bench.store.folder import Store, load_run
from sipp_bench.store.records import SEAL, sealed_json
from sipp_bench.store.summary import summary
from sipp_bench.zoo import checkpoints
from sipp_bench.zoo.training import load_checkpoint

FUZZ = settings(
    max_examples=40,
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from([0, -1, 1, 2**31, 2**63, 10**30, 10**400, 0.5, -0.0, 1e308, float("nan"), float("inf")]),
    st.sampled_from(
        ["", "\0", "Infinity", "../../x", "/etc/passwd", "a" * 300, "\ud800", "é", "done", "failed", "[[["]
    ),
    st.integers(),
    st.floats(),
    st.text(max_size=8),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)
DEEP = st.integers(30, 3000).map(lambda depth: "[" * depth + "]" * depth)


@st.composite
def bytes_like(draw: st.DrawFn, content: bytes) -> bytes:
    """`content`, cut, with other bytes in it, or parts of it repeated; or anything."""
    if draw(st.integers(0, 9)) == 0:
        return draw(st.binary(max_size=200))
    changed = bytearray(content)
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, max(0, min(len(changed) - 1, draw(st.sampled_from([16, 400, 10**9]))))))
        what = draw(st.integers(0, 4))
        if what == 0:
            del changed[at:]
        elif what == 1 and changed:
            changed[at] = draw(st.integers(0, 255))
        elif what == 2:
            changed[at:at] = draw(st.binary(max_size=9))
        elif what == 3:
            del changed[at : at + draw(st.integers(1, 40))]
        else:
            changed[at:at] = changed[at : at + draw(st.integers(1, 200))]
    return bytes(changed)


@st.composite
def json_like(draw: st.DrawFn, content: Any) -> Any:
    """`content` with other values at one or a few places, or without them."""
    for _ in range(draw(st.integers(1, 3))):
        places = list(_places(content))
        path = draw(st.sampled_from(places))
        content = _replaced(content, path, draw(st.booleans()), draw(VALUES))
    return content


def _places(content: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    if isinstance(content, dict | list):
        for key in content if isinstance(content, dict) else range(len(content)):
            yield from _places(content[key], (*path, key))


def _replaced(content: Any, path: tuple[Any, ...], remove: bool, value: Any) -> Any:
    if not path:
        return value
    copy = dict(content) if isinstance(content, dict) else list(content)
    if len(path) == 1 and remove:
        del copy[path[0]]
    else:
        copy[path[0]] = _replaced(copy[path[0]], path[1:], remove, value)
    return copy


@contextmanager
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as path:
        yield Path(path)


def survives(call: Callable[[], object]) -> None:
    """Only errors of the project come out of `call`, and they can be printed."""
    try:
        call()
    except SippBenchError as error:
        str(error).encode()


@cache
def template() -> Path:
    """A run folder with two cells, one of them with a bound."""
    path = Path(tempfile.mkdtemp()) / "run"
    cells = [Cell("net", "digits", seed, "sipp-det", 0.5) for seed in (0, 1)]
    meta = {
        "suite": {"name": "x", "text": "name = 'x'", "sha256": "a"}, "cells": [cell.id for cell in cells],
        "commit": None, "seeds": [0], "machine": {"cores": 2}, "versions": {"torch": "2"}, "dirty": None,
        "started": "now",
    }  # fmt: skip
    layer = {"layer": "a", "weights": 10, "requested": 5, "kept": 5, "epsilon_max": 0.5, "epsilon_mean": None}
    check = {"claim": "C2", "on": "S", "layer": "a", "verdict": "holds", "error_max": 0.5} | dict.fromkeys(
        ("blocks", "vacuous", "exceeding", "points", "drawn", "exceeding_certain", "active"), 2
    )
    result = {
        "status": "done", "error": None, "accuracy": 0.9, "dense_accuracy": 0.9, "weights": 10, "kept": 5, "delta": 0.1,
        "requested": 5, "achieved_keep": 0.5, "multiply_adds": 3, "dense_multiply_adds": 6, "num_points": 4,
        "mask_sha256": "m", "checkpoint_sha256": "c", "method_name": "sipp-det", "options": {"weights": "layer"},
        "class_accuracies": [0.5, None], "layers": [layer], "checks": [check],
    }  # fmt: skip
    with Store(path, meta) as store:
        for cell in cells:
            arrays = {"a": {"epsilon": np.ones((2, 2), np.float32)}}
            timing = {"fit_seconds": 1.0, "prune_seconds": 0.1, "evaluate_seconds": 0.2, "check_seconds": 0.3}
            store.write_cell(cell, result, timing, arrays, {"dense": np.array([1, 2])})
    return path


def use_run(path: Path) -> None:
    """All that reads run folders, but for drawing figures."""
    run = load_run(path)
    summary(run)
    collect({"x": run})
    for cell in run.cells["id"]:
        run.blocks(cell)
        run.predictions(cell)


def network() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))


@FUZZ
@given(st.data())
def test_suites_as_text(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(list_suites()))
    content = data.draw(bytes_like(load_suite(name).text.encode()))
    with folder() as path:
        (path / "mine.toml").write_bytes(content)
        survives(lambda: load_suite(path / "mine.toml").sha256)


SUITE = {
    "name": "x", "description": "", "seeds": [0, 1], "keep": [0.5, 0.1], "points": 64, "protocol": "retrain",
    "protocol_options": {"retrain_epochs": 1, "retrain_rate": 0.1}, "checks": ["C2"],
    "target": [{"network": "lenet-300-100", "data": "digits", "recipe": "default", "weights": "trained"}],
    "method": [
        {"name": "sipp-rand", "label": "a", "delta": 0.1, "weights": "layer"}, {"name": "magnitude", "scope": "layer"}
    ],
}  # fmt: skip


def toml(value: Any) -> str:
    """A TOML value; null, which TOML has not, as a word that is none."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)} = {toml(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    return {"NaN": "nan", "Infinity": "inf", "-Infinity": "-inf"}.get(text := json.dumps(value), text)


@FUZZ
@given(json_like(SUITE) | DEEP)
def test_suites_with_other_values(content: Any) -> None:
    table = content if isinstance(content, dict) else {"seeds": content}
    text = "\n".join(f"{json.dumps(key)} = {toml(value)}" for key, value in table.items())
    survives(lambda: parse_suite(text, "mine").sha256)


@FUZZ
@given(st.text(max_size=20) | DEEP | st.integers().map(str) | SCALARS.map(str))
def test_options_of_the_command_line(text: str) -> None:
    survives(lambda: sb.check_options("sipp-rand", parse_options([f"delta={text}"])))


@FUZZ
@given(st.data())
def test_run_folders(data: st.DataObject) -> None:
    with folder() as path:
        shutil.copytree(template(), path / "run")
        names = sorted(str(file.relative_to(template())) for file in template().rglob("*") if file.name[0] != ".")
        name = data.draw(st.sampled_from([each for each in names if each != "cells"]))
        file = path / "run" / name
        content = file.read_bytes()
        if name.endswith(".json") and data.draw(st.integers(0, 3)):
            changed = data.draw(json_like({key: v for key, v in json.loads(content).items() if key != SEAL}))
            # With a seal that fits, so that what follows the seal is reached; or as Python would write it.
            try:
                file.write_text(sealed_json(changed))
            except (TypeError, ValueError, AttributeError):
                file.write_bytes(json.dumps(changed).encode())
        else:
            file.write_bytes(data.draw(bytes_like(content)))
        survives(lambda: use_run(path / "run"))
        survives(lambda: compare(template(), path / "run"))
        survives(lambda: compare(path / "run", template()))
        survives(lambda: baseline.update(path / "run", path / "base", "x"))
        outside = {entry.name for entry in path.iterdir()}
        assert outside <= {"run", "base"}, "nothing is written beside the folders"


BENCHMARKS = {
    "machine_info": {"machine": {"cores": 2}, "cpu": {"brand_raw": "x", "count": 2}, "system": "Linux"},
    "benchmarks": [
        {"fullname": "a", "stats": {"data": [1.0, 2.0, 1.5]}, "extra_info": {}},
        {"fullname": "b", "extra_info": {"subject_seconds": [1.0, 2], "reference_seconds": [1.0, 1]}, "stats": None},
    ],
}  # fmt: skip


@FUZZ
@given(json_like(BENCHMARKS), st.booleans())
def test_files_of_benchmarks(content: Any, swapped: bool) -> None:
    with folder() as path:
        (path / "a.json").write_text(json.dumps(BENCHMARKS))
        (path / "b.json").write_text(json.dumps(content))
        files = [path / "a.json", path / "b.json"]
        survives(lambda: compare(*(files[::-1] if swapped else files)))


@cache
def checkpoint_files() -> dict[str, bytes]:
    model, buffer, old = network(), io.BytesIO(), io.BytesIO()
    torch.save(model.state_dict(), buffer)
    torch.save({"state_dict": model.state_dict()}, old, _use_new_zipfile_serialization=False)
    with folder() as path:
        pruned = sb.prune(model, torch.randn(5, 4), keep=0.5).save(path / "pruned.safetensors").read_bytes()
    return {
        "zip": buffer.getvalue(), "old": old.getvalue(), "pruned": pruned,
        "zoo": checkpoints.encode(model, "key", {"a": 1}), "plain": safetensors.torch.save(model.state_dict()),
    }  # fmt: skip


@FUZZ
@given(st.data())
def test_checkpoints(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(checkpoint_files())))
    content = checkpoint_files()[name]
    if name in ("pruned", "zoo", "plain") and data.draw(st.booleans()):
        length = int.from_bytes(content[:8], "little")
        header = json.dumps(data.draw(json_like(json.loads(content[8 : 8 + length])))).encode()
        content = len(header).to_bytes(8, "little") + header + content[8 + length :]
    else:
        content = data.draw(bytes_like(content))
    model = network()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    loaded = False
    with folder() as path:
        (path / "net").write_bytes(content)

        def load() -> None:
            nonlocal loaded
            load_checkpoint(model, path / "net", data.draw(st.sampled_from([None, "key"])))
            loaded = True

        survives(load)
    assert loaded or all(torch.equal(before[key], value) for key, value in model.state_dict().items())


@cache
def point_files() -> dict[str, bytes]:
    points = np.arange(12, dtype=np.float32).reshape(4, 3)
    npy, npz = io.BytesIO(), io.BytesIO()
    np.save(npy, points)
    np.savez_compressed(npz, points=points)
    return {
        ".npy": npy.getvalue(), ".npz": npz.getvalue(),
        ".safetensors": safetensors.torch.save({"x": torch.from_numpy(points)}),
    }  # fmt: skip


@FUZZ
@given(st.data())
def test_point_files(data: st.DataObject) -> None:
    ending = data.draw(st.sampled_from(sorted(point_files())))
    with folder() as path:
        (path / f"points{ending}").write_bytes(data.draw(bytes_like(point_files()[ending])))
        survives(lambda: read_points(path / f"points{ending}"))


TESTS = {name: test for name, test in sorted(globals().items()) if name.startswith("test_")}
