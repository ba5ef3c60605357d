"""A run's tables as CSV or Parquet files, for other programs, and back with the types that they had.

CSV is RFC 4180 in UTF-8: what is not there is an empty field, infinities are inf and -inf, a list (one number a class)
is JSON as in run folders, floats have all their digits. Text that a spreadsheet would take for a formula has a ' in
front, see `to_csv`. Parquet has types, nulls and lists of its own.
"""

import csv
import io
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import pandas as pd

from sipp_bench.errors import OptionError, StoreError
from sipp_bench.machine.files import write_atomically
from sipp_bench.store.folder import load_run
from sipp_bench.store.records import floats, plain
from sipp_bench.store.tables import LISTS, TABLES

_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "'")

Format = Literal["csv", "parquet"]


def export_run(run: Path | str, output: Path | str, format: Format = "csv") -> list[Path]:
    """Write cells, layers, checks and timings of a run folder to `output`/NAME.csv or .parquet; the files' paths.

    Raises StoreError when the run cannot be read or `output` not be written, OptionError for a format that is unknown
    or needs pyarrow, which is not installed. Nothing is written before all of it is ready.
    """
    if format not in get_args(Format):
        raise OptionError(f"There is no format {format!r}. Choose csv or parquet.")
    loaded = load_run(run)
    write = _to_csv if format == "csv" else _to_parquet
    contents = {
        Path(output) / f"{name}.{format}": write(_with_lists(getattr(loaded, name)), columns)
        for name, columns in TABLES.items()
    }
    return [write_atomically(path, content) for path, content in contents.items()]


def to_csv(table: pd.DataFrame) -> str:
    """The table as CSV in which no text is a formula to a spreadsheet: text (no number) that begins with =, +, -, @,
    a tab or the end of a line gets a ' in front, and so does what begins with ', so that taking it off is exact.
    """
    texts = {name: table[name].map(_harmless) for name in table.columns if table[name].dtype.kind not in "biuf"}
    table = table.assign(**texts)
    # Where lines end with \n, the writer takes \r for a letter like any other, and every reader for the end of a line.
    returns = any("\r" in value for name in texts for value in table[name] if isinstance(value, str))
    if returns:
        return table.to_csv(index=False, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
    return table.to_csv(index=False, lineterminator="\n")


def _harmless(value: Any) -> Any:
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value


def read_export(folder: Path | str) -> dict[str, pd.DataFrame]:
    """Table name -> the table as in `store.Run`, from files of either format; lists are lists of floats.

    Raises StoreError, naming the file, when one is missing or not as `export_run` wrote it.
    """
    return {name: _read(Path(folder), name, columns) for name, columns in TABLES.items()}


def _with_lists(table: pd.DataFrame) -> pd.DataFrame:
    """The table with lists of floats, where those of a run have what JSON has for NaN and infinities."""
    lists = {name: _objects(table[name].map(floats, na_action="ignore")) for name in LISTS & set(table.columns)}
    return table.assign(**lists)


def _to_csv(table: pd.DataFrame, columns: Mapping[str, str]) -> str:
    as_json = {
        name: table[name].map(lambda values: json.dumps(plain(values)), na_action="ignore")
        for name in LISTS & columns.keys()
    }
    return to_csv(table.assign(**as_json))


def _to_parquet(table: pd.DataFrame, columns: Mapping[str, str]) -> bytes:
    pyarrow = _pyarrow()
    types = {"int64": pyarrow.int64(), "float64": pyarrow.float64()}
    # Said rather than guessed: a column without values has the type that it has in every other run.
    schema = pyarrow.schema(
        (name, pyarrow.list_(pyarrow.float64()) if name in LISTS else types.get(dtype, pyarrow.string()))
        for name, dtype in columns.items()
    )
    buffer = io.BytesIO()
    table.to_parquet(buffer, engine="pyarrow", index=False, schema=schema)
    return buffer.getvalue()


def _read(folder: Path, name: str, columns: Mapping[str, str]) -> pd.DataFrame:
    parquet, csv = folder / f"{name}.parquet", folder / f"{name}.csv"
    path = parquet if parquet.exists() else csv
    if path is parquet:
        _pyarrow()
    try:
        table = pd.read_parquet(path) if path is parquet else _read_csv(path, columns)
        return pd.DataFrame({name: _typed(table[name], name, dtype) for name, dtype in columns.items()})
    except OSError as error:
        raise StoreError(f"Cannot read {path}: {error.strerror or error}. Make it with: sipp-bench export") from error
    except (ValueError, KeyError) as error:
        raise StoreError(f"{path} is not as sipp-bench export writes it: {error}. Export the run again.") from error


def _read_csv(path: Path, columns: Mapping[str, str]) -> pd.DataFrame:
    # As text first: pandas' own reading of floats is not exact in each of its versions, float() is.
    table = pd.read_csv(path, dtype="str", keep_default_na=False)
    floats = {
        name: pd.Series([float(text) if text else math.nan for text in table[name]], dtype="float64")
        for name, dtype in columns.items()
        if dtype == "float64"
    }
    texts = {name: table[name].map(lambda text: text.removeprefix("'")) for name in columns.keys() - floats.keys()}
    objects = {name: texts[name].map(lambda text: text or None) for name in columns if columns[name] == "object"}
    return table.assign(**floats, **texts | objects)


def _typed(column: "pd.Series[Any]", name: str, dtype: str) -> "pd.Series[Any]":
    if name in LISTS:
        return _objects(column.map(lambda v: floats(json.loads(v) if isinstance(v, str) else v), na_action="ignore"))
    return _objects(column) if dtype == "object" else pd.Series(column, dtype=dtype)


def _objects(column: "pd.Series[Any]") -> "pd.Series[Any]":
    """Values as they are, and None for what is not there."""
    absent = [value is None or value is pd.NA or (isinstance(value, float) and math.isnan(value)) for value in column]
    values = [None if gone else value for value, gone in zip(column, absent, strict=True)]
    return pd.Series(values, index=column.index, dtype="object")


def _pyarrow() -> Any:
    try:
        import pyarrow
    except ImportError as error:
        raise OptionError(
            "Parquet needs pyarrow, which is not installed. Get it with: pip install 'sipp-bench[parquet]', or use "
            "--format csv."
        ) from error
    return pyarrow
