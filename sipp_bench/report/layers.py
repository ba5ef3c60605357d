"""What is shown of the layers: what each method keeps of them, their bounds, and what stayed dense."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.colors import LogNorm
from matplotlib.ticker import FuncFormatter

from sipp_bench.report.collect import Collected, Target
from sipp_bench.report.figures import Picture
from sipp_bench.report.style import Drawn, drawn, figure_style, new_figure
from sipp_bench.report.summaries import in_order, layer_bounds, layer_keeps
from sipp_bench.report.tables import Table, by_keep, number, percent, share

ANNOTATED = 14
"""Up to so many layers have their numbers written into the maps, and their names below from left to right."""


def layers_picture(target: Target, name: str) -> Picture:
    """How much of each layer every method keeps at the middle keep ratio, as a map of methods by layers."""
    keep = target.middle_keep
    shares = in_order(layer_keeps(target.layers[target.layers["keep"] == keep]))
    # Rows and columns as the run lists them: pivot would sort them by name.
    table = shares.pivot(index="method", columns="layer", values="achieved_keep")
    table = 100 * table.loc[list(shares["method"].unique()), list(shares["layer"].unique())]
    sizes = shares.drop_duplicates("layer").set_index("layer")["weights"]
    labels = [f"{layer}\n{sizes[layer]:,}" if len(table.columns) <= ANNOTATED else layer for layer in table.columns]
    reach = float(np.clip(table.to_numpy() / (100 * keep), 2, 20).max())
    content = _map(table, labels, LogNorm(100 * keep / reach, 100 * keep * reach), "PuOr", ".3g")
    return Picture(
        name,
        content,
        caption=f"{target.label}: weights kept in each layer, in % of the layer's weights, where "
        f"{share(keep)} of all prunable weights were asked for; means over seeds. White is the requested "
        f"share, violet more, orange less (logarithmic, full colour at {reach:.2g} times as much).",
        alt=f"Heat map of the percentage of weights kept, {len(table)} methods by {len(table.columns)} "
        f"layers of {target.label}.",
    )


def layer_bounds_picture(target: Target, name: str) -> Picture | None:
    """The mean bound of each layer at the middle keep ratio, as a map of methods by layers; None without bounds."""
    keep = target.middle_keep
    summary = layer_bounds(target.layers[target.layers["keep"] == keep])
    if summary.empty:
        return None
    summary = in_order(summary)
    table = summary.pivot(index="method", columns="layer", values="epsilon_mean")
    table = table.loc[list(summary["method"].unique()), list(summary["layer"].unique())]
    content = _map(table, list(table.columns), LogNorm(0.01, 100), "PuOr_r", ".2g", "mean bound ε")
    return Picture(
        name,
        content,
        caption=f"{target.label}: the bound ε, mean over the blocks of each layer, where {share(keep)} of all prunable "
        "weights were asked for; means over seeds. White is 1, where a bound stops saying anything; violet is smaller.",
        alt=f"Heat map of mean bounds, {len(table)} methods by {len(table.columns)} layers of {target.label}.",
    )


def _map(table: pd.DataFrame, labels: Sequence[str], norm: LogNorm, colours: str, pattern: str, bar: str = "") -> Drawn:
    """A map of methods by layers, its numbers written into it where there are few layers; bar: what colours mean."""
    annotated = len(labels) <= ANNOTATED
    longest = max(len(line) for label in labels for line in label.split("\n"))
    column, below = (max(0.8, 0.1 * longest), 1.2) if annotated else (0.3, 0.7 + 0.085 * longest)
    left = 0.5 + 0.09 * max(len(str(method)) for method in table.index)
    with figure_style():
        figure = new_figure(left + column * len(labels) + (1.6 if bar else 0.3), below + 0.34 * len(table))
        axes = figure.subplots()
        # A logarithmic scale has no place for 0, which is written as it is.
        sns.heatmap(
            table.clip(lower=1e-6), ax=axes, annot=table if annotated else False, fmt=pattern, cmap=colours,
            norm=norm, linewidths=1, cbar=False,
        )  # fmt: skip
        if bar:
            scale = figure.colorbar(axes.collections[0], label=bar, format=FuncFormatter(lambda value, _: f"{value:g}"))
            scale.minorticks_off()
        axes.set_xticks(axes.get_xticks(), labels, rotation=0 if annotated else 90)
        axes.set_yticks(axes.get_yticks(), list(table.index), rotation=0)
        axes.set(xlabel="Layer, number of weights" if "\n" in labels[0] else "Layer", ylabel="")
        return drawn(figure)


def layer_table(target: Target) -> Table:
    """Requested and achieved keep by method, layer and requested keep of the network."""
    table = by_keep(
        in_order(layer_keeps(target.layers)),
        lambda row: f"{percent(row['requested_keep'])} / {percent(row['achieved_keep'])}",
        "Requested / achieved keep of each layer, in % of its weights, by requested keep of the network, "
        f"{target.label}; means over seeds.",
        {"method": "Method", "layer": "Layer", "weights": "Weights"},
    )
    rows = [[method, layer, f"{int(weights):,}", *texts] for method, layer, weights, *texts in table.rows]
    return replace(table, rows=rows, text=(0, 1))


def layer_bounds_table(target: Target) -> Table | None:
    """Mean bound and share of vacuous bounds by method, layer and keep; None without bounds."""
    summary = layer_bounds(target.layers)
    if summary.empty:
        return None
    return by_keep(
        in_order(summary),
        lambda row: f"{number(row['epsilon_mean'], '{:.2g}')} / {percent(row['vacuous'])}",
        f"Mean bound ε of each layer's blocks / share of vacuous bounds in %, by requested keep, {target.label}; means "
        "over seeds.",
        {"method": "Method", "layer": "Layer"},
    )


def skipped_table(report: Collected) -> Table | None:
    """Layers that stayed dense, with the reason and in how many cells; None when there are none."""
    skipped = report.skipped
    if skipped.empty:
        return None
    counts = skipped.groupby(["run", "network", "layer", "reason"], sort=False).size().reset_index(name="cells")
    rows = [[str(value) for value in row] for row in counts.itertuples(index=False)]
    return Table(
        "Layers that stayed dense, with the reason and the number of cells.",
        ["Run", "Network", "Layer", "Reason", "Cells"],
        rows,
        text=(0, 1, 2, 3),
    )


def architecture_table(target: Target) -> Table:
    """The prunable layers of a network with their numbers of weights, and its cost."""
    cells, layers = target.cells, target.layers.drop_duplicates("layer")
    rows = [[str(layer), f"{weights:,}"] for layer, weights in zip(layers["layer"], layers["weights"], strict=True)]
    checkpoints = ", ".join(
        f"seed {row.seed}: {row.checkpoint_sha256}" for row in cells.drop_duplicates("seed").itertuples()
    )
    return Table(
        f"{target.label}: prunable layers; {int(cells['weights'].iloc[0]):,} prunable weights, "
        f"{int(cells['dense_multiply_adds'].iloc[0]):,} multiply-adds for one input. Checkpoints, "
        f"SHA-256: {checkpoints}.",
        ["Layer", "Weights"],
        rows,
    )
