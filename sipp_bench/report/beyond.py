"""Beyond accuracy: whatever measures the cells hold, as figures and tables. What a run lacks is left out."""

import json
from dataclasses import dataclass

import numpy as np
import pandas as pd
import seaborn as sns

from sipp_bench.report.collect import METHOD, TARGET, Target
from sipp_bench.report.figures import COMPRESSION, Picture, drawable, handle, spread_sentence
from sipp_bench.report.style import INK, drawn, figure_style, log_ticks, method_styles, new_figure
from sipp_bench.report.summaries import in_order
from sipp_bench.report.tables import Table, by_keep, mean_and_spread, number, percent, share
from sipp_bench.store.records import floats


@dataclass(frozen=True)
class Measure:
    """How one column of the cells is shown: its values times `scale`, in `pattern`."""

    title: str
    scale: float = 1.0
    pattern: str = "{:.3g}"


MEASURES = {
    "worst_class_accuracy": Measure("Accuracy on the worst class (%)", 100, "{:.1f}"),
    "agreement": Measure("Predictions as the dense network's (%)", 100, "{:.1f}"),
    "flips": Measure("Flipped predictions", 1, "{:.0f}"),
    "top5_accuracy": Measure("Top-5 accuracy (%)", 100, "{:.1f}"),
    "calibration_error": Measure("Calibration error (points)", 100, "{:.2f}"),
    "loss_gap": Measure("Loss gap: largest R(a) − R(b) (nats)", 1, "{:.3f}"),
    "compression_ratio": Measure("Compression of all parameters (×)"),
    "theoretical_speedup": Measure("Theoretical speed-up (×)"),
    "corrupted_accuracy": Measure("Accuracy on corrupted images (%)", 100, "{:.1f}"),
    "excess_error": Measure("Excess error on corrupted images (points)", 100, "{:.1f}"),
    "split_percentile": Measure("Percentile among random splits", 1, "{:.0f}"),
    "file_bytes_dense": Measure("File size, dense (bytes)", 1, "{:,.0f}"),
    "file_bytes_csr": Measure("File size, CSR (bytes)", 1, "{:,.0f}"),
    "file_bytes_bitmap": Measure("File size, bitmap (bytes)", 1, "{:,.0f}"),
}
STAGES = {
    "pruned_accuracy": "Before retraining",
    "accuracy": "After retraining",
    "control_accuracy": "Control: random masks, same training",
}
ELSEWHERE = {
    # Shown on other pages or of no interest as a curve.
    *("seed", "keep", "accuracy", "loss", "validation_accuracy", "validation_loss", "weights", "requested", "kept"),
    *("achieved_keep", "multiply_adds", "num_points", "delta", "worst_class", "compression", "multiply_add_reduction"),
    *("pruned_accuracy", "pruned_loss", "control_accuracy", "control_loss"),
    # The same for all cells of a network: said with the agreement.
    *("twin_accuracy", "twin_agreement", "dense_validation_filled"),
}
CLASSES_SHOWN = 24
"""A map of more classes has unreadable columns: those that changed most are shown."""


def measures_of(cells: pd.DataFrame) -> dict[str, Measure]:
    """Column -> measure, of every numeric column of `cells` that has a value; known ones first.

    A column that this version does not know is a measure too, under its own name.
    """
    numeric = [str(name) for name in cells.select_dtypes("number").columns if cells[name].notna().any()]
    others = [
        name
        for name in numeric
        if name not in ELSEWHERE and name not in MEASURES and not name.startswith("dense_") and name != "id"
    ]
    known = {name: measure for name, measure in MEASURES.items() if name in numeric}
    return known | {name: Measure(name.replace("_", " ")) for name in others}


def measure_summary(cells: pd.DataFrame, column: str) -> pd.DataFrame:
    """Mean and sample standard deviation of a column over seeds, per target, method and keep."""
    groups = cells[cells[column].notna()].groupby([*TARGET, *METHOD, "keep"], sort=False)
    summary = groups.agg(
        mean=(column, "mean"),
        sd=(column, "std"),
        seeds=("seed", "nunique"),
        compression_mean=("compression", "mean"),
        achieved_keep_mean=("achieved_keep", "mean"),
    )
    return in_order(summary.reset_index(), "keep")


def measure_table(target: Target, column: str, measure: Measure) -> Table:
    """One measure by method and keep; with the dense network's value where it has one."""
    with np.errstate(invalid="ignore"):  # the spread of infinite loss gaps
        summary = measure_summary(target.cells, column)
    dense = f"dense_{column}"
    of_dense = ""
    if dense in target.cells and target.cells[dense].notna().any():
        value = target.cells.drop_duplicates("seed")[dense].mean()
        of_dense = f" The dense network: {number(measure.scale * value, measure.pattern)}."
    if column == "agreement" and "twin_agreement" in target.cells and target.cells["twin_agreement"].notna().any():
        of_dense += _against_the_twin(target.cells[target.cells["twin_agreement"].notna()])
    return by_keep(
        summary,
        lambda row: mean_and_spread(row["mean"], row["sd"], row["seeds"], measure.pattern, measure.scale),
        caption=f"{measure.title} by requested keep, {target.label}; mean ± sample standard deviation over seeds."
        + of_dense,
    )


def _against_the_twin(cells: pd.DataFrame) -> str:
    """What the control says of the agreements: how many methods and keep ratios are above it, seed by seed."""
    by_seed = cells.drop_duplicates("seed")["twin_agreement"]
    apart = (cells["agreement"] - cells["twin_agreement"]).groupby([cells["method"], cells["keep"]])
    above, below = int((apart.min() > 0).sum()), int((apart.max() < 0).sum())
    return (
        f" The control: a second dense network, trained with another seed, agrees on {percent(by_seed.mean())} % "
        f"({percent(by_seed.min())} to {percent(by_seed.max())} over {len(by_seed)} seeds). Of {apart.ngroups} methods "
        f"and keep ratios {above} agree more than the control in every seed (pruning changed less than training again "
        f"does), {below} less in every seed, {apart.ngroups - above - below} neither."
    )


def measures_picture(target: Target, name: str) -> Picture | None:
    """A panel a measure, over the compression ratio; None when the cells hold none."""
    measures = measures_of(target.cells)
    if not measures:
        return None
    panels = {}
    for column, measure in measures.items():
        with np.errstate(invalid="ignore"):
            panels[measure.title] = (measure_summary(target.cells, column), measure.scale, f"dense_{column}")
    return _panels(
        target,
        name,
        panels,
        caption=f"{target.label}: the measures stored with the cells, over the achieved compression ratio. ",
        alt=f"Line charts of {len(panels)} measures over compression ratio for {target.label}; the numbers are in the "
        "tables below.",
    )


def retraining_picture(target: Target, name: str) -> Picture | None:
    """Accuracy before and after retraining, and of the control; None for protocols that retrain nothing."""
    if not target.retrained:
        return None
    stages = {column: title for column, title in STAGES.items() if target.cells[column].notna().any()}
    panels = {
        f"{title}: test accuracy (%)": (measure_summary(target.cells, column), 100.0, "dense_accuracy")
        for column, title in stages.items()
    }
    return _panels(
        target,
        name,
        panels,
        caption=f"{target.label}: test accuracy before and after retraining. ",
        alt=f"Line charts of accuracy before and after retraining for {target.label}; the numbers are in the tables.",
        shared=True,
    )


def retraining_tables(target: Target) -> list[Table]:
    """Accuracy before and after retraining, and of the control, by method and keep; [] without retraining."""
    if not target.retrained:
        return []
    return [
        measure_table(target, column, Measure(f"{title}: test accuracy (%)", 100, "{:.1f}"))
        for column, title in STAGES.items()
        if target.cells[column].notna().any()
    ]


def _panels(
    target: Target,
    name: str,
    panels: dict[str, tuple[pd.DataFrame, float, str]],
    caption: str,
    alt: str,
    shared: bool = False,
) -> Picture:
    """Panels of two columns; of each its title, its summary, a scale, and the column of the dense value."""
    styles = method_styles(target.cells)
    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)
    legend = -(-len(styles) // 3)
    with figure_style():
        figure = new_figure(5.2 * columns, 3.1 * rows + 0.3 + 0.2 * legend)
        grid = figure.subplots(rows, columns, sharey=shared, squeeze=False)
        spreads = []
        for axes in grid.flat[len(panels) :]:
            axes.set_visible(False)
        for axes, (title, (summary, scale, dense)) in zip(grid.flat, panels.items(), strict=False):
            lines = drawable(summary)
            lines = lines[np.isfinite(lines["mean"])]
            spreads.append(lines)
            for label, line in lines.groupby("method", sort=False):
                look = styles[str(label)].line_kwargs() | {"markersize": 5, "linewidth": 1.2, "capsize": 2}
                bars = scale * line["sd"].fillna(0.0)
                axes.errorbar(line["compression_mean"], scale * line["mean"], yerr=bars, elinewidth=0.8, **look)
            if dense in target.cells and target.cells[dense].notna().any():
                value = scale * float(target.cells.drop_duplicates("seed")[dense].mean())
                axes.axhline(value, color=INK, linestyle=(0, (4, 3)), linewidth=1.0)
            axes.set(title=title, xlabel=COMPRESSION)
            log_ticks(axes, "x", lines["compression_mean"], "×")
        figure.legend(
            handles=[handle(label, look) for label, look in styles.items()],
            loc="outside lower center",
            ncols=3,
            fontsize=8.5,
            handlelength=3.2,
        )
        content = drawn(figure)
    all_lines = pd.concat(spreads)
    words = spread_sentence(all_lines) if not all_lines.empty else ""
    return Picture(name, content, caption=f"{caption}{words} A dashed line is the dense network.", alt=alt)


def class_changes(target: Target, keep: float) -> pd.DataFrame | None:
    """R(a), method by class: the mean over seeds of each class's loss change at `keep`; None where not stored."""
    cells = target.cells[target.cells["keep"] == keep]
    if "class_loss_changes" not in cells:
        return None
    cells = in_order(cells[cells["class_loss_changes"].notna()])
    if cells.empty:
        return None
    values = pd.DataFrame([floats(json.loads(text)) for text in cells["class_loss_changes"]], index=cells["method"])
    return values.groupby(level=0, sort=False).mean()


def classes_picture(target: Target, name: str, classes: list[str]) -> Picture | None:
    """The loss change of every class at the middle keep ratio, as a map of methods by classes."""
    keep = target.middle_keep
    table = class_changes(target, keep)
    if table is None:
        return None
    finite = table.replace([np.inf, -np.inf], np.nan)
    by_change = finite.abs().max().fillna(0).sort_values(ascending=False, kind="stable")
    shown = sorted(by_change.index[:CLASSES_SHOWN])
    finite = finite[shown]
    reach = float(np.nanmax([np.nanmax(np.abs(finite.to_numpy()), initial=0.0), 1e-9]))
    annotated = len(shown) <= 12
    with figure_style():
        figure = new_figure(3.4 + (0.75 if annotated else 0.32) * len(shown), 1.5 + 0.32 * len(finite))
        axes = figure.subplots()
        sns.heatmap(
            finite, ax=axes, cmap="PuOr_r", vmin=-reach, vmax=reach, annot=annotated, fmt=".2g",
            annot_kws={"fontsize": 8}, linewidths=1, cbar_kws={"label": "change in loss, R(a) (nats)"},
        )  # fmt: skip
        axes.set_xticks(axes.get_xticks(), [classes[index] for index in shown], rotation=45, ha="right")
        axes.set_yticks(axes.get_yticks(), list(finite.index), rotation=0)
        axes.set(xlabel="", ylabel="")
        content = drawn(figure)
    some = f" Of {table.shape[1]} classes the {len(shown)} that changed most." if len(shown) < table.shape[1] else ""
    return Picture(
        name,
        content,
        caption=f"{target.label}: how much the mean test loss of each class changed from the dense network's to the "
        f"pruned one's, R(a), where {share(keep)} of the weights were asked for; means over seeds. Orange: worse, "
        f"violet: better.{some}",
        alt=f"Heat map of the change in loss, {len(finite)} methods by {len(shown)} classes of {target.label}.",
    )


def classes_table(target: Target, classes: list[str]) -> Table | None:
    """The accuracy of every class by method at the middle keep ratio; the worst class of each method stands out."""
    keep = target.middle_keep
    cells = target.cells[target.cells["keep"] == keep]
    if "class_accuracies" not in cells or cells["class_accuracies"].isna().all():
        return None
    cells = in_order(cells[cells["class_accuracies"].notna()])
    values = pd.DataFrame([floats(json.loads(text)) for text in cells["class_accuracies"]], index=cells["method"])
    table = values.groupby(level=0, sort=False).mean()
    rows = [[str(label), *(number(100 * value, "{:.1f}") for value in row)] for label, row in table.iterrows()]
    worst = {
        (position, int(np.nanargmin(row.to_numpy())) + 1)
        for position, (_, row) in enumerate(table.iterrows())
        if row.notna().any()
    }
    return Table(
        f"Test accuracy on each class (%) at keep {share(keep)}, {target.label}; means over seeds. Bold: the worst.",
        ["Method", *(classes[index] for index in range(table.shape[1]))],
        rows,
        strong=worst,
    )
