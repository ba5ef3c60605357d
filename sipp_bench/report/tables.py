"""The summaries as tables of text, ready for a page. Numbers are formatted here and nowhere else."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import pandas as pd

from sipp_bench.compare.paired import CHANCE_LEVEL, LEVEL
from sipp_bench.measures.asked import LATENCY_BATCH
from sipp_bench.report.collect import Collected, Target
from sipp_bench.report.summaries import (
    accuracy_summary,
    at_chance,
    best_by_validation,
    in_order,
    latency_samples,
    time_summary,
)

NOTHING = "–"


@dataclass(frozen=True)
class Table:
    """Rows of text under column heads. The columns in `text` hold words, the others numbers."""

    caption: str
    columns: list[str]
    rows: list[list[str]]
    text: tuple[int, ...] = (0,)
    strong: set[tuple[int, int]] = field(default_factory=set)
    """(row, column) of the cells that stand out; the caption says why."""


def number(value: Any, pattern: str = "{:.4g}") -> str:
    """The number in this pattern, or a dash where there is none."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return NOTHING
    return "∞" if value == math.inf else pattern.format(value)


def percent(value: Any, digits: int = 1) -> str:
    return number(value if value is None else 100 * value, f"{{:.{digits}f}}")


def mean_and_spread(mean: float, spread: float, seeds: float, pattern: str = "{:.1f}", scale: float = 1.0) -> str:
    """ "95.1 ± 0.4", or "95.1 (n = 1)" where one seed gives no spread."""
    if math.isnan(mean):
        return NOTHING
    if seeds == 1 or math.isnan(spread):
        return f"{number(scale * mean, pattern)} (n = {seeds:g})"
    return f"{number(scale * mean, pattern)} ± {number(scale * spread, pattern)}"


def seconds(value: float) -> str:
    """Seconds with three significant digits, in the unit that suits: µs, ms, s."""
    if math.isnan(value):
        return NOTHING
    for unit, factor in (("s", 1.0), ("ms", 1e3)):
        if value * factor >= 1:
            return f"{value * factor:.3g} {unit}"
    return f"{value * 1e6:.3g} µs"


def share(keep: float) -> str:
    return f"{100 * keep:g}%"


def accuracy_table(target: Target) -> Table:
    return _accuracy_or_loss(
        target,
        "accuracy",
        lambda row: mean_and_spread(row["accuracy_mean"], row["accuracy_sd"], row["seeds"], scale=100),
        "Test accuracy (%)",
    )


def loss_table(target: Target) -> Table:
    return _accuracy_or_loss(
        target,
        "loss",
        lambda row: mean_and_spread(row["loss_mean"], row["loss_sd"], row["seeds"], "{:.3f}"),
        "Test loss (mean cross-entropy, nats)",
    )


def _accuracy_or_loss(target: Target, what: str, text: Callable[["pd.Series[Any]"], str], title: str) -> Table:
    summary = accuracy_summary(target.cells)
    dense = target.cells.drop_duplicates("seed")[f"dense_{what}"]
    dense_text = text(pd.Series({f"{what}_mean": dense.mean(), f"{what}_sd": dense.std(), "seeds": len(dense)}))
    table = by_keep(
        summary,
        text,
        caption=f"{title} by requested keep, {target.label}; mean ± sample standard deviation over seeds. "
        f"The dense network: {dense_text}. Bold: the method that was chosen on validation at that keep, "
        "unless it is at chance. No test stands behind that choice.",
    )
    for position, keep in enumerate(target.keeps):
        best = best_by_validation(summary, keep)
        if best is None or keep == 1:  # where every method is the dense network, the first would stand out for nothing
            continue
        chosen = target.cells[(target.cells["keep"] == keep) & (target.cells["method"] == best["method"])]
        if not at_chance(chosen, target.cells):
            table.strong.add(([row[0] for row in table.rows].index(str(best["method"])), position + 1))
    return table


def compute_table(target: Target) -> Table:
    """Compression ratio and multiply-add reduction by method and keep."""
    return by_keep(
        accuracy_summary(target.cells),
        lambda row: (
            f"{number(row['compression_mean'], '{:.3g}×')} / {number(row['multiply_add_reduction_mean'], '{:.3g}×')}"
        ),
        caption=f"Achieved compression ratio / multiply-add reduction by requested keep, {target.label}; "
        "means over seeds.",
    )


def by_keep(
    summary: pd.DataFrame,
    text: Callable[["pd.Series[Any]"], str],
    caption: str,
    heads: Mapping[str, str] = MappingProxyType({"method": "Method"}),
) -> Table:
    """A row for each combination in the columns `heads` (column -> head), and a column for each keep ratio."""
    keeps = sorted(summary["keep"].unique(), reverse=True)
    texts = {(*map(str, row[list(heads)]), row["keep"]): text(row) for _, row in summary.iterrows()}
    labels = dict.fromkeys(tuple(key[:-1]) for key in texts)
    rows = [[*label, *(texts.get((*label, keep), NOTHING) for keep in keeps)] for label in labels]
    return Table(caption, [*heads.values(), *map(share, keeps)], rows, text=tuple(range(len(heads))))


def comparison_table(target: Target, headline: pd.DataFrame, details: pd.DataFrame) -> Table:
    """SiPP against magnitude: the headline over the keep ratios first, then each keep ratio, as detail."""
    rows = []
    for row in headline.to_dict("records"):
        names = [row["sipp"] or NOTHING, row["magnitude"] or NOTHING]
        rows.append([f"mean of {row['keeps']}", *_compared(row), *names, NOTHING])
    for row in details.to_dict("records"):
        cells = []
        for name in ("sipp", "magnitude", "best"):
            mean, spread, seeds = (row[f"{name}_{what}"] for what in ("accuracy_mean", "accuracy_sd", "seeds"))
            accuracy = mean_and_spread(mean, spread, seeds, scale=100)
            cells.append(NOTHING if row[name] is None else f"{row[name]}: {accuracy}")
        if row["best_at_chance"]:
            cells[-1] = "at chance"
        rows.append([share(row["keep"]), *_compared(row), *cells])
    sides = ["SiPP variant", "Magnitude variant"]
    return Table(
        f"SiPP against magnitude pruning, {target.label}: test accuracy (%) of the variants with the best mean "
        "validation accuracy, and their difference seed by seed in percentage points, with its 95 % interval (paired t "
        "over n seeds). The first row is the test of this network: the mean over keep ratios, corrected by Holm for "
        f"{tests_over(headline)}. The others are detail, corrected for {tests_over(details)}. "
        f"Ahead and behind: a corrected p of at most {LEVEL:g}. At chance: every network may be guessing (exact "
        f"binomial test, one-sided, {CHANCE_LEVEL:g}).",
        ["Keep", "SiPP is", "SiPP − magnitude", "95 % interval", "n", "p, Holm", *sides, "Chosen of all"],
        rows,
        text=(0, 1, 6, 7, 8),
    )


def tests_over(rows: pd.DataFrame) -> str:
    """ "3 tests": how many a correction is over."""
    count = 0 if rows.empty else int(rows["tests"].iloc[0])
    return f"{count} test{'' if count == 1 else 's'}"


def _compared(row: Mapping[Any, Any]) -> list[str]:
    if pd.isna(row["verdict"]):
        return [NOTHING] * 5
    p = number(row["p_adjusted"], "{:.2g}")
    return [row["verdict"], points(row["difference"]), interval(row), str(row["n"]), p]


def points(difference: float) -> str:
    """A difference of accuracies in percentage points, with its sign."""
    return number(100 * difference, "{:+.1f}")


def interval(row: Mapping[Any, Any]) -> str:
    """ "-7.8 to +0.2", or a dash where the seeds have no spread to make one from."""
    return NOTHING if math.isnan(row["low"]) else f"{points(row['low'])} to {points(row['high'])}"


def time_table(target: Target) -> Table:
    summary = time_summary(target.timings)
    texts = {
        (row["method"], row["stage"]): [
            seconds(row["median"]),
            f"{seconds(row['lower_quartile'])} – {seconds(row['upper_quartile'])}",
            f"{row['n']:.0f}",
        ]
        for row in summary.to_dict("records")
    }
    none = [NOTHING, NOTHING, "0"]
    rows = [
        [str(method), *texts.get((method, "fit"), none), *texts.get((method, "prune"), none)]
        for method in summary["method"].unique()
    ]
    return Table(
        "Wall time of fitting (once per network, method and seed) and of pruning (once per keep ratio), "
        f"{target.label}: median, lower and upper quartile, number of samples.",
        ["Method", "Fit, median", "quartiles", "n", "Prune, median", "quartiles", "n"],
        rows,
    )


def latency_table(target: Target) -> Table | None:
    """Forward passes timed in pairs, dense and pruned, by method and keep; None where none were timed."""
    samples = latency_samples(target.timings)
    if samples.empty:
        return None
    rows = []
    for (method, keep), group in in_order(samples, "keep").groupby(["method", "keep"], sort=False):
        found = [str(method), share(float(str(keep)))]
        for network in ("dense", "pruned"):
            low, middle, high = group[network].quantile([0.25, 0.5, 0.75])
            found += [seconds(middle), f"{seconds(low)} – {seconds(high)}"]
        rows.append([*found, number((group["pruned"] / group["dense"]).median(), "{:.3f}"), str(len(group))])
    return Table(
        f"Forward passes of one batch of {LATENCY_BATCH} test images, timed in pairs after 3 pairs of warm-up, each "
        f"first in turn, {target.label}: median and quartiles over all pairs and seeds, and the median of pruned / "
        "dense within a pair. Masked networks run on dense kernels: 1 is what to expect.",
        ["Method", "Keep", "Dense, median", "quartiles", "Pruned, median", "quartiles", "Pruned / dense", "Pairs"],
        rows,
    )


def failed_table(report: Collected) -> Table:
    rows = []
    for row in report.failed.to_dict("records"):
        kind, _, message = str(row["error"] or "").partition(": ")
        place = [row["network"], row["data"], str(row["seed"]), row["method"], share(row["keep"])]
        rows.append([row["run"], *place, kind or NOTHING, message or NOTHING])
    heads = ["Run", "Network", "Data", "Seed", "Method", "Keep", "Error", "Message"]
    return Table(
        "Cells that failed, with the type of the error and its message.",
        heads,
        rows,
        text=tuple(range(len(heads))),
    )


def facts_table(caption: str, facts: Iterable[tuple[str, str]]) -> Table:
    """Names and values, both text."""
    return Table(caption, ["What", "Value"], [list(fact) for fact in facts], text=(0, 1))
