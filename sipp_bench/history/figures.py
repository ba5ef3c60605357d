"""Figures of values over runs: a panel a keep ratio or benchmark, a line a method, marks for steps and for gaps."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from sipp_bench.history.points import Entry
from sipp_bench.report.style import INK, Drawn, MethodStyle, drawn, figure_style, method_styles, new_figure

ACROSS = 3
"""Panels beside each other."""
_LABELS = 12
"""So many runs are named on an axis, evenly; the table of runs has them all."""
_BENCHMARK = MethodStyle("#0072B2", "o", "-", filled=True)
_BAD = "#b00020"


@dataclass(frozen=True)
class Trend:
    """A figure in both forms. `name` is fit for a file name and unique on the page."""

    name: str
    title: str
    alt: str
    drawn: Drawn


def trend(name: str, title: str, points: pd.DataFrame, steps: pd.DataFrame, entries: Sequence[Entry]) -> Trend:
    """The figure of `points`, all of one target, `what` and unit; `steps`: their rows after which a step begins."""
    benchmark = points["what"].iloc[0] == "benchmark"
    by = "method" if benchmark else "keep"
    panels = list(points.groupby(by, sort=benchmark, dropna=False))
    if not benchmark:
        panels.sort(key=lambda panel: -panel[1]["keep"].iloc[0])
    styles = dict.fromkeys(points["method"], _BENCHMARK) if benchmark else method_styles(points)
    across = min(ACROSS, len(panels))
    down = -(-len(panels) // across)
    with figure_style():
        figure = new_figure(2.2 + 3.7 * across, 2.2 + 2.8 * down)
        axes = figure.subplots(down, across, squeeze=False, sharex=True).ravel()
        for axis, (key, panel) in zip(axes, panels, strict=False):
            shown = steps[steps[by].isna() if pd.isna(key) else steps[by] == key]
            _panel(
                axis,
                panel,
                shown,
                styles if not benchmark else dict.fromkeys(panel["method"], _BENCHMARK),
                len(entries),
            )
            axis.set_title(
                _short(str(key)) if benchmark else "" if pd.isna(key) else f"keep {panel['keep'].iloc[0]:.0%}"
            )
        for axis in axes[len(panels) :]:
            axis.remove()
        for axis in axes[max(0, len(panels) - across) : len(panels)]:
            _label_runs(axis, entries)
        figure.supylabel(_unit(points), fontsize=10)
        _legend(figure, styles, benchmark, columns=2 * across)
        return Trend(name, title, _alt(title, points, steps, entries), drawn(figure))


def _panel(axis: Axes, points: pd.DataFrame, steps: pd.DataFrame, styles: dict[str, MethodStyle], runs: int) -> None:
    for method, style in styles.items():
        line = points[points["method"] == method]
        done = line[line["status"] == "done"]
        # Only points that compare are joined; where a run is missing in between, so is the line.
        for _, alike in done.groupby("alike", sort=False):
            values = alike.set_index("run")["value"].reindex(range(runs))
            gaps = set(line["run"][line["status"] != "done"])
            joined = values.drop([run for run in values.index if values.isna()[run] and run not in gaps])
            axis.plot(joined.index, joined.to_numpy(), **(style.line_kwargs() | {"markersize": 4}))
        moved = steps[steps["method"] == method]
        axis.plot(
            moved["run"], moved["value"], linestyle="none", marker="o", markersize=11,
            markerfacecolor="none", markeredgecolor=INK, markeredgewidth=1.6,
        )  # fmt: skip
    bottom = axis.get_xaxis_transform()
    for status, look in _BAD_MARKS.items():
        runs_with = sorted(set(points["run"][points["status"] == status]))
        if runs_with:  # without, it has a place all the same, which the layout leaves room for
            axis.plot(runs_with, [0.03] * len(runs_with), linestyle="none", transform=bottom, clip_on=False, **look)
    axis.set_xlim(-0.5, runs - 0.5)


_BAD_MARKS: dict[str, dict[str, Any]] = {
    "failed": {"marker": "x", "color": _BAD, "markeredgewidth": 1.8, "markersize": 6},
    "missing": {"marker": "|", "color": "#7a7a7a", "markeredgewidth": 1.8, "markersize": 7},
}


def _label_runs(axis: Axes, entries: Sequence[Entry]) -> None:
    every = -(-len(entries) // _LABELS)
    places = range(0, len(entries), every)
    axis.set_xticks(list(places), [entries[place].label for place in places], fontsize=6.5)
    axis.tick_params(axis="x", labelbottom=True, labelrotation=90)


def _legend(figure: Figure, styles: dict[str, MethodStyle], benchmark: bool, columns: int) -> None:
    lines = [] if benchmark else [Line2D([], [], label=name, **style.line_kwargs()) for name, style in styles.items()]
    lines.append(Line2D([], [], linestyle="none", marker="o", markersize=10, markerfacecolor="none", label="step",
                        markeredgecolor=INK))  # fmt: skip
    lines += [Line2D([], [], linestyle="none", label=status, **look) for status, look in _BAD_MARKS.items()]
    figure.legend(handles=lines, loc="outside lower center", ncols=columns, fontsize=7.5)


def _unit(points: pd.DataFrame) -> str:
    if points["what"].iloc[0] == "accuracy":
        return "test accuracy, mean of the seeds"
    return "seconds" if points["unit"].iloc[0] == "s" else "time / reference operation of the same run"


def _alt(title: str, points: pd.DataFrame, steps: pd.DataFrame, entries: Sequence[Entry]) -> str:
    counts = points["status"].value_counts()
    gaps = ", ".join(f"{counts[status]} {status}" for status in _BAD_MARKS if status in counts)
    return f"{title} over {len(entries)} runs: {len(steps)} steps marked{', ' + gaps + ' points' if gaps else ''}."


def _short(name: str) -> str:
    return name if len(name) <= 42 else f"...{name[-40:]}"
