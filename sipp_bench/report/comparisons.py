"""SiPP's variants against magnitude pruning, seed by seed: one headline test a target, cells as detail.

Of each side the variant with the best mean validation accuracy stands for it, and is read on test. The headline is the
mean over the keep ratios below 1; Holm's correction is over the targets of the report. The detail is each keep ratio by
itself, with the variants chosen there; Holm's correction is over all of these of the report.
"""

from typing import Any

import pandas as pd

from sipp_bench.compare.findings import holm
from sipp_bench.compare.paired import paired, verdict
from sipp_bench.report.collect import TARGET, Collected, Target
from sipp_bench.report.style import is_sipp
from sipp_bench.report.summaries import accuracy_summary, at_chance, best_by_validation

SIDES = ("sipp", "magnitude")


def headlines(report: Collected) -> pd.DataFrame:
    """One row a target: `sipp` and `magnitude` (labels, None without any), `keeps`, and the comparison over them.

    A comparison is n (seeds), difference (mean of SiPP minus magnitude, a fraction), low and high (95 %), p,
    p_adjusted, tests (how many Holm's correction is over), verdict (None where there is nothing to compare).
    """
    return _judged([_headline(target) for target in report.targets()])


def details(report: Collected) -> pd.DataFrame:
    """One row a target and keep ratio below 1: `best`, `sipp`, `magnitude` with their accuracies, and the comparison.

    best: the method chosen on validation among all, None where that one is at chance: there is none then.
    """
    return _judged([row for target in report.targets() for row in _by_keep(target)])


def of_target(rows: pd.DataFrame, target: Target) -> pd.DataFrame:
    """Of `headlines` or `details` the rows of one target."""
    return rows[(rows["run"] == target.run) & (rows["network"] == target.network) & (rows["data"] == target.data)]


def _sides(target: Target) -> dict[str, pd.DataFrame]:
    cells = target.cells[target.cells["keep"] < 1]
    return {"sipp": cells[cells["method_name"].map(is_sipp)], "magnitude": cells[cells["method_name"] == "magnitude"]}


def _headline(target: Target) -> dict[str, Any]:
    chosen, found = {}, {}
    for side, cells in _sides(target).items():
        scores = cells.groupby("method", sort=False)["validation_accuracy"].agg(["mean", "count"])
        # A variant that was run at fewer keep ratios or seeds has another mean.
        whole = scores[(scores["count"] == scores["count"].max()) & (scores["count"] > 0)]["mean"]
        chosen[side] = None if whole.empty else str(whole.idxmax())
        found[side] = cells[cells["method"] == chosen[side]]
    one, other = (cells.pivot(index="seed", columns="keep", values="accuracy") for cells in found.values())
    apart = one.sub(other).dropna(how="all").dropna(how="all", axis=1)
    apart = apart.dropna()  # what one seed lacks, another must not be averaged over
    both = pd.concat(found.values())
    keys = {"run": target.run, "network": target.network, "data": target.data}
    return keys | chosen | {"keeps": apart.shape[1]} | _comparison(apart.mean(axis=1).tolist(), both, target)


def _by_keep(target: Target) -> list[dict[str, Any]]:
    summary = accuracy_summary(target.cells)
    sides = {side: summary[summary["method"].isin(cells["method"])] for side, cells in _sides(target).items()}
    rows = []
    for keep in (keep for keep in target.keeps if keep < 1):
        at_keep = target.cells[target.cells["keep"] == keep]
        row: dict[str, Any] = {"run": target.run, "network": target.network, "data": target.data, "keep": keep}
        accuracies = {}
        for name, candidates in {"best": summary, **sides}.items():
            best = best_by_validation(candidates, keep)
            row[name] = None if best is None else best["method"]
            for column in ("accuracy_mean", "accuracy_sd", "seeds"):
                row[f"{name}_{column}"] = float("nan") if best is None else best[column]
            accuracies[name] = at_keep[at_keep["method"] == row[name]]
        if at_chance(accuracies["best"], target.cells):
            row["best"] = None
        row["best_at_chance"] = at_chance(accuracies["best"], target.cells)
        one, other = (accuracies[side].set_index("seed")["accuracy"] for side in SIDES)
        both = pd.concat([accuracies[side] for side in SIDES])
        rows.append(row | _comparison((one - other).dropna().tolist(), both, target))
    return rows


def _comparison(differences: list[float], cells: pd.DataFrame, target: Target) -> dict[str, Any]:
    found = paired(differences)
    numbers = {name: getattr(found, name) for name in ("n", "difference", "low", "high", "p")}
    return numbers | {"chance": found.n > 0 and at_chance(cells, target.cells), "_paired": found}


def _judged(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """With p_adjusted and a verdict. Only what can be tested is a test: two seeds or more, not at chance."""
    tested = [row for row in rows if row["n"] > 1 and not row["chance"]]
    adjusted = dict(zip(map(id, tested), holm([row["p"] for row in tested]), strict=True))
    for row in rows:
        row["p_adjusted"] = adjusted.get(id(row), float("nan"))
        row["tests"] = len(tested)
        found = row.pop("_paired")
        row["verdict"] = verdict(found, row["p_adjusted"], row.pop("chance")) if found.n else None
    if not rows:
        return pd.DataFrame(columns=[*TARGET, "verdict"])
    # Where nothing was compared a name is None, which pandas makes NaN of in a column of text.
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    return pd.DataFrame(
        {name: pd.Series(values, dtype=object if None in values else None) for name, values in columns.items()}
    )
