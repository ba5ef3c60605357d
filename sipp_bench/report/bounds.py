"""What the bounds say, and whether they hold: counts of blocks by the size of their bound, never pooled over claims.

A bound epsilon >= 1 says nothing: dropping the whole block would honour it. So errors above their bound are counted
among the bounds below 1; those that say nothing are nearly never exceeded, and would make any rate look small.
"""

import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import torch

from sipp_bench.compression.quantities import BlockError
from sipp_bench.report.collect import CELL_KEYS, METHOD, TARGET, Collected, Target
from sipp_bench.report.figures import Picture
from sipp_bench.report.style import drawn, figure_style, method_order, new_figure
from sipp_bench.report.summaries import in_order
from sipp_bench.report.tables import NOTHING, Table, by_keep, number, percent, share

EDGES = (0.1, 0.5, 1.0)
"""The distribution of bounds is shown by the shares below these."""
BELOW = {edge: f"below_{edge:g}" for edge in EDGES}
SHADES = ("#08519c", "#4292c6", "#c6dbef", "#d9d9d9")
"""Of bounds below 0.1, from there to 0.5, from there to 1, and of those that say nothing."""
VERDICTS = ["violated", "useless", "not falsified", "holds", "measured"]
LAST_STEP = (
    "A bound of a cascade is about its last step: from the network retrained after the step before to what was pruned "
    "from it. No bound speaks of the whole way from the dense network."
)


def bound_counts(report: Collected) -> pd.DataFrame:
    """One row a cell with bounds and claim, over its layers: blocks, those with a bound below each of `EDGES`, and of
    those below 1 how many errors exceed their bound beyond rounding, on S and on fresh points.
    """
    layers = report.layers.set_index(["run", "id", "layer"])["weights"]
    claims = report.checks.drop_duplicates(["run", "id"])
    rows = []
    for cell in claims[[*CELL_KEYS, "id", "claim"]].to_dict("records"):
        found = {
            layer: _counts(arrays, int(layers[cell["run"], cell["id"], layer]))
            for layer, arrays in report.blocks(cell["run"], cell["id"]).items()
        }
        if found:
            rows.append(cell | pd.DataFrame(found.values()).sum().to_dict())
    names = ["blocks", *BELOW.values(), "exceeding_S", "exceeding_fresh"]
    return pd.DataFrame(rows, columns=[*CELL_KEYS, "id", "claim", *names])


def _counts(arrays: Mapping[str, Any], weights: int) -> dict[str, int]:
    """Of the blocks of one layer. weights: of the layer, shared equally by its neurons."""
    epsilon = np.asarray(arrays["epsilon"], dtype=np.float64)
    drawn = torch.from_numpy(np.asarray(arrays.get("draws", np.zeros_like(epsilon))) > 0)
    limit = epsilon + BlockError.room(torch.from_numpy(epsilon), drawn, weights // len(epsilon)).numpy()
    says = epsilon < 1
    return (
        {"blocks": epsilon.size}
        | {name: int((epsilon < edge).sum()) for edge, name in BELOW.items()}
        | {
            f"exceeding_{on}": int((says & (np.asarray(arrays[f"error_{on}"]) > limit)).sum())
            for on in ("S", "fresh")
            if f"error_{on}" in arrays
        }
    )


def distribution(counts: pd.DataFrame) -> pd.DataFrame:
    """Per target, method, claim and keep: the counts of `bound_counts`, summed over seeds and layers."""
    names = ["blocks", *BELOW.values(), "exceeding_S", "exceeding_fresh"]
    summed = counts.groupby([*TARGET, *METHOD, "claim", "keep"], sort=False)[names].sum().reset_index()
    return in_order(summed, "keep")


def distribution_table(target: Target, counts: pd.DataFrame) -> Table:
    """By method, claim and keep: shares of bounds below each edge, and of those that say nothing, in %."""

    def text(row: "pd.Series[Any]") -> str:
        shares = [row[name] / row["blocks"] for name in BELOW.values()]
        return " / ".join(percent(value) for value in [*shares, 1 - shares[-1]])

    return by_keep(
        distribution(counts),
        text,
        f"The bounds ε on S, {target.label}: shares of blocks, in %, with ε < 0.1 / < 0.5 / < 1 / ≥ 1, by requested "
        f"keep; over layers and seeds. At 1 or more a bound says nothing.{_last_step(target)}",
        {"method": "Method", "claim": "Claim"},
    )


def distribution_picture(target: Target, counts: pd.DataFrame, name: str) -> Picture:
    """Bars by keep ratio, one panel a method: how the bounds are distributed."""
    found = distribution(counts)
    labels = list(method_order(found))
    columns = min(4, len(labels))
    rows = -(-len(labels) // columns)
    with figure_style():
        figure = new_figure(0.8 + 2.6 * columns, 0.8 + 1.9 * rows)
        grid = figure.subplots(rows, columns, sharey=True, squeeze=False)
        for axes in grid.flat[len(labels) :]:
            axes.set_visible(False)
        for axes, label in zip(grid.flat, labels, strict=False):
            of_method = found[found["method"] == label]
            shares = [of_method[column] / of_method["blocks"] for column in BELOW.values()]
            parts = np.diff(np.vstack([np.zeros(len(of_method)), *shares, np.ones(len(of_method))]), axis=0)
            ends = ["0", *(f"{edge:g}" for edge in EDGES)]
            names = [f"{low} ≤ ε < {high}" for low, high in itertools.pairwise(ends)] + ["ε ≥ 1: says nothing"]
            low = np.zeros(len(of_method))
            for part, colour, what in zip(parts, SHADES, names, strict=True):
                axes.bar(
                    [share(keep) for keep in of_method["keep"]], 100 * part, bottom=100 * low, color=colour, label=what
                )
                low = low + part
            axes.set_title(f"{label} ({', '.join(of_method['claim'].unique())})")
            axes.tick_params(labelsize=8)
            axes.set_ylim(0, 100)
        for axes in grid[:, 0]:
            axes.set_ylabel("Blocks (%)")
        handles, names = grid.flat[0].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside upper left", ncols=4, fontsize=9)
        content = drawn(figure)
    return Picture(
        name,
        content,
        caption=f"{target.label}: how large the bounds on S are, by requested keep; all blocks of all layers and "
        f"seeds. The numbers are in the table below.{_last_step(target)}",
        alt=f"Stacked bars of the sizes of bounds by keep ratio for {len(labels)} methods of {target.label}.",
    )


def bound_sentence(target: Target, counts: pd.DataFrame) -> str | None:
    """What the bounds of one target say, claim by claim; None where there are none."""
    if counts.empty:
        return None
    claims = sorted(counts["claim"].unique(), key=lambda claim: (len(claim), claim))
    parts = [_of_claim(claim, counts[counts["claim"] == claim], target) for claim in claims]
    return f"Bounds of {target.label} (protocol {target.protocol}): {'; '.join(parts)}.{_last_step(target)}"


def _of_claim(claim: str, counts: pd.DataFrame, target: Target) -> str:
    by_keep = counts[counts["keep"] < 1].groupby("keep")[["blocks", "below_1"]].sum().sort_index(ascending=False)
    nothing = 1 - by_keep["below_1"] / by_keep["blocks"]
    ends = [f"{percent(nothing[keep])}% at keep {share(keep)}" for keep in dict.fromkeys(nothing.index[[0, -1]])]
    of_claim = target.checks[(target.checks["claim"] == claim) & (target.checks["on"] == "S")]
    violated = int((of_claim["verdict"] == "violated").sum())
    telling, on_s = int(counts["below_1"].sum()), int(counts["exceeding_S"].sum())
    noun = "violation" if violated == 1 else "violations"
    allowed = " (drawn blocks, to which the claim allows it with probability δ)" if on_s and not violated else ""
    return (
        f"{claim}: {' and '.join(ends)} of bounds say nothing (ε ≥ 1); of the {telling:,} that say something "
        f"{among(on_s, telling)} are exceeded on S{allowed}, {violated:,} {noun}, and "
        f"{among(int(counts['exceeding_fresh'].sum()), telling)} on fresh points, of which no claim speaks here"
    )


def among(count: int, total: int) -> str:
    """ "898 (4.1%)", or a plain 0."""
    return f"{count:,} ({number(100 * count / total, '{:.2g}')}%)" if count else "0"


def _last_step(target: Target) -> str:
    return f" {LAST_STEP}" if target.protocol == "cascade" else ""


def check_summary(checks: pd.DataFrame, counts: pd.DataFrame) -> pd.DataFrame:
    """Per target, method, claim and kind of points: blocks, telling ones, excesses among them, and counts of verdicts.

    A count of verdicts is the number of (cell, layer) rows that got it; verdicts are never merged into one.
    """
    groups = checks.groupby([*TARGET, *METHOD, "claim", "on"], sort=False)
    summary = groups.agg(
        cells=("id", "nunique"),
        blocks=("blocks", "sum"),
        vacuous=("vacuous", "sum"),
        ratio_max=("ratio_max", "max"),
        exceeding_rate_max=("exceeding_rate", "max"),
        points_min=("points", "min"),
        points_max=("points", "max"),
    ).reset_index()
    summary["telling"] = summary["blocks"] - summary["vacuous"]
    summary["vacuous_share"] = summary["vacuous"] / summary["blocks"].where(summary["blocks"] > 0)
    excess = counts.groupby([*TARGET, *METHOD, "claim"])[["exceeding_S", "exceeding_fresh"]].sum()
    keys = summary[[*TARGET, *METHOD, "claim"]].itertuples(index=False, name=None)
    summary["exceeding"] = [excess[f"exceeding_{on}"].get(key) for key, on in zip(keys, summary["on"], strict=True)]
    known = [verdict for verdict in VERDICTS if verdict in set(checks["verdict"])]
    others = sorted(set(checks["verdict"].dropna()) - set(VERDICTS))
    for verdict in [*known, *others]:
        found = (checks["verdict"] == verdict).groupby([checks[key] for key in groups.keys], sort=False).sum()
        summary[f"verdict: {verdict}"] = found.to_numpy()
    return in_order(summary, "claim", "on")


def check_table(target: Target, counts: pd.DataFrame) -> Table:
    summary = check_summary(target.checks, counts)
    deltas = target.cells.groupby("method")["delta"].max()
    verdicts = [column for column in summary.columns if column.startswith("verdict: ")]
    rows = []
    for row in summary.to_dict("records"):
        given = [f"{column.removeprefix('verdict: ')} {row[column]:,}" for column in verdicts if row[column]]
        points = f"{row['points_min']:,}" if row["points_min"] == row["points_max"] else "varies"
        delta = deltas[row["method"]]
        exceeding = NOTHING if pd.isna(row["exceeding"]) else among(int(row["exceeding"]), row["telling"])
        found = [percent(row["vacuous_share"]), f"{row['telling']:,}", number(row["ratio_max"], "{:.3g}"), exceeding]
        # Without draws there is no rate that δ could be compared with.
        rates = [number(row["exceeding_rate_max"], "{:.2g}"), f"{delta:g}"] if delta > 0 else [NOTHING, NOTHING]
        names = [row["method"], row["claim"], row["on"]]
        rows.append([*names, points, f"{row['blocks']:,}", *found, *rates, ", ".join(given)])
    heads = ["Method", "Claim", "On", "Points", "Blocks", "ε ≥ 1 (%)", "ε < 1", "Max. error / bound", "Exceeding"]
    return Table(
        f"Checks by method and claim, {target.label}: blocks with a bound over all cells and layers, the share whose "
        "bound says nothing, how many say something, and of those the largest measured error / bound and how many "
        "errors exceed the bound beyond rounding; how many (cell, layer) rows got each verdict. For methods that draw: "
        "the largest rate at which the drawn blocks of one (cell, layer) exceeded their bound, over points, patches "
        f"and signs, beside δ.{_last_step(target)}",
        [*heads, "Max. rate", "δ", "Verdicts"],
        rows,
        text=(0, 1, 2, 11),
    )
