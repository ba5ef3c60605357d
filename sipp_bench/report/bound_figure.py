"""Measured error against bound, block by block: does the bound hold, and does it say anything?"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from numpy.typing import NDArray

from sipp_bench.report.collect import Target
from sipp_bench.report.figures import Picture
from sipp_bench.report.style import INK, drawn, figure_style, log_ticks, method_order, new_figure

SHOWN = 1500
"""At most this many blocks a panel and kind of points; a plot of more is a blot."""
ALWAYS = 100
"""The blocks with the largest error / bound are always among those shown: the worst cannot hide."""
FLOOR = 1e-4
"""Errors and bounds below this are drawn at it: a logarithmic axis has no zero."""

KINDS = {
    # where the errors were measured: (name, colour, colour where the bound is vacuous)
    "S": ("on S", "#0072B2", "#9cc4de"),
    "fresh": ("on fresh points", "#D55E00", "#efbf9b"),
}

Blocks = Mapping[str, NDArray[np.float64]]
"""Of many blocks: `epsilon` (the bound), `error_S` and `error_fresh`, each (blocks,)."""
BlocksOf = Callable[[str], Mapping[str, Mapping[str, Any]]]
"""The arrays of a cell by layer: `RunLike.blocks`."""


def bound_picture(target: Target, blocks_of: BlocksOf, name: str) -> Picture | None:
    """One panel a method with a bound; None when no cell of the target has one."""
    gathered = gather_blocks(target, blocks_of)
    if not gathered:
        return None
    columns = min(3, len(gathered))
    rows = -(-len(gathered) // columns)
    with figure_style():
        figure = new_figure(0.6 + 3.6 * columns, 0.9 + 3.3 * rows)
        panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
        bounds = np.concatenate([np.maximum(blocks["epsilon"], FLOOR) for blocks in gathered.values()])
        errors = np.concatenate(
            [np.maximum(blocks[f"error_{on}"], FLOOR) for blocks in gathered.values() for on in KINDS]
        )
        for axes in panels.flat[len(gathered) :]:
            axes.set_visible(False)
        for axes, (label, blocks) in zip(panels.flat, gathered.items(), strict=False):
            axes.set_title(label)
            _draw_panel(axes, blocks)
            log_ticks(axes, "x", [min(bounds), max(2.0, max(bounds))])
            log_ticks(axes, "y", [min(errors), max(2.0, max(errors))])
            _draw_references(axes)
        for axes in panels.flat[max(0, len(gathered) - columns) : len(gathered)]:
            axes.set_xlabel("Bound ε (log scale)")
            axes.tick_params(labelbottom=True)
        for axes in panels.flat:
            axes.tick_params(labelsize=8)
        for axes in panels[:, 0]:
            axes.set_ylabel("Measured relative error\n(log scale)")
        handles, _ = panels.flat[0].get_legend_handles_labels()
        # Fresh points are drawn first, to lie below; the legend starts with S.
        figure.legend(handles=handles[::-1], loc="outside upper left", ncols=4, fontsize=9, markerscale=2.2)
        content = drawn(figure)
    return Picture(name, content, caption=_caption(target, gathered), alt=_alt(target, gathered))


def gather_blocks(target: Target, blocks_of: BlocksOf) -> dict[str, Blocks]:
    """Method label -> the arrays of all its checked cells and layers, end to end, in the report's order."""
    gathered: dict[str, Blocks] = {}
    cells = target.cells[target.cells["id"].isin(set(target.checks.get("id", pd.Series(dtype=str))))]
    for label in method_order(cells):
        arrays = [layer for cell in sorted(cells[cells["method"] == label]["id"]) for layer in blocks_of(cell).values()]
        if arrays:
            gathered[label] = {
                key: np.concatenate([np.asarray(layer[key], dtype=np.float64).ravel() for layer in arrays])
                for key in ("epsilon", "error_S", "error_fresh")
            }
    return gathered


def _draw_panel(axes: Axes, blocks: Blocks) -> None:
    for on, (name, colour, pale) in reversed(KINDS.items()):
        bound, error = blocks["epsilon"], blocks[f"error_{on}"]
        shown = _choose(bound, error)
        bound, error = np.maximum(bound[shown], FLOOR), np.maximum(error[shown], FLOOR)
        vacuous = bound >= 1
        axes.scatter(
            bound[vacuous],
            error[vacuous],
            s=9,
            marker="x",
            linewidths=0.7,
            color=pale,
            label=f"{name}, vacuous bound",
            rasterized=True,
        )
        axes.scatter(
            bound[~vacuous],
            error[~vacuous],
            s=7,
            alpha=0.55,
            linewidths=0,
            color=colour,
            label=name,
            rasterized=True,  # thousands of marks as vectors are megabytes
        )


def _choose(bound: NDArray[np.float64], error: NDArray[np.float64]) -> NDArray[np.int64]:
    """Which blocks to draw: the worst always, a seeded sample of the rest, none that was left as it is."""
    pruned = np.flatnonzero(np.isfinite(error) & ((bound > 0) | (error > 0)))
    if len(pruned) <= SHOWN:
        return pruned
    ratio = error[pruned] / np.maximum(bound[pruned], FLOOR)
    by_ratio = pruned[np.argsort(-ratio, kind="stable")]
    rest = np.random.default_rng(0).permutation(by_ratio[ALWAYS:])[: SHOWN - ALWAYS]
    return np.concatenate([by_ratio[:ALWAYS], rest])


def _draw_references(axes: Axes) -> None:
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    ends = [min(left, bottom), max(right, top)]
    axes.plot(ends, ends, color=INK, linewidth=1.2, zorder=4)
    axes.axvspan(1, right, color="#000000", alpha=0.06, linewidth=0, zorder=0)
    axes.axvline(1, color=INK, linewidth=0.9, linestyle="--", zorder=4)
    axes.text(1.1, bottom * 1.3, "vacuous", fontsize=8, color=INK, ha="left", va="bottom")
    axes.set(xlim=(left, right), ylim=(bottom, top))


def _caption(target: Target, gathered: Mapping[str, Blocks]) -> str:
    total = sum(len(blocks["epsilon"]) for blocks in gathered.values())
    untouched = sum(
        int(((blocks["epsilon"] == 0) & (blocks["error_S"] == 0) & (blocks["error_fresh"] == 0)).sum())
        for blocks in gathered.values()
    )
    # The largest over the cells: one that keeps everything draws nothing and has δ = 0. NaN where nothing is claimed.
    deltas = target.cells.groupby("method")["delta"].max()
    sampling = {label: float(deltas[label]) for label in gathered if deltas[label] > 0}
    values = sorted(set(sampling.values()))
    delta = (
        f" The bounds of {', '.join(sampling)} are allowed to fail with probability at most δ = "
        f"{', '.join(f'{value:g}' for value in values)} for each block, point, patch and sign."
        if values
        else ""
    )
    return (
        f"{target.label}: largest measured relative error against its bound, one mark a block (neuron and "
        f"sign) of each cell with a bound, {total:,} in all; {untouched:,} that nothing was pruned from are "
        "left out. Above the diagonal the error exceeds the bound. At and right of ε = 1 (grey, crosses) "
        f"the bound is vacuous: dropping the whole block would honour it too.{delta} Of more than {SHOWN:,} "
        f"blocks in a panel a random sample is drawn, the {ALWAYS} with the largest error / bound always "
        f"among them; values below {FLOOR:g} are drawn at {FLOOR:g}. Marks at the left edge are mostly "
        "blocks of bound 0: only weights that no point of S uses were dropped."
    )


def _alt(target: Target, gathered: Mapping[str, Blocks]) -> str:
    return (
        f"Scatter plots of measured error against bound for {len(gathered)} methods of {target.label}, with "
        "the diagonal and the vacuous region marked; the table below counts vacuous and exceeded bounds."
    )
