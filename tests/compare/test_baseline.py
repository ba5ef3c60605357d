"""Baselines: what compare needs is copied, the reason is kept, and what is no baseline is refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sipp_bench.bench.suite import load_suite
from sipp_bench.cli.commands import main
from sipp_bench.compare import baseline, compare
from sipp_bench.errors import OptionError, StoreError
from sipp_bench.store.cell import Cell
from sipp_bench.store.folder import Store

CELLS = [Cell("net", "digits", seed, "a", 0.5) for seed in (0, 1)]
META: dict[str, Any] = {
    "suite": {"name": "small", "text": "", "sha256": "abc"},
    "cells": [cell.id for cell in CELLS],
    "machine": {"cpu": "one"},
    "versions": {},
    "commit": "c0ffee",
    "dirty": True,
}
TIMING = dict.fromkeys(("fit_seconds", "prune_seconds", "evaluate_seconds", "check_seconds"), 1.0)
BLOCKS = {"fc1.weight": {"epsilon": np.ones((1, 2))}}


def write_run(path: Path, status: str = "done", cells: list[Cell] = CELLS) -> Path:
    with Store(path, META) as store:
        for cell in cells:
            result = {"status": status, "error": None, "accuracy": 0.5, "kept": 1, "mask_sha256": "m"}
            store.write_cell(cell, result, TIMING, BLOCKS, {"labels": np.arange(3)})
    return path


def test_a_baseline_compares_equal_to_its_run(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    folder = baseline.update(run, tmp_path / "baselines" / "small", " first ")
    comparison = compare(folder, run)
    assert comparison.exit_code == 0
    assert comparison.counts["same"] == len(comparison.findings)
    assert {path.suffix for path in folder.rglob("*.*")} == {".json"}
    (entry,) = json.loads((folder / "history.json").read_text())
    assert (entry["reason"], entry["commit"], entry["dirty"]) == ("first", "c0ffee", True)


def test_an_update_replaces_the_cells_and_adds_to_the_history(tmp_path: Path) -> None:
    folder = baseline.update(write_run(tmp_path / "run"), tmp_path / "small", "first")
    (folder / "cells" / "stale.json").write_text("{}")
    baseline.update(tmp_path / "run", folder, "second")
    assert not (folder / "cells" / "stale.json").exists()
    assert [entry["reason"] for entry in json.loads((folder / "history.json").read_text())] == ["first", "second"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "small"], "nothing is left behind"


class Killed(BaseException):
    """Nothing catches it, as nothing catches a kill."""


def test_an_update_that_is_killed_at_any_rename_loses_neither_the_baseline_nor_its_history(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before and after each rename of a folder, until an update gets through; then once more, undisturbed."""
    run, folder = write_run(tmp_path / "run"), tmp_path / "baselines" / "small"
    baseline.update(run, folder, "first")
    reasons, rename, rmtree = ["first"], Path.rename, baseline.shutil.rmtree
    for fatal in range(1, 20):
        steps = 0

        def dies(act: Any, *arguments: Any, fatal: int = fatal, **options: Any) -> Any:
            nonlocal steps
            steps += 2
            if steps - 1 == fatal:
                raise Killed
            result = act(*arguments, **options)
            if steps == fatal:
                raise Killed
            return result

        with monkeypatch.context() as patched:
            patched.setattr(Path, "rename", lambda *arguments: dies(rename, *arguments))
            patched.setattr(baseline.shutil, "rmtree", lambda *arguments, **more: dies(rmtree, *arguments, **more))
            try:
                baseline.update(run, folder, f"killed {fatal}")
            except Killed:
                if not folder.exists():
                    with pytest.raises(StoreError, match="run sipp-bench baseline again"):
                        compare(folder, run)
            else:
                break
        said = baseline.update(run, folder, f"after {fatal}")
        history = [entry["reason"] for entry in json.loads((said / "history.json").read_text())]
        assert history in ([*reasons, f"after {fatal}"], [*reasons, f"killed {fatal}", f"after {fatal}"]), history
        assert [path.name for path in folder.parent.iterdir()] == ["small"], "nothing is left behind"
        assert compare(folder, run).exit_code == 0
        reasons = history
    assert fatal > 6, "kills at several steps were tried"


def test_what_is_no_baseline_is_refused(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    with pytest.raises(OptionError, match="needs a reason"):
        baseline.update(run, tmp_path / "out", " \n")
    with pytest.raises(StoreError, match="2 failed and 0 missing"):
        baseline.update(write_run(tmp_path / "failed", "failed"), tmp_path / "out", "why")
    with pytest.raises(StoreError, match=f"0 failed and 1 missing cells, the first {CELLS[1].id}"):
        baseline.update(write_run(tmp_path / "part", cells=CELLS[:1]), tmp_path / "out", "why")
    assert not (tmp_path / "out").exists()
    (tmp_path / "thesis").mkdir()
    with pytest.raises(StoreError, match="is no baseline"):
        baseline.update(run, tmp_path / "thesis", "why")


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, out = write_run(tmp_path / "run"), tmp_path / "small"
    for reason, code in (("", 2), ("why", 0)):
        with pytest.raises(SystemExit) as caught:
            main(["baseline", str(run), "-o", str(out), "--reason", reason])
        assert int(caught.value.code or 0) == code
    assert "needs a reason" in capsys.readouterr().err


def test_the_published_baseline_is_of_the_shipped_suite() -> None:
    folder = Path(__file__).parents[2] / "reports" / "baselines" / "regression"
    suite, run = load_suite("regression"), json.loads((folder / "run.json").read_text())
    assert run["suite"]["sha256"] == suite.sha256
    assert run["cells"] == [cell.id for cell in suite.cells()]
    assert {method.name for method in suite.methods} == {method.name for method in load_suite("quick").methods}
    assert json.loads((folder / "history.json").read_text())[-1]["reason"]
    assert compare(folder, folder).exit_code == 0
