"""Run folders: what is written is read back, in order; what is damaged, strange or taken is refused."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sipp_bench.errors import StoreError
from sipp_bench.store import folder as store_module
from sipp_bench.store.cell import Cell
from sipp_bench.store.folder import Store, load_run

CELLS = [Cell("net", "digits", seed, "sipp-det", keep) for seed in (0, 1) for keep in (0.5, 0.1)]
META = {
    "suite": {"name": "small", "text": "", "sha256": "abc"},
    "cells": [cell.id for cell in CELLS],
    "machine": {"cores": 2},
    "versions": {"torch": "1"},
    "commit": None,
    "dirty": None,
}
TIMING = {"fit_seconds": 1.0, "prune_seconds": 0.1, "evaluate_seconds": 0.2, "check_seconds": 0.3}
PREDICTED = {"labels": np.array([0, 0, 9]), "dense": np.array([0, 1, 9]), "pruned": np.array([300, 1, 9])}
ERRORS = np.array([[0.05, 0.2]], dtype=np.float32)
BLOCKS = {
    "fc1.weight": {
        "epsilon": np.array([[0.1, np.inf]], dtype=np.float32),
        "error_S": ERRORS,
        "error_fresh": ERRORS,
        "draws": np.array([[3, 0]]),
    }
}


def done(**facts: Any) -> dict[str, Any]:
    return {"status": "done", "error": None, "accuracy": 0.9, "kept": 5, "layers": [], "checks": [], **facts}


def write_run(path: Path) -> None:
    layer = {"layer": "fc1.weight", "weights": 10, "requested": 5, "kept": 5}
    check = {
        "claim": "C2",
        "on": "S",
        "layer": "fc1.weight",
        "blocks": 2,
        "vacuous": 0,
        "exceeding": 0,
        "points": 8,
        "drawn": 0,
        "exceeding_certain": 0,
        "active": 16,
    }
    with Store(path, META) as store:
        for cell in reversed(CELLS):
            result = done(layers=[layer | {"epsilon_max": 0.5}], checks=[check | {"verdict": "holds"}])
            store.write_cell(cell, result, TIMING, BLOCKS, PREDICTED)


def test_round_trip(tmp_path: Path) -> None:
    write_run(tmp_path / "run")
    run = load_run(tmp_path / "run")
    assert list(run.cells["id"]) == [cell.id for cell in CELLS], "in the suite's order"
    assert list(run.cells["keep"]) == [0.5, 0.1, 0.5, 0.1]
    assert set(run.cells["accuracy"]) == {0.9}
    assert run.cells["dense_accuracy"].isna().all(), "what a cell lacks is NaN"
    assert list(run.layers["epsilon_max"]) == [0.5] * 4
    assert list(run.checks["verdict"]) == ["holds"] * 4
    assert list(run.timings["fit_seconds"]) == [1.0] * 4
    arrays = run.blocks(CELLS[0].id)["fc1.weight"]
    np.testing.assert_array_equal(arrays["epsilon"], BLOCKS["fc1.weight"]["epsilon"])
    np.testing.assert_array_equal(arrays["draws"], BLOCKS["fc1.weight"]["draws"])


def test_predictions_come_back_small_and_as_they_were(tmp_path: Path) -> None:
    write_run(tmp_path / "run")
    found = load_run(tmp_path / "run").predictions(CELLS[0].id)
    assert {name: classes.tolist() for name, classes in found.items()} == {
        name: classes.tolist() for name, classes in PREDICTED.items()
    }
    assert [found[name].dtype for name in ("dense", "pruned")] == [np.uint8, np.uint16]
    file = tmp_path / "run" / "cells" / f"{CELLS[0].id}.predictions.npz"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(StoreError, match=r"predictions\.npz is missing, truncated or changed"):
        load_run(tmp_path / "run").predictions(CELLS[0].id)


def test_cells_of_before_the_measures_load_without_them(tmp_path: Path) -> None:
    measured = done(agreement=0.9, flips=3, class_accuracies=[0.5, None, 1.0])
    with Store(tmp_path, META) as store:
        store.write_cell(CELLS[0], done(), TIMING)
        store.write_cell(CELLS[1], measured, TIMING)
    cells = load_run(tmp_path).cells
    old, new = cells.iloc[0], cells.iloc[1]
    assert old["accuracy"] == 0.9
    assert all(math.isnan(old[name]) for name in ("agreement", "flips", "loss_gap", "theoretical_speedup"))
    assert old["class_accuracies"] is None
    assert (new["agreement"], new["flips"], new["class_accuracies"]) == (0.9, 3, [0.5, None, 1.0])


def test_layers_that_stayed_dense_are_a_table(tmp_path: Path) -> None:
    with Store(tmp_path, META) as store:
        store.write_cell(CELLS[0], done(), TIMING)
        store.write_cell(CELLS[1], done(skipped={"conv.weight": "no hook"}), TIMING)
    skipped = load_run(tmp_path).skipped[["id", "layer", "reason"]]
    assert skipped.to_numpy().tolist() == [[CELLS[1].id, "conv.weight", "no hook"]]


def test_tables_have_their_columns_and_types_when_empty(tmp_path: Path) -> None:
    write_run(tmp_path / "full")
    with Store(tmp_path / "empty", META):
        pass
    full, empty = load_run(tmp_path / "full"), load_run(tmp_path / "empty")
    for table in ("cells", "layers", "checks", "timings"):
        assert len(getattr(empty, table)) == 0
        assert list(getattr(empty, table).dtypes.items()) == list(getattr(full, table).dtypes.items())


def test_failed_cell_keeps_its_traceback_apart_until_it_succeeds(tmp_path: Path) -> None:
    failed = {"status": "failed", "error": "ValueError: no"}
    trace = tmp_path / "cells" / f"{CELLS[0].id}.traceback.txt"
    with Store(tmp_path, META) as store:
        store.write_cell(CELLS[0], failed, {}, traceback="Traceback: line 3")
        assert store.status(CELLS[0]) == "failed"
        row = load_run(tmp_path).cells.iloc[0]
        assert (row["status"], row["error"]) == ("failed", "ValueError: no")
        assert math.isnan(row["kept"])
        assert trace.read_text() == "Traceback: line 3"
        assert "line 3" not in (tmp_path / "cells" / f"{CELLS[0].id}.json").read_text()
        store.write_cell(CELLS[0], done(), TIMING)
    assert not trace.exists()
    assert load_run(tmp_path).cells.iloc[0]["error"] is None


def test_numbers_that_json_lacks(tmp_path: Path) -> None:
    numbers = done(accuracy=math.nan, loss=np.float32(np.inf), kept=np.int64(7), delta=-math.inf)
    with Store(tmp_path, META) as store:
        store.write_cell(CELLS[0], numbers, TIMING)
    text = (tmp_path / "cells" / f"{CELLS[0].id}.json").read_text()

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    content = json.loads(text, parse_constant=refuse)
    assert (content["accuracy"], content["loss"], content["delta"]) == (None, "Infinity", "-Infinity")
    row = load_run(tmp_path).cells.iloc[0]
    assert math.isnan(row["accuracy"])
    assert (row["loss"], row["kept"], row["delta"]) == (math.inf, 7, -math.inf)


def test_the_same_results_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("first", "second"):
        write_run(tmp_path / name)
    first, second = tmp_path / "first" / "cells", tmp_path / "second" / "cells"
    names = sorted(file.name for file in first.iterdir())
    assert len(names) == 4 * len(CELLS)
    assert [(first / name).read_bytes() for name in names] == [(second / name).read_bytes() for name in names]


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


@pytest.mark.parametrize("suffix", ["json", "safetensors", "timing.json"])
@pytest.mark.parametrize("damage", [truncate, Path.unlink])
def test_damage_is_refused_by_name(tmp_path: Path, suffix: str, damage: Callable[[Path], None]) -> None:
    write_run(tmp_path)
    file = tmp_path / "cells" / f"{CELLS[1].id}.{suffix}"
    damage(file)
    if suffix == "json" and damage is Path.unlink:  # then the cell has not been run, and that is all
        assert len(load_run(tmp_path).cells) == len(CELLS) - 1
        return
    with pytest.raises(StoreError) as caught:
        load_run(tmp_path)
    assert str(file) in str(caught.value)
    assert "Delete the files of that cell" in str(caught.value)


@pytest.mark.parametrize("content", ["{", "[]", '{"format": 1}', '{"format": 1, "id": "another"}'])
def test_a_damaged_cell_is_refused_on_resuming(tmp_path: Path, content: str) -> None:
    write_run(tmp_path)
    file = tmp_path / "cells" / f"{CELLS[2].id}.json"
    file.write_text(content)
    with pytest.raises(StoreError, match="truncated or changed") as caught, Store(tmp_path, META):
        pass
    assert str(file) in str(caught.value)


def test_changed_arrays_of_the_same_length_are_noticed(tmp_path: Path) -> None:
    write_run(tmp_path)
    file = tmp_path / "cells" / f"{CELLS[0].id}.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(StoreError, match=file.name):
        load_run(tmp_path).blocks(CELLS[0].id)


def test_another_format_version_is_refused(tmp_path: Path) -> None:
    write_run(tmp_path)
    file = tmp_path / "run.json"
    file.write_text(file.read_text().replace('"format": 1', '"format": 99'))
    with pytest.raises(StoreError, match="format 99"):
        load_run(tmp_path)


def test_no_run_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"not a run folder: it has no run\.json"):
        load_run(tmp_path)


def test_another_suite_is_refused(tmp_path: Path) -> None:
    write_run(tmp_path)
    before = (tmp_path / "run.json").read_bytes()
    other = META | {"suite": {"name": "small", "text": "", "sha256": "def"}}
    with pytest.raises(StoreError, match=r"another suite.*-o, or delete"), Store(tmp_path, other):
        pass
    assert (tmp_path / "run.json").read_bytes() == before


def test_a_folder_with_other_things_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(StoreError, match=r"not a run folder .*thesis\.tex"), Store(tmp_path, META):
        pass
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("name", ["run", "run/below"])
def test_an_unwritable_folder_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "run").write_text("a file")
    with pytest.raises(StoreError, match="Cannot write to the run folder"), Store(tmp_path / name, META):
        pass


def test_two_writers_are_refused_and_the_lock_goes_with_its_holder(tmp_path: Path) -> None:
    with (
        Store(tmp_path, META),
        pytest.raises(StoreError, match="Another process is running"),
        Store(tmp_path, META),
    ):
        pass
    with Store(tmp_path, META) as store:
        assert store.status(CELLS[0]) is None


def test_leftovers_of_killed_writes_are_ignored_and_cleared(tmp_path: Path) -> None:
    write_run(tmp_path)
    leftovers = [tmp_path / ".run.json.k3_x9abc.tmp", tmp_path / "cells" / f".{CELLS[0].id}.json.0.tmp"]
    for leftover in leftovers:
        leftover.write_text('{"half')
    assert len(load_run(tmp_path).cells) == len(CELLS)
    with Store(tmp_path, META):
        pass
    assert not any(leftover.exists() for leftover in leftovers)


def test_a_kill_before_run_json_leaves_a_usable_folder(tmp_path: Path) -> None:
    (tmp_path / "cells").mkdir()
    (tmp_path / ".lock").touch()
    (tmp_path / ".run.json.0.tmp").write_text("{")
    with Store(tmp_path, META) as store:
        assert store.status(CELLS[0]) is None


def test_the_cell_file_comes_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[str] = []
    monkeypatch.setattr(
        store_module, "write_atomically", lambda path, content: written.append(path.name) or path.touch()
    )
    with Store(tmp_path, META) as store:
        written.clear()
        store.write_cell(CELLS[0], done(), TIMING, BLOCKS)
    name = CELLS[0].id
    assert set(written[:-1]) == {f"{name}.timing.json", f"{name}.safetensors"}
    assert written[-1] == f"{name}.json"


def test_facts_found_on_the_way_must_not_change(tmp_path: Path) -> None:
    with Store(tmp_path, META) as store:
        store.record("data", "digits", {"sha256": "1"})
    with Store(tmp_path, META) as store:
        store.record("data", "digits", {"sha256": "1"})
        with pytest.raises(StoreError, match=r"digits \(data\) is not what it was"):
            store.record("data", "digits", {"sha256": "2"})
    assert load_run(tmp_path).meta["data"] == {"digits": {"sha256": "1"}}


def test_resuming_on_another_machine_is_recorded_once(tmp_path: Path) -> None:
    with Store(tmp_path, META):
        pass
    for cores in (2, 8, 8):
        with Store(tmp_path, META | {"machine": {"cores": cores}}):
            pass
    meta = load_run(tmp_path).meta
    assert meta["machine"] == {"cores": 2}
    assert [system["machine"] for system in meta["resumed"]] == [{"cores": 8}]
