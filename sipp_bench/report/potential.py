"""How far a network can be pruned before validation shows it: the prune potential of each method."""

import pandas as pd

from sipp_bench.measures.potential import prune_potential
from sipp_bench.report.collect import Target
from sipp_bench.report.merge import DENSE_VALIDATION
from sipp_bench.report.summaries import in_order
from sipp_bench.report.tables import Table, percent

MARGIN = 0.005
"""The drop of validation accuracy that a prune potential allows: half a point, as in "Lost in Pruning"."""


def potential_table(target: Target) -> Table | None:
    """The prune potential of each method at `MARGIN`, by seed; None where no cell can tell (`potential_lacks`)."""
    cells = _with_dense(target)
    if cells.empty:
        return None
    rows = []
    for method, of_method in in_order(cells).groupby("method", sort=False):
        found = []
        for _, of_seed in of_method.groupby("seed"):
            curve = zip(of_seed["keep"], 1 - of_seed["validation_accuracy"], strict=True)
            dense = 1 - float(of_seed[DENSE_VALIDATION].iloc[0])
            found.append(prune_potential(curve, dense, MARGIN))
        firsts = ", ".join("none" if each.first_failure is None else percent(each.first_failure) for each in found)
        lasts = ", ".join("none" if each.last_pass is None else percent(each.last_pass) for each in found)
        rows.append([str(method), firsts, lasts, str(len(found))])
    filled = int(cells["dense_validation_filled"].sum()) if "dense_validation_filled" in cells else 0
    from_others = f" {filled:,} cells take the latter from other cells of the same checkpoint." if filled else ""
    return Table(
        f"Prune potential, {target.label}: the largest share of weights removed (%) with a validation accuracy at "
        f"most {percent(MARGIN)} points below the dense network's, seed by seed. First failure: up to where no smaller "
        f"share fails; last pass: the largest that passes. The suite has {cells['keep'].nunique()} keep ratios."
        f"{from_others}",
        ["Method", "First failure", "Last pass", "Seeds"],
        rows,
        text=(0, 1, 2),
    )


def potential_lacks(target: Target) -> str:
    """Why cells have no prune potential; "" where all have one."""
    lacking = len(target.cells) - len(_with_dense(target))
    if not lacking:
        return ""
    return (
        f"Of {len(target.cells):,} cells {lacking:,} have no prune potential: they were measured by a version that did "
        "not store the dense network's validation accuracy, and no other cell here has that of their checkpoint. Run "
        "the suite again to have it."
    )


def _with_dense(target: Target) -> pd.DataFrame:
    cells = target.cells
    known = cells[DENSE_VALIDATION].notna() if DENSE_VALIDATION in cells else pd.Series(False, cells.index)
    return cells[known]
