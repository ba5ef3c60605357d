"""Files from others: nothing in them is run, no path leads out of the folder, what they say is shown as text."""

import ast
import gzip
import json
import pickle
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import sipp_bench
import theory_checks
from sipp_bench.bench.suite import load_suite
from sipp_bench.compare import baseline
from sipp_bench.errors import CheckpointError, DataError, ModelError, StoreError, SuiteError
from sipp_bench.store.cell import Cell
from sipp_bench.store.folder import Store, load_run
from sipp_bench.store.records import read_json, sealed_json
from sipp_bench.zoo import imagenet, models, sources
from sipp_bench.zoo.checkpoints import load_checkpoint

CELL = Cell("net", "digits", 0, "sipp-det", 0.5)
META = {"suite": {"name": "x", "text": "", "sha256": "a"}, "cells": [CELL.id], "machine": {}, "versions": {}}
PACKAGES = [Path(package.__file__).parent for package in (sipp_bench, theory_checks)]


class Trap:
    """Runs code where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    with Store(tmp_path / "run", META) as store:
        store.write_cell(CELL, {"status": "done", "error": None}, {"fit_seconds": 1.0})
    return tmp_path / "run"


def calls(name: str) -> Iterator[tuple[str, dict[str, ast.expr]]]:
    """Where the packages call `name`, such as torch.load, and the arguments by name."""
    for package in PACKAGES:
        for file in sorted(package.rglob("*.py")):
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call) and ast.unparse(node.func) == name:
                    yield f"{file.name}:{node.lineno}", {key.arg: key.value for key in node.keywords if key.arg}


@pytest.mark.parametrize(("name", "argument", "value"), [
    ("torch.load", "weights_only", True),
    ("np.load", "allow_pickle", False),
])  # fmt: skip
def test_files_are_read_without_unpickling(name: str, argument: str, value: bool) -> None:
    found = dict(calls(name))
    assert found, "the search finds something"
    for place, arguments in found.items():
        given = arguments.get(argument)
        assert isinstance(given, ast.Constant), place
        assert given.value is value, place


def test_nothing_reads_pickles_or_text_as_code() -> None:
    """But ranks.py: messages between the processes of one torchrun job, as torch.distributed sends objects too."""
    for name in ("eval", "exec", "pickle.load", "pickle.loads", "joblib.load", "yaml.load", "marshal.loads"):
        assert not [place for place in dict(calls(name)) if not place.startswith("ranks.py:")], name
    for package in PACKAGES:
        for file in package.rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Import | ast.ImportFrom):
                    names = {getattr(node, "module", None), *(alias.name for alias in node.names)}
                    assert not names & {"pickle", "dill", "joblib", "marshal", "shelve"} or file.name == "ranks.py", (
                        file
                    )


@pytest.mark.parametrize("key", ["network", "data"])
def test_a_suite_imports_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    (tmp_path / "trap.py").write_text("import pathlib\npathlib.Path('ran').touch()\ndef build(): pass\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    target = {"network": "lenet-300-100", "data": "digits"} | {key: "trap:build"}
    text = 'name = "x"\nseeds = [0]\nkeep = [0.5]\n[[method]]\nname = "magnitude"\n[[target]]\n'
    (tmp_path / "mine.toml").write_text(text + "".join(f"{name} = '{value}'\n" for name, value in target.items()))
    with pytest.raises(SuiteError, match="'trap:build'"):
        load_suite(tmp_path / "mine.toml")
    assert not (tmp_path / "ran").exists()
    assert "trap" not in sys.modules


@pytest.mark.parametrize("name", ["../../x", "/etc/passwd", "a/b", "..", ".", "", "a\\b/c", "a\0b", "x" * 300, 3, None])
def test_a_cells_name_leads_nowhere(run: Path, name: Any) -> None:
    (run.parent / "x.json").write_text((run / "cells" / f"{CELL.id}.json").read_text().replace(CELL.id, "../../x"))
    before = {file.name: file.read_bytes() for file in run.parent.iterdir() if file.is_file()}
    meta = read_json(run / "run.json") | {"cells": [name, CELL.id]}
    (run / "run.json").write_text(sealed_json(meta))
    for use in (lambda: load_run(run), lambda: Store(run, META), lambda: baseline.update(run, run.parent / "b", "x")):
        with pytest.raises(StoreError, match=r"run\.json is missing, truncated or changed. Delete the run folder"):
            use()
    assert {file.name: file.read_bytes() for file in run.parent.iterdir() if file.is_file()} == before


def test_links_that_lead_out_are_refused(run: Path, tmp_path: Path) -> None:
    outside, cell = tmp_path / "outside", run / "cells" / f"{CELL.id}.json"
    outside.mkdir()
    cell.rename(outside / cell.name)
    cell.symlink_to(outside / cell.name)
    with pytest.raises(StoreError, match="leads out of the folder"):
        load_run(run)
    cell.unlink()
    (outside / cell.name).rename(run / "moved.json")
    cell.symlink_to(run / "moved.json")
    assert len(load_run(run).cells) == 1, "one that stays inside is fine"


def test_nothing_is_written_through_links(run: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (tmp_path / "diary").write_text("mine")
    (run / ".lock").unlink()
    (run / ".lock").symlink_to(tmp_path / "diary")
    with pytest.raises(StoreError, match="Choose another"), Store(run, META):
        pass
    assert (tmp_path / "diary").read_text() == "mine"
    other = tmp_path / "other"
    other.mkdir()
    (other / "cells").symlink_to(outside)
    with pytest.raises(StoreError, match="leads out of the folder"), Store(other, META):
        pass
    assert list(outside.iterdir()) == []
    trace = run / "cells" / f"{CELL.id}.timing.json"
    (run / ".lock").unlink()
    trace.unlink()
    trace.symlink_to(tmp_path / "diary")
    (run / "cells" / f"{CELL.id}.json").unlink()
    with Store(run, META) as store:
        store.write_cell(CELL, {"status": "done", "error": None}, {"fit_seconds": 1.0})
    assert (tmp_path / "diary").read_text() == "mine"
    assert not trace.is_symlink()


def test_what_somebody_changed_is_noticed(run: Path) -> None:
    file = run / "cells" / f"{CELL.id}.json"
    content = json.loads(file.read_text())
    file.write_text(json.dumps(content | {"accuracy": 0.99}))
    with pytest.raises(StoreError, match=file.name):
        load_run(run)
    del content["content_sha256"]
    file.write_text(json.dumps(content))
    assert len(load_run(run).cells) == 1, "files of before have no seal"


def test_code_in_pretrained_weights_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torchvision asks torch.hub, which unpickles whatever lies in its folder under the right name."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    file = tmp_path / "checkpoints" / "resnet18-f37072fd.pth"
    file.parent.mkdir()
    torch.save({"fc.weight": Trap(tmp_path / "ran")}, file)
    with pytest.raises(ModelError, match=r"resnet18-f37072fd\.pth is not what was published.*Delete it"):
        models.build("resnet-18", weights="pretrained")
    monkeypatch.setattr(imagenet, "_require_published", lambda file: None)
    with pytest.raises(ModelError, match="cannot be downloaded"):
        models.build("resnet-18", weights="pretrained")
    assert not (tmp_path / "ran").exists()
    assert "TORCH_FORCE_WEIGHTS_ONLY_LOAD" not in __import__("os").environ


def test_code_in_a_checkpoint_is_not_run_whatever_its_form(tmp_path: Path) -> None:
    torch.save(Trap(tmp_path / "ran"), tmp_path / "old", _use_new_zipfile_serialization=False)
    (tmp_path / "bare").write_bytes(pickle.dumps({"weight": Trap(tmp_path / "ran")}))
    for name in ("old", "bare"):
        with pytest.raises(CheckpointError, match="cannot be read"):
            load_checkpoint(nn.Linear(2, 2), tmp_path / name)
    assert not (tmp_path / "ran").exists()


def test_an_archive_is_unpacked_no_further_than_it_can_be_right(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "mnist"
    folder.mkdir()
    for name in sources.Idx.FILES:
        with gzip.open(folder / f"{name}.gz", "wb", 1) as file:
            file.write(bytes(10**6))
    monkeypatch.setattr(sources, "data_dirs", lambda: (tmp_path,))
    monkeypatch.setattr(sources, "_LARGEST", 1000)
    lengths: list[int] = []
    sha256 = sources.hashlib.sha256
    monkeypatch.setattr(sources.hashlib, "sha256", lambda content: lengths.append(len(content)) or sha256(content))
    with pytest.raises(DataError, match="not what was published"):
        sources.Idx("mnist", "MNIST", ("", "", "", "")).read()
    assert lengths == [1001]


def test_a_networks_names_are_text_in_the_page_of_verdicts() -> None:
    model = nn.Sequential()
    model.add_module("<script>alert(1)</script>", nn.Linear(6, 5))
    report = theory_checks.verify(model, torch.rand(40, 6), torch.rand(40, 6), claims=["C2"], keep=0.5)
    page = report.to_html()
    assert "<script>" not in page
    assert "&lt;script&gt;" in page or "script" not in page
