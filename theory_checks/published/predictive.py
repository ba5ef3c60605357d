"""Predictive power: do the bounds, and the errors that they bound, rank layers, methods and keep ratios rightly?

No claim says that they do: a bound is one-sided, accuracy is not mentioned in any, and after retraining nothing is
guaranteed at all. So this is a measurement without a verdict. What is correlated are ranks, since bounds and errors
span decades. Cells of one seed share their network and their points, hence each seed gives one correlation, shown with
the range over seeds; a p-value over all cells pooled would count the same network many times.
"""

import dataclasses
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from scipy import stats
from torch import Tensor, nn
from tqdm import tqdm

import sipp_bench as sb
from sipp_bench.bench.suite_tables import Method
from sipp_bench.compression.honoured import check_rows
from sipp_bench.errors import OptionError
from sipp_bench.machine.seeds import generator
from sipp_bench.measures.predictions import evaluate
from sipp_bench.network.blocks import median
from sipp_bench.report.style import INK, figure_style, log_ticks, method_styles, new_figure, png
from sipp_bench.zoo import data as zoo_data
from sipp_bench.zoo import training
from theory_checks.cases import oracle

VOID = "guarantee void after retraining"
FLOOR, CEILING = 1e-4, 1e4
"""Bounds and errors beyond these are drawn at them: a logarithmic axis has neither 0 nor infinity."""
LAYER_PAIRS = [("bound", error) for error in ("error_S", "error_fresh", "error_retrained")]
CELL_PAIRS = [(x, y) for y in ("accuracy", "accuracy_retrained") for x in ("bound", "error_fresh")]
CELL_PAIRS.append(("error_retrained", "accuracy_retrained"))
_OTHERS = ("sipp-det", "sipp-rand", "sipp-hybrid", "sipp-mixture")
METHODS = (("sipp-det", {}), *((name, {"weights": "downstream"}) for name in _OTHERS))


@dataclass(frozen=True, eq=False)
class Predictive:
    """What was measured. An error is a block's largest relative error |Zhat - Z| / Z over points, patches and signs.

    layers: one row a seed, method, keep and layer, medians over its blocks of `bound` (epsilon), `error_S`,
    `error_fresh` and `error_retrained` (on fresh points again). cells: one row a seed, method and keep, means of those
    over layers, with `accuracy`, `accuracy_retrained` and `accuracy_dense` on all validation images, from which the
    fresh points come. correlations: see `correlate`.
    """

    layers: pd.DataFrame
    cells: pd.DataFrame
    correlations: pd.DataFrame


def predictive_power(
    network: str = "lenet-300-100",
    data: str = "mnist-digits",
    seeds: Sequence[int] = (0, 1, 2),
    methods: Sequence[tuple[str, Mapping[str, Any]]] = METHODS,
    keeps: Sequence[float] = (0.5, 0.2, 0.1, 0.05, 0.02),
    retrain_epochs: int = 2,
    progress: bool = False,
) -> Predictive:
    """Prune the zoo's network in every way given, measure, retrain with masks held, measure again.

    Each seed is another split, training and draw. Retraining: the recipe of the network's training with
    `retrain_epochs` and a tenth of the learning rate. Raises OptionError as `training.trained_model` and `fit` do,
    and for a method without bounds.
    """
    layers, cells = [], []
    for name, options in methods:
        sb.check_options(name, dict(options))
    with tqdm(total=len(seeds) * len(methods) * len(keeps), unit="cell", disable=not progress) as bar:
        for seed in seeds:
            parts = zoo_data.load(data, seed)
            trained = training.trained_model(network, parts, seed)
            recipe = training.Recipe(**trained.recipe)
            recipe = dataclasses.replace(recipe, epochs=retrain_epochs, learning_rate=recipe.learning_rate / 10)
            for name, options in methods:
                label = Method(name=name, **options).label
                fitted = sb.fit(trained.model, parts.points.images, name, **options)
                for keep in keeps:
                    about = {"seed": seed, "method": label, "method_name": name, "keep": keep}
                    rows, accuracies = _measure(trained.model, fitted.prune(keep, seed), parts, recipe, seed)
                    layers.append(pd.DataFrame(about, rows.index).join(rows).reset_index())
                    cells.append(about | rows.mean().to_dict() | accuracies)
                    bar.update()
    tables = pd.concat(layers, ignore_index=True), pd.DataFrame(cells)
    return Predictive(*tables, correlations=correlate(*tables))


def correlate(layers: pd.DataFrame, cells: pd.DataFrame) -> pd.DataFrame:
    """Spearman's rho of bounds, errors and accuracy over everything, and within each keep ratio, method and layer.

    Over everything the keep ratio alone orders most; within one it is layers and methods that are told apart. Methods
    that come to the same masks count as often as they are there. One row a pair and scope: n, rows a seed; by_seed, one
    rho a seed, NaN where one side is constant; rho, lowest, highest: their median and range; retrained: guarantee void.
    """
    found = []
    for table, frame, pairs in (("layers", layers, LAYER_PAIRS), ("cells", cells, CELL_PAIRS)):
        scopes = {"all": frame}
        for column in frame.columns.intersection(["keep", "method", "layer"]):
            scopes |= {f"within {column} {value}": rows for value, rows in frame.groupby(column, sort=False)}
        for (x, y), (scope, rows) in ((pair, item) for pair in pairs for item in scopes.items()):
            by_seed = [
                float(stats.spearmanr(group[x], group[y]).statistic) if group[[x, y]].nunique().min() > 1 else np.nan
                for _, group in rows.groupby("seed")
            ]
            known = [rho for rho in by_seed if not np.isnan(rho)] or [np.nan]
            found.append(
                {"table": table, "x": x, "y": y, "scope": scope, "n": len(rows) // len(by_seed)}
                | {"rho": float(np.median(known)), "lowest": min(known), "highest": max(known)}
                | {"by_seed": tuple(by_seed), "retrained": y.endswith("retrained")}
            )
    return pd.DataFrame(found)


def picture(predictive: Predictive) -> bytes:
    """A PNG: bound against error, error against accuracy, and that after retraining; each mark a row of the tables."""
    layers, cells, rho = predictive.layers, predictive.cells, predictive.correlations
    with figure_style():
        panels = (figure := new_figure(13.2, 5.9)).subplots(1, 3)
        _scatter(panels[0], layers, "bound", "error_fresh", rho)
        _scatter(panels[1], cells, "error_fresh", "accuracy", rho)
        _scatter(panels[2], cells, "error_retrained", "accuracy_retrained", rho)
        titles = ("Layers: bound and error", "Networks: error and accuracy", "The same, after retraining")
        for axes, title in zip(panels, titles, strict=True):
            axes.set(title=title, xlabel="Error on fresh points, mean of layers", ylabel="Accuracy, validation images")
        panels[0].set(xlabel="Bound ε, median block", ylabel="Largest relative error on fresh points, median block")
        log_ticks(panels[0], "y", layers["error_fresh"].clip(FLOOR, CEILING))
        panels[0].autoscale(False)
        panels[0].plot([FLOOR, CEILING], [FLOOR, CEILING], color=INK, linewidth=1, zorder=1)
        panels[0].axvspan(1, 10 * CEILING, color="#000000", alpha=0.06, linewidth=0, zorder=0)
        panels[0].text(0.98, 0.02, "grey: vacuous bound", transform=panels[0].transAxes, fontsize=8, ha="right")
        box = {"facecolor": "white", "edgecolor": INK, "boxstyle": "round"}
        panels[2].text(0.5, 0.03, VOID, transform=panels[2].transAxes, ha="center", weight="bold", bbox=box)
        for axes in panels[1:]:
            axes.set(ylim=(0, 1.05), yticks=np.linspace(0, 1, 6))
            for dense in cells["accuracy_dense"].unique():
                axes.axhline(dense, color=INK, linewidth=0.6, linestyle="--", zorder=1)
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=9)
        return png(figure)


def _measure(
    model: nn.Module, pruned: sb.Pruned, parts: zoo_data.DataSet, recipe: training.Recipe, seed: int
) -> tuple[pd.DataFrame, dict[str, float]]:
    """Medians by layer, and accuracies. Retrains `pruned`, whose guarantee is void afterwards."""
    if pruned.guarantee is None:
        raise OptionError("Predictive power is asked of bounds: leave out methods without a guarantee.")
    train, validation = parts.train, parts.validation
    # As many as in S: the largest error over more points would not compare.
    rows = torch.randperm(len(validation), generator=generator(seed))[: len(parts.points)]
    fresh = validation.images[rows]
    on_s = pd.DataFrame(check_rows(model, pruned, parts.points.images, "S")[0]).set_index("layer")
    on_fresh = pd.DataFrame(check_rows(model, pruned, fresh, "fresh")[0]).set_index("layer")
    accuracies = {"accuracy_dense": _accuracy(model, validation), "accuracy": _accuracy(pruned.model, validation)}
    hold = pruned.apply_masks(lambda: None)  # masks, and declares the guarantee void
    training.train(pruned.model, train.images, train.labels, recipe, seed, after_step=hold)
    accuracies["accuracy_retrained"] = _accuracy(pruned.model, validation)
    after = retrained_errors(model, pruned.model, fresh, on_s.index)
    medians = {
        "bound": on_s["bound_median"],
        "error_S": on_s["error_median"],
        "error_fresh": on_fresh["error_median"],
        "error_retrained": pd.Series({name: median(errors) for name, errors in after.items()}),
    }
    return pd.DataFrame(medians).rename_axis("layer"), accuracies


def retrained_errors(model: nn.Module, other: nn.Module, points: Tensor, names: Iterable[str]) -> dict[str, Tensor]:
    """Largest relative error of each block on the dense network's inputs, (neurons, 2), whatever the signs.

    Retraining may flip a weight's sign, which then counts in the block of its new sign: Zhat is the sum over positive
    (negative) weights of the retrained row. Infinite where the dense block sums to 0 and the other does not.
    """
    layers = oracle.layer_inputs(model, points)
    weights = dict(other.named_parameters())
    result = {}
    for name in names:
        layer, inputs = layers[name.removesuffix(".weight")]
        chunks = [oracle.relative_errors(layer, x, weights[name].detach()).amax((0, 1, 4)) for x in inputs.split(64)]
        result[name] = torch.stack(chunks).amax(0)
    return result


def _accuracy(model: nn.Module, part: zoo_data.Part) -> float:
    return evaluate(model, part.images, part.labels)["accuracy"]


def _scatter(axes: Axes, frame: pd.DataFrame, x: str, y: str, correlations: pd.DataFrame) -> None:
    for label, style in method_styles(frame).items():
        rows = frame[frame["method"] == label]
        heights = rows[y].clip(FLOOR, CEILING)
        look = style.line_kwargs() | {"linestyle": "none", "markersize": 5, "alpha": 0.8}
        axes.plot(rows[x].clip(FLOOR, CEILING), heights, label=label, zorder=3, **look)
    log_ticks(axes, "x", frame[x].clip(FLOOR, CEILING))
    words = "\n".join(textwrap.wrap(_rank_words(correlations, x, y), 62))
    axes.text(0, -0.2, words, transform=axes.transAxes, va="top", fontsize=8, color=INK)


def _rank_words(correlations: pd.DataFrame, x: str, y: str) -> str:
    """Medians over seeds of rho: over everything, which the keep ratio alone makes large, and within each keep ratio;
    where y is the accuracy, of the bound as well.
    """
    said = []
    for what in dict.fromkeys([x, "bound"] if y.startswith("accuracy") else [x]):
        rows = correlations[(correlations["x"] == what) & (correlations["y"] == y)]
        rho = {str(row["scope"]): row["rho"] for row in rows.to_dict("records")}
        within = {scope.removeprefix("within keep "): value for scope, value in rho.items() if "keep" in scope}
        found = ", ".join(f"{keep}: {value:+.2f}" for keep, value in within.items())
        of = "bound and accuracy" if what != x else "both axes"
        said.append(f"Rank correlation of {of}: over all keep ratios {rho['all']:+.2f}, within one keep {found}.")
    return " ".join(said)
