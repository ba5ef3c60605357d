"""Text from elsewhere: what a spreadsheet would take for a formula, and paths that are no text."""

import csv
import io
import json
import os
import shutil
from pathlib import Path

import pandas as pd
import pytest
from store.test_store import CELLS, META, TIMING, done

from sipp_bench.cli import main
from sipp_bench.machine.files import printable, write_atomically
from sipp_bench.store import Store, load_run
from sipp_bench.store.export import export_run, read_export, to_csv
from sipp_bench.store.records import read_json, sealed_json

FORMULAS = ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\n=1", "\r=1", "'", "'=1", "''", "-", "="]
HARMLESS = ["a=1", "1", "", " =1", "ü"]
LETTERS = os.fsdecode(b"r\xff")
"""A folder's name that is not UTF-8."""


def test_no_text_is_a_formula_and_numbers_stay_numbers() -> None:
    table = pd.DataFrame({"text": FORMULAS, "number": -1.5, "count": -2})
    rows = list(csv.DictReader(io.StringIO(to_csv(table), newline="")))
    assert [row["text"] for row in rows] == [f"'{text}" for text in FORMULAS]
    assert {row["number"] for row in rows} == {"-1.5"}
    assert {row["count"] for row in rows} == {"-2"}
    kept = to_csv(pd.DataFrame({"text": HARMLESS, "other": "x"}))
    assert [row["text"] for row in csv.DictReader(io.StringIO(kept, newline=""))] == HARMLESS


@pytest.mark.parametrize("text", [*FORMULAS, *HARMLESS])
def test_text_comes_back_exactly(tmp_path: Path, text: str) -> None:
    layer = {"layer": text, "weights": 10, "requested": 5, "kept": -5, "epsilon_max": -0.5}
    with Store(tmp_path / "run", META) as store:
        store.write_cell(CELLS[0], done(layers=[layer], error=text), TIMING)
    export_run(tmp_path / "run", tmp_path / "out")
    tables, run = read_export(tmp_path / "out"), load_run(tmp_path / "run")
    assert list(tables["layers"]["layer"]) == [text]
    pd.testing.assert_frame_equal(tables["layers"], run.layers)
    assert list(tables["cells"]["error"]) == [text or None]


def test_what_utf8_cannot_say_is_written_so_that_json_reads_it(tmp_path: Path) -> None:
    assert printable("ü" + LETTERS) == "ür\\udcff"
    path = write_atomically(tmp_path / "x.json", json.dumps({"path": LETTERS}, ensure_ascii=False))
    assert json.loads(path.read_bytes()) == {"path": LETTERS}
    path = write_atomically(tmp_path / "sealed.json", sealed_json({"error": f"Cannot read {LETTERS}."}))
    assert read_json(path) == {"error": "Cannot read r\\udcff."}


COMMANDS: dict[str, list[str]] = {
    "report": ["report", LETTERS, LETTERS, "-o", f"{LETTERS}/new"],
    "export": ["export", LETTERS, "-o", f"{LETTERS}/new"],
    "baseline": ["baseline", LETTERS, "-o", f"{LETTERS}-base", "--reason", "x"],
    "compare": ["compare", LETTERS, LETTERS, "--json", f"{LETTERS}.json", "--junit", LETTERS + ".xml"],
    "history": ["history", LETTERS, "-o", f"{LETTERS}-history"],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_path_that_is_not_utf8(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    monkeypatch.chdir(tmp_path)
    try:
        shutil.copytree(Path(__file__).parent / "fixtures" / "runs" / "62a8637", tmp_path / LETTERS)
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    with pytest.raises(SystemExit) as caught:
        main(COMMANDS[command])
    said = capfdbinary.readouterr()
    assert (caught.value.code or 0) == 0, said.err
    if command != "compare":  # whose text names no file
        assert b"r\xff" in said.out
    for file in tmp_path.rglob("*"):
        if file.suffix in {".html", ".json", ".xml", ".md", ".csv"}:
            file.read_text(encoding="utf-8")


def test_an_error_names_the_path(tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["report", str(tmp_path / LETTERS)])
    assert caught.value.code == 2
    assert b"r\xff is not a run folder" in capfdbinary.readouterr().err
