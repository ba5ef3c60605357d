"""Run folders and files of pytest-benchmark in, one row a point out: what was measured, when, on what machine."""

import json
import string
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

import pandas as pd

from sipp_bench.compare import benchmarks
from sipp_bench.errors import StoreError
from sipp_bench.store.folder import Run, load_run

SERIES = ["what", "target", "method_name", "method", "keep", "unit"]
"""What makes a series; `what` is accuracy, fit, prune, protocol or benchmark."""
_COLUMNS = [*SERIES, "run", "value", "status", "alike"]
_PARTS = ("fit", "prune", "protocol")


@dataclass(frozen=True)
class Entry:
    """One run, or one benchmark file. `problem`: why there are no points of it, if so."""

    path: Path
    date: datetime | None = None
    commit: str | None = None
    dirty: bool | None = None
    machine: Any = None
    versions: Mapping[str, Any] | None = None
    done: int = 0
    failed: int = 0
    missing: int = 0
    problem: str | None = None
    letter: str = "-"
    """Of the machine, in the order of appearance."""

    @property
    def label(self) -> str:
        """Date, commit and machine, for an axis."""
        day = f"{self.date:%Y-%m-%d}" if self.date else "no date"
        return f"{day} {(self.commit or 'no commit')[:7]}{'+' if self.dirty else ''} {self.letter}"


@dataclass(frozen=True)
class History:
    """All runs by date, those without points last, and their points.

    points: columns SERIES, run (place in `entries`), value (NaN unless status is done), status (done, failed, missing)
    and alike (equal for points that compare: of one machine, and for networks of the same seeds, data and points).
    """

    entries: tuple[Entry, ...]
    points: pd.DataFrame


def read_history(paths: Sequence[Path | str]) -> History:
    """Every run in `paths`: run folders, JSON files of pytest-benchmark, folders of either.

    One that cannot be read is an entry with its problem. Raises StoreError when none can.
    """
    read = [_read(path) for path in _expanded(map(Path, paths))]
    read.sort(key=lambda pair: (pair[0].problem is not None, pair[0].date or datetime.max.replace(tzinfo=UTC)))
    if not read or read[0][0].problem is not None:
        reasons = " ".join(str(entry.problem) for entry, _ in read[:1])
        raise StoreError(f"There is no run to draw. {reasons or 'Give run folders, or files of pytest-benchmark.'}")
    letters: dict[str, str] = {}
    entries = []
    for entry, _ in read:
        key = json.dumps(entry.machine, sort_keys=True, default=str)
        if entry.problem is None:
            letters.setdefault(key, _letter(len(letters)))
        entries.append(replace(entry, letter=letters.get(key, "-")))
    rows = [
        row | {"run": place, "alike": f"{entries[place].letter} {row['alike']}"}
        for place, (_, found) in enumerate(read)
        for row in found
    ]
    return History(tuple(entries), _completed(pd.DataFrame(rows, columns=_COLUMNS), tuple(entries)))


def _expanded(paths: Iterable[Path]) -> list[Path]:
    found: list[Path] = []
    for path in paths:
        if not path.is_dir() or (path / "run.json").exists():
            found.append(path)
            continue
        inside = sorted(path.iterdir())
        found += [each for each in inside if (each / "run.json").exists() or (each / "cells").is_dir()]
        found += [each for each in inside if each.suffix == ".json" and each.name != benchmarks.HISTORY]
    return list({path.resolve(): path for path in found}.values())


def _read(path: Path) -> tuple[Entry, list[dict[str, Any]]]:
    entry = Entry(path)
    try:
        if not path.exists():
            return replace(entry, problem=f"There is no {path}."), []
        return _of_run(load_run(path)) if path.is_dir() else _of_file(path)
    except StoreError as error:
        return replace(entry, problem=str(error)), []


def _of_run(run: Run) -> tuple[Entry, list[dict[str, Any]]]:
    systems = (run.meta, *run.meta["resumed"])
    machines = [system.get("machine") for system in systems]
    machine = machines[0] if all(each == machines[0] for each in machines) else machines
    status = run.cells["status"]
    entry = Entry(
        run.path, _date(run.meta.get("started")), systems[-1].get("commit"), systems[-1].get("dirty"), machine,
        systems[-1].get("versions"), int((status == "done").sum()), int((status == "failed").sum()),
        len(run.meta["cells"]) - len(status),
    )  # fmt: skip
    if entry.date is None:
        return replace(entry, problem=f"{run.path / 'run.json'} does not say when the run was started."), []
    planned: dict[tuple[str, str], int] = {}
    for cell in run.meta["cells"]:
        planned[_series_of(cell)] = planned.get(_series_of(cell), 0) + 1
    cells = run.cells.merge(run.timings, on="id")
    rows = []
    for _, group in cells.groupby([cells["id"].map(_series_of)], sort=False):
        rows += _of_group(run, group, planned[_series_of(str(group["id"].iloc[0]))])
    # The fit of a method is the same for every keep ratio: once is enough.
    fits = {(row["target"], row["method"]): row for row in reversed(rows) if row["what"] == "fit"}
    return entry, [row for row in rows if row["what"] != "fit"] + list(fits.values())


def _series_of(cell: str) -> tuple[str, str]:
    """Of a cell's id: network, data and method, and the keep ratio; not the seed."""
    named, _, keep = cell.rsplit("--", 2)
    return named, keep


def _of_group(run: Run, cells: pd.DataFrame, planned: int) -> list[dict[str, Any]]:
    """The points of cells that differ in their seeds only; one with a seed failed or missing has no value."""
    first = cells.iloc[0]
    data = run.meta["data"].get(first["data"], {}).get("sha256", "")
    seeds = ",".join(str(seed) for seed in sorted(cells["seed"]))
    alike = f"{data[:8]} {first['num_points']:g} points, seeds {seeds}"
    failed = bool((cells["status"] == "failed").any())
    status = "failed" if failed else "missing" if len(cells) < planned else "done"
    common = {
        "target": f"{first['network']} on {first['data']}", "method_name": first["method_name"],
        "method": first["method"], "status": status, "alike": alike,
    }  # fmt: skip
    done = status == "done"
    rows = [common | {"what": "accuracy", "keep": first["keep"], "unit": "", "value": _mean(cells["accuracy"], done)}]
    ratios = bool((cells["reference_seconds"] > 0).all())
    for part in _PARTS:
        seconds = cells[f"{part}_seconds"] / (cells["reference_seconds"] if ratios else 1.0)
        if seconds.notna().any():
            unit = "of the reference" if ratios else "s"
            keep = float("nan") if part == "fit" else first["keep"]
            rows.append(common | {"what": part, "keep": keep, "unit": unit, "value": _mean(seconds, done)})
    return rows


def _mean(values: "pd.Series[Any]", done: bool) -> float:
    return float(values.mean()) if done else float("nan")


def _of_file(path: Path) -> tuple[Entry, list[dict[str, Any]]]:
    content = benchmarks.read(path)
    info, commit = _mapping(content.get("machine_info")), _mapping(content.get("commit_info"))
    entry = Entry(
        path,
        benchmarks.moment(content),
        info.get("commit") or commit.get("id"),
        info.get("dirty", commit.get("dirty")),
        benchmarks.machine(content),
        _mapping(info.get("versions")),
    )
    if entry.date is None:
        return replace(entry, problem=f"{path} does not say when it was made."), []
    rows = []
    for benchmark in content["benchmarks"]:
        ratios, seconds = benchmarks.ratios(benchmark), benchmarks.seconds(benchmark)
        value, unit = (ratios, "of the reference") if ratios else (seconds, "s")
        rows.append(
            {"what": "benchmark", "target": "benchmarks", "method_name": "", "method": str(benchmark["fullname"])}
            | {"keep": float("nan"), "unit": unit, "value": median(value) if value else float("nan")}
            | {"status": "done" if value else "failed", "alike": ""}
        )
    measured = sum(row["status"] == "done" for row in rows)
    return replace(entry, done=measured, failed=len(rows) - measured), rows


def _mapping(content: Any) -> dict[str, Any]:
    return content if isinstance(content, dict) else {}


def _completed(points: pd.DataFrame, entries: Sequence[Entry]) -> pd.DataFrame:
    """With a row wherever a run of the same kind has no point of a series that others have: failed, or missing."""
    files = {place for place, entry in enumerate(entries) if entry.problem is None and entry.path.is_file()}
    runs = {place for place, entry in enumerate(entries) if entry.problem is None} - files
    bad = points[points["status"] == "failed"]
    failed = set(zip(bad["run"], bad["target"], bad["method"], strict=True))
    # Times in another unit are another series, but not missing.
    same = [name for name in SERIES if name != "unit"]
    added = []
    for key, group in points.groupby(same, sort=False, dropna=False):
        named = dict(zip(same, key, strict=True)) | {"unit": group["unit"].iloc[-1]}
        for place in (files if named["what"] == "benchmark" else runs) - set(group["run"]):
            status = "failed" if (place, named["target"], named["method"]) in failed else "missing"
            added.append(named | {"run": place, "value": float("nan"), "status": status, "alike": ""})
    found = [points, *([pd.DataFrame(added, columns=_COLUMNS)] if added else [])]
    return pd.concat(found, ignore_index=True).sort_values("run", kind="stable", ignore_index=True)


def _date(text: Any) -> datetime | None:
    return benchmarks.moment({"datetime": text})


def _letter(number: int) -> str:
    return string.ascii_uppercase[number] if number < 26 else f"M{number + 1}"
