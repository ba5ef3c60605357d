"""The page of many runs: index.html with its figures in it, the figures as PNG and SVG, all points and steps as CSV."""

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
from markupsafe import Markup

from sipp_bench.history.figures import Trend, trend
from sipp_bench.history.points import SERIES, Entry, read_history
from sipp_bench.history.steps import ALPHA, ORDERS, SIDE, fewest_runs, find_steps
from sipp_bench.machine.files import sweep, write_atomically
from sipp_bench.report.sections import slug
from sipp_bench.store.export import to_csv

_TITLES = {"accuracy": "Accuracy", "fit": "Time to fit", "prune": "Time to prune", "protocol": "Time of the protocol",
           "benchmark": "Benchmarks"}  # fmt: skip
_PANELS = 24
"""Of one figure at most: a suite may have hundreds of benchmarks."""


def build_history(runs: Sequence[Path | str], output: Path | str) -> Path:
    """Write the page on these runs (see `read_history`) into `output`, and return its path, index.html.

    Raises StoreError when no run can be read, and when `output` cannot be written.
    """
    history, output = read_history(runs), Path(output)
    drawn = tuple(entry for entry in history.entries if entry.problem is None)
    steps = marked_steps(history.points)
    figures = _figures(history.points, steps, drawn)
    for folder in (output, output / "figures"):
        sweep(folder)
    for figure in figures:
        write_atomically(output / "figures" / f"{figure.name}.png", figure.drawn.png)
        write_atomically(output / "figures" / f"{figure.name}.svg", figure.drawn.svg)
    points = history.points.assign(
        **{name: [getattr(drawn[run], name) for run in history.points["run"]] for name in ("date", "commit", "letter")}
    )
    for name, table in (("points", points), ("steps", steps)):
        write_atomically(output / f"{name}.csv", to_csv(table))
    context = {
        "title": f"History of {len(history.entries)} runs",
        "runs": [_run_row(entry, before) for entry, before in _with_previous(history.entries)],
        "machines": {entry.letter: _machine(entry.machine) for entry in drawn},
        "figures": figures,
        "steps": [_step_row(step, drawn) for step in steps.to_dict("records")],
        "gaps": _gaps(history.points, drawn),
        "alpha": ALPHA,
        "orders": ORDERS,
        "side": SIDE,
        "fewest": fewest_runs(),
        "fewest_at_the_end": fewest_runs(after=SIDE),
        "lengths": [len(group) for group in _series(history.points)],
    }
    return write_atomically(output / "index.html", _environment().get_template("history.html.jinja").render(context))


def marked_steps(points: pd.DataFrame) -> pd.DataFrame:
    """The rows of `points` with which a step begins, and `before`, `after` (medians of the parts) and `p_adjusted`."""
    series, rows = _series(points), []
    found = find_steps([group["value"].tolist() for group in series], [group["run"].tolist() for group in series])
    for step in found:
        group = series[step.series]
        places = [0, *(other.place for other in found if other.series == step.series), len(group)]
        here = places.index(step.place, 1)
        before, after = (group["value"].iloc[places[i] : places[i + 1]].median() for i in (here - 1, here))
        numbers = {"before": before, "after": after, "p_adjusted": step.p_adjusted}
        rows.append(group.iloc[step.place].to_dict() | numbers)
    return pd.DataFrame(rows, columns=[*points.columns, "before", "after", "p_adjusted"])


def _series(points: pd.DataFrame) -> list[pd.DataFrame]:
    """The points that have values, by what compares: one series, of networks and machines that are alike."""
    done = points[points["status"] == "done"]
    return [group for _, group in done.groupby([*SERIES, "alike"], sort=False, dropna=False)]


def _figures(points: pd.DataFrame, steps: pd.DataFrame, entries: Sequence[Entry]) -> list[Trend]:
    figures: list[Trend] = []
    for (what, target, unit), group in points.groupby(["what", "target", "unit"], sort=False):
        if not (group["status"] == "done").any():
            continue
        names = list(dict.fromkeys(group["method"]))
        pages = [names[i : i + _PANELS] for i in range(0, len(names), _PANELS)] if what == "benchmark" else [names]
        for number, page in enumerate(pages):
            part = f", part {number + 1} of {len(pages)}" if len(pages) > 1 else ""
            kind = " as a ratio" if unit == "of the reference" else ""
            title = f"{_TITLES[str(what)]}{kind}{'' if what == 'benchmark' else f': {target}'}{part}"
            own = steps[(steps["what"] == what) & (steps["target"] == target) & (steps["unit"] == unit)]
            figures.append(
                trend(f"{len(figures) + 1:02}-{slug(title)}", title, group[group["method"].isin(page)],
                      own[own["method"].isin(page)], entries)
            )  # fmt: skip
    return figures


def _with_previous(entries: Sequence[Entry]) -> list[tuple[Entry, Entry | None]]:
    return list(zip(entries, [None, *entries[:-1]], strict=True))


def _run_row(entry: Entry, before: Entry | None) -> dict[str, Any]:
    """A row of the table of runs, with the versions that are not those of the run before."""
    was, now = ((each.versions or {}) if each is not None else {} for each in (before, entry))
    changed = [f"{name} {was[name]} -> {now.get(name)}" for name in was if now and was[name] != now.get(name)]
    return {
        "name": entry.path.name,
        "date": f"{entry.date:%Y-%m-%d %H:%M}" if entry.date else "-",
        "commit": (entry.commit or "-")[:12] + (" (changed)" if entry.dirty else ""),
        "machine": entry.letter,
        "done": entry.done,
        "failed": entry.failed,
        "missing": entry.missing,
        "remark": entry.problem or "; ".join(changed),
        "bad": entry.problem is not None,
    }


def _machine(machine: Any) -> str:
    if isinstance(machine, dict):
        return ", ".join(f"{name} {value}" for name, value in machine.items() if value not in (None, []))
    if isinstance(machine, list):
        several = all(isinstance(each, dict) for each in machine)
        return " and then ".join(map(_machine, machine)) if several else ", ".join(str(each) for each in machine)
    return "not described"


def _step_row(step: dict[Any, Any], entries: Sequence[Entry]) -> dict[str, Any]:
    up = step["after"] > step["before"]
    keep = "" if pd.isna(step["keep"]) else f", keep {step['keep']:g}"
    entry = entries[int(step["run"])]
    return {
        "what": _TITLES[step["what"]] + (" as a ratio" if step["unit"] == "of the reference" else ""),
        "series": f"{step['target']}: {step['method']}{keep}",
        "date": f"{entry.date:%Y-%m-%d}",
        "commit": (entry.commit or "-")[:12],
        "machine": entry.letter,
        "before": f"{step['before']:.4g}",
        "after": f"{step['after']:.4g}",
        "word": "better" if up == (step["what"] == "accuracy") else "worse",
        "p": f"{step['p_adjusted']:.2g}",
    }


def _gaps(points: pd.DataFrame, entries: Sequence[Entry]) -> list[dict[str, Any]]:
    """Where points failed or are missing: one row a run, target and status."""
    bad = points[points["status"] != "done"]
    rows = []
    for (run, target, status), group in bad.groupby(["run", "target", "status"], sort=False):
        entry = entries[int(str(run))]
        row = {"date": f"{entry.date:%Y-%m-%d}", "name": entry.path.name, "target": target, "status": status}
        rows.append(row | {"series": len(group)})
    return rows


def _environment() -> jinja2.Environment:
    # The style sheet is the report's.
    packages = [jinja2.PackageLoader("sipp_bench.history"), jinja2.PackageLoader("sipp_bench.report", "static")]
    environment = jinja2.Environment(
        loader=jinja2.ChoiceLoader(packages), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    environment.filters["data_uri"] = lambda content: Markup(
        f"data:image/png;base64,{base64.b64encode(content).decode()}"
    )
    return environment
