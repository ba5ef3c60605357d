"""The page of many runs: dates, commits and machines of each, steps, and what failed or is missing."""

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from sipp_bench.cli.commands import main
from sipp_bench.errors import StoreError
from sipp_bench.history.build import build_history, marked_steps
from sipp_bench.history.points import read_history
from sipp_bench.store.cell import Cell
from sipp_bench.store.folder import Store

FIXTURES = Path(__file__).parents[1] / "fixtures" / "runs"
CELLS = [
    Cell("net", "digits", seed, method, keep)
    for method in ("magnitude", "snip")
    for seed in (0, 1)
    for keep in (0.5, 0.1)
]
MACHINES = {"A": {"cpu": "one", "cores": 2}, "B": {"cpu": "another", "cores": 4}}


def write_run(
    path: Path, day: int, machine: str = "A", loss: float = 0.0, slow: float = 1.0, cells: list[Cell] = CELLS,
    failing: str = "", reference: bool = True,
) -> Path:  # fmt: skip
    """A run of that day; snip loses accuracy and magnitude takes longer, as told."""
    meta = {
        "suite": {"name": "small", "text": "", "sha256": "abc"}, "cells": [cell.id for cell in CELLS], "seeds": [0, 1],
        "started": f"2026-01-{day:02}T08:00:00+00:00", "machine": MACHINES[machine], "commit": f"c0ffee{day:02}",
        "versions": {"torch": "1" if day < 8 else "2"}, "dirty": day == 1,
    }  # fmt: skip
    noise = np.random.default_rng(day)
    with Store(path, meta) as store:
        store.record("data", "digits", {"sha256": "d" * 64})
        for cell in cells:
            if cell.method == failing:
                store.write_cell(cell, {"status": "failed", "error": "no", "method_name": cell.method}, {})
                continue
            accuracy = 0.9 + noise.normal(0, 0.001) - (loss if cell.method == "snip" else 0)
            result = {
                "status": "done",
                "error": None,
                "accuracy": accuracy,
                "num_points": 8,
                "method_name": cell.method,
            }
            busy = noise.uniform(1, 3)  # the reference is as slow as the rest
            prune = busy * noise.normal(2.0, 0.02) * (slow if cell.method == "magnitude" else 1)
            timing = {"fit_seconds": busy, "prune_seconds": prune} | ({"reference_seconds": busy} if reference else {})
            store.write_cell(cell, result, timing)
    return path


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty runs, one elsewhere, one with failures, one cut short, one broken; a step from day 7 on."""
    folder = tmp_path_factory.mktemp("runs")
    for day in range(1, 21):
        late = {"loss": 0.05, "slow": 1.15} if day >= 7 else {}
        write_run(
            folder / f"run{21 - day:02}", day, "B" if day == 4 else "A",
            cells=CELLS[:5] if day == 5 else CELLS, failing="magnitude" if day == 10 else "", **late,  # type: ignore[arg-type]
        )  # fmt: skip
    (folder / "broken").mkdir()
    (folder / "broken" / "run.json").write_text("{")
    (folder / "notes").mkdir()
    return folder


def write_benchmarks(path: Path, day: int, seconds: float, names: str = "ab", **more: Any) -> Path:
    listed = [
        {"fullname": name, "extra_info": {"subject_seconds": [seconds] * 3, "reference_seconds": [2.0] * 3}}
        for name in names
    ]
    content = {
        "benchmarks": listed,
        "datetime": f"2026-01-{day:02}T00:00:00",
        "machine_info": {"machine": MACHINES["A"]},
    }
    path.write_text(json.dumps(content | {"commit_info": {"id": f"feed{day:02}", "dirty": False}} | more))
    return path


def test_runs_are_in_the_order_of_their_dates(runs: Path) -> None:
    entries = read_history([runs]).entries
    assert [entry.path.name for entry in entries] == [f"run{21 - day:02}" for day in range(1, 21)] + ["broken"]
    assert [entry.letter for entry in entries] == ["A", "A", "A", "B", *"A" * 16, "-"]
    assert [(e.done, e.failed, e.missing) for e in entries[3:6]] == [(8, 0, 0), (5, 0, 3), (8, 0, 0)]
    assert (entries[9].done, entries[9].failed) == (4, 4)
    assert "truncated" in str(entries[-1].problem)
    assert entries[0].label == "2026-01-01 c0ffee0+ A"


def test_points_have_values_only_where_all_seeds_are_done(runs: Path) -> None:
    points = read_history([runs]).points
    accuracy = points[(points["what"] == "accuracy") & (points["keep"] == 0.1)].set_index(["method", "run"])
    assert accuracy.loc[("magnitude", 9), "status"] == "failed"
    assert accuracy.loc[("snip", 4), "status"] == "missing"
    assert accuracy.loc[("snip", 8), "status"] == "done"
    assert accuracy[accuracy["status"] != "done"]["value"].isna().all()
    assert accuracy[accuracy["status"] == "done"]["value"].notna().all()
    assert accuracy.loc[("snip", 3), "alike"] != accuracy.loc[("snip", 2), "alike"], "another machine"
    prune = points[(points["what"] == "prune") & (points["status"] == "done")]
    assert set(prune["unit"]) == {"of the reference"}
    assert set(
        points["status"][(points["what"] == "prune") & (points["run"] == 9) & (points["method"] == "magnitude")]
    ) == {"failed"}
    assert len(points[(points["what"] == "fit") & (points["run"] == 0)]) == 2, "once a method"


def test_planted_steps_are_marked_and_no_others(runs: Path) -> None:
    steps = marked_steps(read_history([runs]).points)
    found = {(row["what"], row["method"], row["keep"], row["run"]) for row in steps.to_dict("records")}
    assert found == {
        (what, method, keep, 6)
        for what, method in (("accuracy", "snip"), ("prune", "magnitude"))
        for keep in (0.5, 0.1)
    }
    change = (steps["after"] / steps["before"]).groupby(steps["what"]).mean()
    assert change["accuracy"] == pytest.approx(0.85 / 0.9, abs=0.01)
    assert change["prune"] == pytest.approx(1.15, abs=0.03)


def test_the_page(runs: Path, tmp_path: Path) -> None:
    page = build_history([runs, tmp_path / "gone"], tmp_path / "out").read_text()
    assert "<script" not in page
    assert not re.search(r'(?:src|href)="(?:https?:)?//', page)
    for said in ("c0ffee07", "2026-01-07", "torch 1 -&gt; 2", "There is no ", "truncated", "cores 4", "worse", "1 %"):
        assert said in page, said
    for said in ("at least 10 runs", "9,999 random orders", "Of its 20 series 10\n"):
        assert said in page, said
    figures = sorted(path.name for path in (tmp_path / "out" / "figures").iterdir())
    assert [name.rpartition(".")[2] for name in figures] == ["png", "svg"] * 3
    for name in figures:
        assert name in page
    svg = next((tmp_path / "out" / "figures").glob("*accuracy*.svg")).read_text()
    assert "2026-01-05 c0ffee0 A" in svg, "of 20 runs every other is named"
    assert "keep 50%" in svg
    points = pd.read_csv(tmp_path / "out" / "points.csv")
    assert set(points["status"]) == {"done", "failed", "missing"}
    assert {"commit", "date", "letter"} <= set(points.columns)


def test_files_of_pytest_benchmark_have_points(tmp_path: Path) -> None:
    for day in range(1, 17):
        write_benchmarks(tmp_path / f"{day}.json", day, 1.0 if day < 8 else 1.3, "a" if day == 2 else "ab")
    (tmp_path / "history.json").write_text("[]")
    (tmp_path / "undated.json").write_text(json.dumps({"benchmarks": []}))
    history = read_history([tmp_path])
    assert [entry.commit for entry in history.entries[:2]] == ["feed01", "feed02"]
    assert "does not say when" in str(history.entries[-1].problem)
    points = history.points.set_index(["method", "run"])
    assert points.loc[("a", 0), "value"] == 0.5
    assert points.loc[("b", 1), "status"] == "missing"
    assert {(row["method"], row["run"]) for row in marked_steps(history.points).to_dict("records")} == {
        ("a", 7),
        ("b", 7),
    }
    assert "feed08" in build_history([tmp_path], tmp_path / "out").read_text()


def test_times_with_and_without_a_reference_are_series_of_their_own(tmp_path: Path) -> None:
    write_run(tmp_path / "old", 1, reference=False)
    write_run(tmp_path / "new", 2)
    points = read_history([tmp_path]).points
    prune = points[points["what"] == "prune"]
    assert {(row["run"], row["unit"], row["status"]) for row in prune.to_dict("records")} == {
        (0, "s", "done"),
        (1, "of the reference", "done"),
    }


def test_runs_of_every_version_are_drawn(tmp_path: Path) -> None:
    history = read_history([FIXTURES])
    assert [entry.problem for entry in history.entries] == [None] * len(list(FIXTURES.iterdir()))
    accuracy = history.points[history.points["what"] == "accuracy"]
    values = accuracy[accuracy["method_name"] == "sipp-hybrid"]["value"]
    assert sum(not math.isnan(value) for value in values) == len(history.entries)
    assert build_history([FIXTURES], tmp_path / "out").exists()


def test_nothing_to_draw_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(StoreError, match="There is no run to draw"):
        read_history([tmp_path])
    with pytest.raises(SystemExit) as caught:
        main(["history", str(tmp_path / "gone"), "-o", str(tmp_path / "out")])
    assert caught.value.code == 2
    assert "There is no run to draw. There is no " in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
