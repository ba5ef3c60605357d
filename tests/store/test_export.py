"""Exported tables come back as they were: types, what is missing, infinities, lists, awkward text."""

import json
import math
import shutil
import sys
from pathlib import Path

import pandas as pd
import pytest

from sipp_bench.cli.commands import main
from sipp_bench.errors import OptionError, StoreError
from sipp_bench.store.export import Format, export_run, read_export
from sipp_bench.store.folder import load_run
from sipp_bench.store.tables import TABLES

FIXTURES = Path(__file__).parents[1] / "fixtures" / "runs"
FORMATS: list[Format] = ["csv", "parquet"]
AWKWARD = 'ValueError: "NA", a comma\nand a line; ünïcode | NaN'


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of the measures with what is hard to write: NaN, infinities, in lists too, quotes and newlines."""
    folder = Path(shutil.copytree(FIXTURES / "cd6c573", tmp_path / "run"))
    bounded, plain = sorted(folder.glob("cells/*k0.1.json"), key=lambda file: "magnitude" in file.name)
    cell = json.loads(bounded.read_text())
    cell |= {"loss": "Infinity", "loss_gap": "-Infinity", "calibration_error": None, "accuracy": 0.1 + 0.2}
    cell["class_loss_changes"] = [None, "Infinity", "-Infinity", 1 / 3, 0]
    cell["layers"][0]["epsilon_max"] = "Infinity"
    bounded.write_text(json.dumps(cell))
    kept = ("format", "id", "network", "data", "seed", "method", "keep", "method_name", "options", "blocks")
    failed = {key: json.loads(plain.read_text())[key] for key in kept}
    plain.write_text(json.dumps(failed | {"status": "failed", "error": AWKWARD}))
    return folder


@pytest.mark.parametrize("format", FORMATS)
def test_the_round_trip(run: Path, tmp_path: Path, format: Format) -> None:
    paths = export_run(run, tmp_path / "out", format)
    assert [path.name for path in paths] == [f"{name}.{format}" for name in TABLES]
    loaded, back = load_run(run), read_export(tmp_path / "out")
    for name, columns in TABLES.items():
        expected = getattr(loaded, name).copy()
        if name == "cells":
            (changes, missing) = back[name].pop("class_loss_changes")
            assert missing is None
            assert math.isnan(changes[0])
            assert changes[1:] == [math.inf, -math.inf, 1 / 3, 0.0]
            del expected["class_loss_changes"]
            assert list(back[name]["error"]) == [None, AWKWARD]
            assert back[name]["loss"][0] == math.inf
            assert back[name]["accuracy"][0] == 0.1 + 0.2
            assert isinstance(back[name]["class_accuracies"][0], list)
        assert list(back[name].dtypes) == [dtype for column, dtype in columns.items() if column in back[name]]
        pd.testing.assert_frame_equal(back[name], expected, check_exact=True)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("folder", sorted(FIXTURES.iterdir()), ids=lambda path: path.name)
def test_runs_of_every_version_come_back(folder: Path, tmp_path: Path, format: Format) -> None:
    export_run(folder, tmp_path, format)
    loaded, back = load_run(folder), read_export(tmp_path)
    for name in TABLES:
        pd.testing.assert_frame_equal(back[name], getattr(loaded, name), check_exact=True)


@pytest.mark.parametrize("format", FORMATS)
def test_a_run_without_cells_keeps_columns_and_types(run: Path, tmp_path: Path, format: Format) -> None:
    for file in (run / "cells").iterdir():
        file.unlink()
    export_run(run, tmp_path / "out", format)
    for name, table in read_export(tmp_path / "out").items():
        assert dict(table.dtypes.astype(str)) == TABLES[name]
        assert table.empty


def test_parquet_has_types_whatever_the_values(tmp_path: Path) -> None:
    import pyarrow.parquet

    schemas = []
    for name in ("a707536", "cd6c573"):
        export_run(FIXTURES / name, tmp_path / name, "parquet")
        schemas.append(pyarrow.parquet.read_schema(tmp_path / name / "cells.parquet").remove_metadata())
    assert schemas[0] == schemas[1], "the first has no lists and no measures at all"
    assert str(schemas[0].field("class_accuracies").type) == "list<element: double>"


def test_without_pyarrow_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(OptionError, match=r"sipp-bench\[parquet\]"):
        export_run(FIXTURES / "cd6c573", tmp_path / "out", "parquet")
    assert not (tmp_path / "out").exists()
    export_run(FIXTURES / "cd6c573", tmp_path / "out", "csv")


def test_what_is_no_export_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"cells\.csv"):
        read_export(tmp_path)
    export_run(FIXTURES / "cd6c573", tmp_path)
    for content in ("", "id\n1\n", (tmp_path / "layers.csv").read_text().replace("fc1.weight,", "fc1.weight,x")):
        (tmp_path / "layers.csv").write_text(content)
        with pytest.raises(StoreError, match=r"layers\.csv is not as"):
            read_export(tmp_path)
    with pytest.raises(OptionError, match="no format 'xls'"):
        export_run(FIXTURES / "cd6c573", tmp_path, "xls")  # type: ignore[arg-type]


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    calls = [([FIXTURES / "cd6c573", "-o", tmp_path / "out"], 0), ([tmp_path, "-o", tmp_path / "other"], 2)]
    for arguments, code in calls:
        with pytest.raises(SystemExit) as caught:
            main(["export", *map(str, arguments)])
        assert int(caught.value.code or 0) == code
    said = capsys.readouterr()
    assert "cells.csv" in said.out
    assert "is not a run folder" in said.err
    assert not (tmp_path / "other").exists()
