"""The numbers of the report: every mean, spread and share is computed here, from the run's tables alone.

Spread is the sample standard deviation over seeds (n - 1 in the denominator), NaN for one seed.
"""

import json
from typing import Any

import pandas as pd

from sipp_bench.compare.paired import guesses, paired
from sipp_bench.report.collect import METHOD, TARGET
from sipp_bench.report.style import method_order


def accuracy_summary(cells: pd.DataFrame) -> pd.DataFrame:
    """Mean and spread over seeds per target, method and keep. Accuracies are fractions, losses nats."""
    groups = cells.groupby([*TARGET, *METHOD, "keep"], sort=False)
    summary = groups.agg(
        seeds=("seed", "nunique"),
        accuracy_mean=("accuracy", "mean"),
        accuracy_sd=("accuracy", "std"),
        accuracy_min=("accuracy", "min"),
        accuracy_max=("accuracy", "max"),
        loss_mean=("loss", "mean"),
        loss_sd=("loss", "std"),
        validation_accuracy_mean=("validation_accuracy", "mean"),
        achieved_keep_mean=("achieved_keep", "mean"),
        compression_mean=("compression", "mean"),
        multiply_add_reduction_mean=("multiply_add_reduction", "mean"),
    ).reset_index()
    return in_order(summary, "keep")


def in_order(frame: pd.DataFrame, *then: str) -> pd.DataFrame:
    """Sort rows by target, method in the report's order, and `then`: keep from large to small, S first."""
    ranks = frame[[*TARGET, *then]].assign(method=frame["method"].map(method_order(frame)))
    if "keep" in then:
        ranks["keep"] = -ranks["keep"]
    if "on" in then:
        ranks["on"] = ranks["on"] != "S"
    ranks = ranks.sort_values([*TARGET, "method", *then], kind="stable")
    return frame.loc[ranks.index].reset_index(drop=True)


def best_by_validation(summary: pd.DataFrame, keep: float) -> "pd.Series[Any] | None":
    """The row of a target's summary with the best mean validation accuracy at `keep`; None without any."""
    rows = summary[(summary["keep"] == keep) & summary["validation_accuracy_mean"].notna()]
    return None if rows.empty else rows.iloc[int(rows["validation_accuracy_mean"].argmax())]


def points_tested(cells: pd.DataFrame) -> int | None:
    """How many images accuracies are shares of: flips / (1 - agreement), exact in any cell with a flip."""
    if not {"flips", "agreement"} <= set(cells.columns):
        return None
    flipped = cells[cells["flips"] > 0]
    return None if flipped.empty else round(float((flipped["flips"] / (1 - flipped["agreement"])).median()))


def at_chance(cells: pd.DataFrame, among: pd.DataFrame) -> bool:
    """Whether every one of these networks may be guessing (`guesses`); False where the cells can't tell.

    among: the cells of their target, which say how many test images and classes there are.
    """
    points = points_tested(among)
    lists = list(among["class_accuracies"].dropna()) if "class_accuracies" in among else []
    if points is None or not lists or cells.empty:
        return False
    classes = len(json.loads(lists[0]))
    return all(guesses(float(accuracy), points, classes) for accuracy in cells["accuracy"])


def reference_label(cells: pd.DataFrame) -> str | None:
    """The magnitude pruning to compare with: the best on validation on average. None without any."""
    magnitude = cells[cells["method_name"] == "magnitude"]
    scores = magnitude.groupby("method", sort=False)["validation_accuracy"].mean().dropna()
    return None if scores.empty else str(scores.idxmax())


def difference_summary(cells: pd.DataFrame, reference: str) -> pd.DataFrame:
    """Per method and keep of one target: test accuracy minus the reference's, paired by seed, with its 95 % "
    "interval."""
    base = cells[cells["method"] == reference].set_index(["seed", "keep"])["accuracy"].rename("base")
    rows = cells[cells["method"] != reference].join(base, on=["seed", "keep"], how="inner")
    # Joining no rows at all leaves pandas with the reference's index, whose names are those of columns.
    rows = rows.reset_index(drop=True)
    rows["difference"] = rows["accuracy"] - rows["base"]
    summary = rows.groupby([*TARGET, *METHOD, "keep"], sort=False).agg(
        seeds=("difference", "count"),
        difference=("difference", "mean"),
        low=("difference", lambda values: paired(values.tolist()).low),
        high=("difference", lambda values: paired(values.tolist()).high),
        compression_mean=("compression", "mean"),
        achieved_keep_mean=("achieved_keep", "mean"),
    )
    return in_order(summary.reset_index(), "keep")


def layer_keeps(layers: pd.DataFrame) -> pd.DataFrame:
    """Requested and achieved keep per layer, the mean over seeds, per target, method and keep."""
    shares = layers.assign(
        requested_keep=layers["requested"] / layers["weights"],
        achieved_keep=layers["kept"] / layers["weights"],
    )
    groups = shares.groupby([*TARGET, *METHOD, "keep", "layer"], sort=False)
    return groups.agg(
        weights=("weights", "first"),
        requested_keep=("requested_keep", "mean"),
        achieved_keep=("achieved_keep", "mean"),
        seeds=("seed", "nunique"),
    ).reset_index()


def layer_bounds(layers: pd.DataFrame) -> pd.DataFrame:
    """Mean and largest bound and the vacuous share of each layer's blocks, means over seeds; no rows without bounds."""
    bounded = layers[layers["epsilon_mean"].notna()]
    groups = bounded.groupby([*TARGET, *METHOD, "keep", "layer"], sort=False)
    return groups[["epsilon_mean", "epsilon_max", "vacuous"]].mean().reset_index()


STAGES = {"fit_seconds": "fit", "prune_seconds": "prune"}


def time_samples(timings: pd.DataFrame) -> pd.DataFrame:
    """Raw samples, long: stage ("fit", "prune") and seconds. A fit shared by keep ratios counts once."""
    samples = []
    for column, stage in STAGES.items():
        rows = timings[timings[column].notna()]
        if stage == "fit":
            rows = rows.drop_duplicates([*TARGET, *METHOD, "seed", column])
        samples.append(rows[[*TARGET, "seed", *METHOD, "keep"]].assign(stage=stage, seconds=rows[column]))
    return pd.concat(samples, ignore_index=True)


def latency_samples(timings: pd.DataFrame) -> pd.DataFrame:
    """One row a pair of forward passes: seconds `dense` and `pruned`; no rows where none were timed."""
    columns = {"latency_dense_seconds": "dense", "latency_pruned_seconds": "pruned"}
    keys = [*TARGET, "seed", *METHOD, "keep"]
    if not set(columns) <= set(timings.columns):
        return pd.DataFrame(columns=[*keys, *columns.values()])
    timed = timings[timings["latency_dense_seconds"].notna()]
    pairs = timed[[*keys, *columns]].explode(list(columns), ignore_index=True).rename(columns=columns)
    return pairs.astype(dict.fromkeys(columns.values(), float))


def time_summary(timings: pd.DataFrame) -> pd.DataFrame:
    """Median, quartiles and number of samples of fit and prune times in seconds, per target and method."""
    samples = time_samples(timings)
    groups = samples.groupby([*TARGET, *METHOD, "stage"], sort=False)["seconds"]
    summary = groups.describe()[["25%", "50%", "75%", "count"]].reset_index()
    summary.columns = pd.Index([*TARGET, *METHOD, "stage", "lower_quartile", "median", "upper_quartile", "n"])
    return in_order(summary, "stage")
