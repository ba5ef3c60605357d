"""The figures of one target, one function each: a PNG with its caption and its text alternative."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter

from sipp_bench.report.collect import Target
from sipp_bench.report.style import (
    DPI,
    FAINT,
    INK,
    Drawn,
    MethodStyle,
    drawn,
    figure_style,
    is_sipp,
    log_ticks,
    method_styles,
    new_figure,
)
from sipp_bench.report.summaries import (
    accuracy_summary,
    difference_summary,
    reference_label,
    time_samples,
    time_summary,
)

COMPRESSION = "Compression ratio, 1 / achieved keep (log scale)"
REFERENCE_GREY = "#7a7a7a"


@dataclass(frozen=True)
class Picture:
    """A figure ready for the page. `name` is unique within the report and safe in a file name."""

    name: str
    drawn: Drawn
    caption: str
    alt: str

    @property
    def width(self) -> int:
        """The width to show it at, in CSS pixels: 100 an inch, so that text is of one size in all figures."""
        # Bytes 16 to 20 of a PNG are its width in pixels.
        return round(int.from_bytes(self.drawn.png[16:20], "big") * 100 / DPI)


def accuracy_picture(target: Target, name: str) -> Picture:
    """Test accuracy against compression ratio: SiPP's variants left, the baselines right."""
    summary = drawable(accuracy_summary(target.cells))
    styles = method_styles(target.cells)
    reference = reference_label(target.cells)
    of_sipp = summary["method_name"].map(is_sipp)
    groups = {"SiPP variants": summary[of_sipp], "Baselines": summary[~of_sipp]}
    groups = {title: rows for title, rows in groups.items() if not rows.empty}
    with figure_style():
        figure = new_figure(5.4 * len(groups), 5.8)
        panels = figure.subplots(1, len(groups), sharey=True, squeeze=False)[0]
        for axes, (title, rows) in zip(panels, groups.items(), strict=True):
            _accuracy_lines(axes, rows, summary, styles, reference)
            _dense_line(axes, target)
            axes.set(title=title, xlabel=COMPRESSION)
            log_ticks(axes, "x", summary["compression_mean"], "×")
            shown = list(rows["method"].unique())
            handles = [handle(label, styles[label]) for label in shown]
            if reference is not None and reference not in shown:
                handles.append(Line2D([], [], color=REFERENCE_GREY, label=f"{reference} (see right)"))
            axes.legend(
                handles=handles, loc="upper left", bbox_to_anchor=(-0.02, -0.14), ncols=2, fontsize=8.5,
                handlelength=3.2, borderaxespad=0.0, columnspacing=1.2,
            )  # fmt: skip
        panels[0].set_ylabel("Test accuracy (%)")
        content = drawn(figure)
    return Picture(
        name,
        content,
        caption=f"{target.label}: test accuracy against the achieved compression ratio, "
        f"{'after the last epoch of retraining' if target.retrained else 'one-shot'}. {spread_sentence(summary)} "
        "The dashed horizontal line is the dense network. The pale lines are the methods of the other panel.",
        alt=f"Line chart of test accuracy over compression ratio for {summary['method'].nunique()} pruning "
        f"methods of {target.label}; the same numbers are in the table below.",
    )


def _accuracy_lines(
    axes: Axes,
    rows: pd.DataFrame,
    context: pd.DataFrame,
    styles: dict[str, MethodStyle],
    reference: str | None,
) -> None:
    shown = list(rows["method"].unique())
    for label, line in context.groupby("method", sort=False):
        x, y = line["compression_mean"], 100 * line["accuracy_mean"]
        if label in shown:
            # Later methods are drawn thinner, so that of two that coincide both can be seen.
            late = shown.index(label) / len(shown)
            look = styles[str(label)].line_kwargs() | {"markersize": 9 - 4.5 * late, "linewidth": 2.8 - 1.6 * late}
            bars = 100 * line["accuracy_sd"].fillna(0.0)
            axes.errorbar(x, y, yerr=bars, capsize=2.5, elinewidth=1, zorder=3 + late, **look)
        elif label == reference:
            axes.plot(x, y, color=REFERENCE_GREY, linewidth=1.6, zorder=2)
        else:
            axes.plot(x, y, color=FAINT, linewidth=1.0, zorder=1)


def _dense_line(axes: Axes, target: Target) -> None:
    dense = 100 * float(target.cells.drop_duplicates("seed")["dense_accuracy"].mean())
    axes.axhline(dense, color=INK, linestyle=(0, (4, 3)), linewidth=1.0, zorder=2)
    axes.annotate(
        f"dense {dense:.1f}%", (1, dense), xycoords=("axes fraction", "data"), xytext=(-4, 4),
        textcoords="offset points", ha="right", va="bottom", fontsize=8, color=INK,
    )  # fmt: skip
    axes.set_ylim(0, 107)


def difference_picture(target: Target, name: str) -> Picture | None:
    """Test accuracy minus magnitude pruning's at the same keep and seed; None with nothing to compare."""
    reference = reference_label(target.cells)
    if reference is None:
        return None
    summary = drawable(difference_summary(target.cells, reference))
    if summary.empty:
        return None
    styles = method_styles(target.cells)
    with figure_style():
        figure = new_figure(9.4, 5.0)
        axes = figure.subplots()
        axes.axhline(0, color=INK, linewidth=1.2, zorder=2)
        for label, line in summary.groupby("method", sort=False):
            middle = line["difference"]
            bars = 100 * np.array([middle - line["low"], line["high"] - middle])
            look = styles[str(label)].line_kwargs() | {"capsize": 2.5, "elinewidth": 1, "zorder": 3}
            axes.errorbar(line["compression_mean"], 100 * line["difference"], yerr=bars, **look)
        # Linear within one point of zero, logarithmic beyond: the start of every curve would vanish.
        axes.set_yscale("symlog", linthresh=1.0, linscale=0.8)
        ticks = [sign * step for step in (1, 2, 5, 10, 20, 50, 100) for sign in (-1, 1)]
        axes.yaxis.set_major_locator(FixedLocator([*ticks, -0.5, 0, 0.5]))
        axes.yaxis.set_minor_locator(FixedLocator([]))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: "0" if value == 0 else f"{value:+g}"))
        axes.set(xlabel=COMPRESSION, ylabel=f"Test accuracy minus {reference}'s\n(percentage points)")
        log_ticks(axes, "x", summary["compression_mean"], "×")
        legend_right(axes, styles, summary["method"].unique())
        content = drawn(figure)
    return Picture(
        name,
        content,
        caption=f"{target.label}: test accuracy minus that of {reference} at the same requested keep and seed. "
        f"{_interval_sentence(summary)} The vertical axis is linear between -1 and 1 and logarithmic outside.",
        alt=f"Line chart of the test accuracy's difference to {reference} over compression ratio for {target.label}.",
    )


def compute_picture(target: Target, name: str) -> Picture | None:
    """Multiply-add reduction against compression ratio; None where the two are the same for every method."""
    summary = drawable(accuracy_summary(target.cells))
    ratios, reductions = summary["compression_mean"], summary["multiply_add_reduction_mean"]
    if bool(np.isclose(ratios, reductions, rtol=0.01).all()):
        return None
    styles = method_styles(target.cells)
    with figure_style():
        figure = new_figure(9.4, 5.0)
        axes = figure.subplots()
        for label, line in summary.groupby("method", sort=False):
            axes.plot(
                line["compression_mean"],
                line["multiply_add_reduction_mean"],
                **styles[str(label)].line_kwargs(),
            )
        ends = [min(ratios.min(), reductions.min()), max(ratios.max(), reductions.max())]
        axes.plot(ends, ends, color=INK, linestyle=":", linewidth=1.2, zorder=1, label="equal")
        axes.set(xlabel=COMPRESSION, ylabel="Multiply-add reduction,\ndense / pruned (log scale)")
        log_ticks(axes, "x", ratios, "×")
        log_ticks(axes, "y", reductions, "×")
        legend_right(axes, styles, summary["method"].unique())
        content = drawn(figure)
    return Picture(
        name,
        content,
        caption=f"{target.label}: theoretical multiply-add reduction against compression ratio, means over "
        "seeds. On the dotted line the two are equal; below it the kept weights are those that are used "
        "often, such as those of early convolutions.",
        alt="Line chart of the multiply-add reduction over the compression ratio by method for "
        f"{target.label}; the numbers are in the table below.",
    )


def time_picture(target: Target, name: str) -> Picture:
    """Median fit and prune seconds with quartiles, one row a method."""
    summary, samples = time_summary(target.timings), time_samples(target.timings)
    styles = method_styles(target.cells)
    labels = list(summary["method"].unique())
    with figure_style():
        figure = new_figure(9.6, 1.3 + 0.34 * len(labels))
        panels = figure.subplots(1, 2, sharey=True)
        for axes, (stage, what) in zip(panels, {"fit": "Fit", "prune": "Prune"}.items(), strict=True):
            rows = summary[summary["stage"] == stage]
            for label, row in rows.set_index("method").iterrows():
                bars = [[row["median"] - row["lower_quartile"]], [row["upper_quartile"] - row["median"]]]
                look = styles[str(label)].line_kwargs() | {"linestyle": "none", "zorder": 3}
                raw = samples[(samples["stage"] == stage) & (samples["method"] == label)]["seconds"]
                heights = [labels.index(str(label)) + 0.22] * len(raw)
                axes.plot(raw, heights, marker="|", markersize=5, linestyle="none", color=REFERENCE_GREY, zorder=2)
                axes.errorbar([row["median"]], [labels.index(str(label))], xerr=bars, capsize=3, **look)
            axes.set_xlabel(f"{what} time (seconds, log scale)")
            log_ticks(axes, "x", samples[samples["stage"] == stage]["seconds"])
        panels[0].set_yticks(range(len(labels)), labels)
        panels[0].set_ylim(len(labels) - 0.5, -0.5)
        content = drawn(figure)
    return Picture(
        name,
        content,
        caption=f"{target.label}: wall time to fit (look at the points, once) and to prune (once per keep "
        "ratio). Marks are medians; bars reach from the lower to the upper quartile of the raw samples, the grey ticks "
        "below them.",
        alt=f"Dot chart of fit and prune times for {len(labels)} methods of {target.label}; the numbers "
        "are in the table below.",
    )


def spread_sentence(summary: pd.DataFrame) -> str:
    """What the bars of a figure made from this summary mean, with the number of seeds."""
    low, high = int(summary["seeds"].min()), int(summary["seeds"].max())
    if high == 1:
        return "One seed (n = 1), so there are no bars."
    seeds = f"{low}" if low == high else f"{low} to {high}"
    return f"Lines join means over n = {seeds} seeds; bars are one sample standard deviation to either side."


def _interval_sentence(summary: pd.DataFrame) -> str:
    low, high = int(summary["seeds"].min()), int(summary["seeds"].max())
    if high == 1:
        return "One seed (n = 1): a difference of one seed decides nothing, and has no interval."
    seeds = f"{low}" if low == high else f"{low} to {high}"
    return (
        f"Lines join mean differences of n = {seeds} seeds; bars are their 95 % intervals, by paired t, each for "
        "itself: of many, some exclude zero by chance. The table of comparisons has the tests, corrected for their "
        "number."
    )


def drawable(summary: pd.DataFrame) -> pd.DataFrame:
    """Without the rows that have no place on a logarithmic axis: nothing was kept."""
    drawable: pd.DataFrame = summary.loc[np.isfinite(summary["compression_mean"]) & (summary["achieved_keep_mean"] > 0)]
    return drawable


def handle(label: str, style: MethodStyle) -> Line2D:
    return Line2D([], [], label=label, **style.line_kwargs())


def legend_right(axes: Axes, styles: dict[str, MethodStyle], labels: Iterable[str]) -> None:
    handles = [handle(label, styles[label]) for label in labels]
    axes.legend(handles=handles, loc="center left", bbox_to_anchor=(1.02, 0.5), fontsize=8.5, handlelength=3.2)
