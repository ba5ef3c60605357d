"""What is shown of the layers: what each method keeps of them, their bounds, and what stayed dense."""

from dataclasses import replace

import numpy as np
import seaborn as sns
from matplotlib.colors import LogNorm

from sipp_bench.report.collect import Collected, Target
from sipp_bench.report.figures import Picture
from sipp_bench.report.style import drawn, figure_style, new_figure
from sipp_bench.report.summaries import in_order, layer_bounds, layer_keeps
from sipp_bench.report.tables import Table, by_keep, number, percent, share


def layers_picture(target: Target, name: str) -> Picture:
    """How much of each layer every method keeps at the middle keep ratio, as a map of methods by layers."""
    keep = target.middle_keep
    shares = in_order(layer_keeps(target.layers[target.layers["keep"] == keep]))
    # Rows and columns as the run lists them: pivot would sort them by name.
    table = shares.pivot(index="method", columns="layer", values="achieved_keep")
    table = 100 * table.loc[list(shares["method"].unique()), list(shares["layer"].unique())]
    sizes = shares.drop_duplicates("layer").set_index("layer")["weights"]
    annotated = len(table.columns) <= 14
    labels = [f"{layer}\n{sizes[layer]:,}" if annotated else str(layer) for layer in table.columns]
    column = max(0.8, 0.1 * max(len(str(layer)) for layer in table.columns)) if annotated else 0.3
    reach = float(np.clip(table.to_numpy() / (100 * keep), 2, 20).max())
    with figure_style():
        figure = new_figure(2.6 + column * len(table.columns) + 1.2, 1.2 + 0.34 * len(table))
        axes = figure.subplots()
        sns.heatmap(
            table.clip(lower=1e-6),
            ax=axes,
            annot=table if annotated else False,
            fmt=".3g",
            cmap="PuOr",
            norm=LogNorm(100 * keep / reach, 100 * keep * reach),
            linewidths=1,
            cbar=False,
        )
        axes.set_xticks(axes.get_xticks(), labels, rotation=0 if annotated else 90)
        axes.set_yticks(axes.get_yticks(), list(table.index), rotation=0)
        axes.set(xlabel="Layer, number of weights" if annotated else "Layer", ylabel="")
        content = drawn(figure)
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
    annotated = len(table.columns) <= 14
    column = max(0.8, 0.1 * max(len(str(layer)) for layer in table.columns)) if annotated else 0.3
    with figure_style():
        figure = new_figure(2.6 + column * len(table.columns) + 2.0, 1.4 + 0.34 * len(table))
        axes = figure.subplots()
        sns.heatmap(
            table.clip(lower=1e-3), ax=axes, annot=table if annotated else False, fmt=".2g", cmap="PuOr_r",
            norm=LogNorm(0.01, 100), linewidths=1, cbar_kws={"label": "mean bound ε"},
        )  # fmt: skip
        axes.set_xticks(axes.get_xticks(), list(table.columns), rotation=0 if annotated else 90)
        axes.set_yticks(axes.get_yticks(), list(table.index), rotation=0)
        axes.set(xlabel="Layer", ylabel="")
        content = drawn(figure)
    return Picture(
        name,
        content,
        caption=f"{target.label}: the bound ε, mean over the blocks of each layer, where {share(keep)} of all prunable "
        "weights were asked for; means over seeds. White is 1, where a bound stops saying anything; violet is smaller.",
        alt=f"Heat map of mean bounds, {len(table)} methods by {len(table.columns)} layers of {target.label}.",
    )


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
