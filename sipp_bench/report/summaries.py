"""The numbers of the report: every mean, spread and share is computed here, from the run's tables alone.

Spread is the sample standard deviation over seeds (n - 1 in the denominator), NaN for one seed.
"""

from typing import Any

import pandas as pd

from sipp_bench.report.collect import METHOD, TARGET, Collected, Target
from sipp_bench.report.style import is_sipp, method_order

VERDICTS = ["violated", "useless", "not falsified", "holds", "measured"]


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


def compare_with_magnitude(target: Target) -> pd.DataFrame:
    """At each keep below 1: the best method, the best SiPP variant and the best magnitude variant.

    All are chosen on validation and read on test. `difference` is SiPP's test accuracy minus magnitude's, the
    mean over the seeds that both have; `ahead` and `behind` count seeds. Missing things are None or NaN.
    """
    summary = accuracy_summary(target.cells)
    sipp = summary[summary["method_name"].map(is_sipp)]
    magnitude = summary[summary["method_name"] == "magnitude"]
    rows = []
    for keep in (keep for keep in target.keeps if keep < 1):
        chosen = {
            name: best_by_validation(candidates, keep)
            for name, candidates in (("best", summary), ("sipp", sipp), ("magnitude", magnitude))
        }
        row: dict[str, Any] = {"keep": keep}
        for name, best in chosen.items():
            row[name] = None if best is None else best["method"]
            for column in ("accuracy_mean", "accuracy_sd", "seeds"):
                row[f"{name}_{column}"] = float("nan") if best is None else best[column]
        differences = _paired(target.cells, keep, row["sipp"], row["magnitude"])
        row |= {
            "difference": differences.mean(),
            "difference_sd": differences.std(),
            "pairs": len(differences),
            "ahead": int((differences > 0).sum()),
            "behind": int((differences < 0).sum()),
        }
        rows.append(row)
    return pd.DataFrame(rows)


def _paired(cells: pd.DataFrame, keep: float, one: str | None, other: str | None) -> "pd.Series[float]":
    at_keep = cells[cells["keep"] == keep]
    by_seed = {
        name: at_keep[at_keep["method"] == name].set_index("seed")["accuracy"].astype(float) for name in (one, other)
    }
    return (by_seed[one] - by_seed[other]).dropna()


def reference_label(cells: pd.DataFrame) -> str | None:
    """The magnitude pruning to compare with: the best on validation on average. None without any."""
    magnitude = cells[cells["method_name"] == "magnitude"]
    scores = magnitude.groupby("method", sort=False)["validation_accuracy"].mean().dropna()
    return None if scores.empty else str(scores.idxmax())


def difference_summary(cells: pd.DataFrame, reference: str) -> pd.DataFrame:
    """Per method and keep of one target: test accuracy minus the reference's, paired by seed."""
    base = cells[cells["method"] == reference].set_index(["seed", "keep"])["accuracy"].rename("base")
    paired = cells[cells["method"] != reference].join(base, on=["seed", "keep"], how="inner")
    # Joining no rows at all leaves pandas with the reference's index, whose names are those of columns.
    paired = paired.reset_index(drop=True)
    paired["difference"] = paired["accuracy"] - paired["base"]
    summary = paired.groupby([*TARGET, *METHOD, "keep"], sort=False).agg(
        seeds=("difference", "count"),
        difference=("difference", "mean"),
        difference_sd=("difference", "std"),
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


def check_summary(checks: pd.DataFrame) -> pd.DataFrame:
    """Per target, method, claim and kind of points: blocks, vacuous ones, excesses, and counts of verdicts.

    A count is the number of (cell, layer) rows that got that verdict; verdicts are never merged into one.
    """
    groups = checks.groupby([*TARGET, *METHOD, "claim", "on"], sort=False)
    summary = groups.agg(
        cells=("id", "nunique"),
        blocks=("blocks", "sum"),
        vacuous=("vacuous", "sum"),
        exceeding=("exceeding", "sum"),
        ratio_max=("ratio_max", "max"),
        exceeding_rate_max=("exceeding_rate", "max"),
        points_min=("points", "min"),
        points_max=("points", "max"),
    ).reset_index()
    summary["vacuous_share"] = summary["vacuous"] / summary["blocks"].where(summary["blocks"] > 0)
    known = [verdict for verdict in VERDICTS if verdict in set(checks["verdict"])]
    others = sorted(set(checks["verdict"].dropna()) - set(VERDICTS))
    for verdict in [*known, *others]:
        counts = (checks["verdict"] == verdict).groupby([checks[key] for key in groups.keys], sort=False).sum()
        summary[f"verdict: {verdict}"] = counts.to_numpy()
    return in_order(summary, "claim", "on")


def vacuous_shares(checks: pd.DataFrame) -> pd.DataFrame:
    """Share of the blocks on S whose bound is vacuous (epsilon >= 1), per target, method, claim and keep."""
    groups = checks[checks["on"] == "S"].groupby([*TARGET, *METHOD, "claim", "keep"], sort=False)
    summary = groups.agg(blocks=("blocks", "sum"), vacuous=("vacuous", "sum")).reset_index()
    summary["vacuous_share"] = summary["vacuous"] / summary["blocks"].where(summary["blocks"] > 0)
    return in_order(summary, "keep")


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


def overall_checks(report: Collected) -> pd.DataFrame:
    """Per claim and kind of points, over everything: blocks, vacuous, exceeding, violated rows."""
    checks = report.checks.assign(violated=report.checks["verdict"] == "violated")
    groups = checks.groupby(["claim", "on"], sort=True)
    return groups[["blocks", "vacuous", "exceeding", "violated"]].sum().reset_index()
