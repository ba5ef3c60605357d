"""The checks of a run: each block's bound against its measured error, on the points looked at and on fresh ones.

A first look, cell by cell; `theory_checks` holds the full checks of the claims.
"""

from typing import Any, Literal

import torch
from torch import Tensor, nn

from sipp_bench.compression.metrics import BlockErrors, block_errors, median
from sipp_bench.compression.pruned import Pruned
from sipp_bench.network.points import Points

Where = Literal["S", "fresh"]


def check_cell(
    model: nn.Module, pruned: Pruned, points: Points, where: Where
) -> tuple[list[dict[str, Any]], dict[str, dict[str, Tensor]]]:
    """Rows (one a weight) and arrays by weight name; both empty for a method without a guarantee.

    On "S" a block without draws must have error <= epsilon (claim C2): one that exceeds it beyond rounding is
    "violated". Drawn blocks exceed theirs with probability at most delta for each (x, p, tau) (claims C10, C13): a
    single draw set is one trial, so that "not falsified" here says little; `exceeding_rate` has the share. Bounds of
    1 or more on all of a weight's blocks are "useless". No claim speaks of fresh points without more: "measured".
    """
    guarantee = pruned.guarantee
    if guarantee is None or guarantee.void:
        return [], {}
    weights = dict(pruned.model.named_parameters())
    slack = {
        name: with_rounding(epsilon, weights[name][0].numel(), weights[name].dtype)
        for name, epsilon in guarantee.epsilon.items()
    }
    errors = block_errors(model, pruned.model, points, guarantee.epsilon, slack)
    rows, arrays = [], {}
    for name, error in errors.items():
        epsilon, draws = guarantee.epsilon[name], guarantee.draws[name]
        measured = error.largest if guarantee.per_patch else error.average
        row = _row(epsilon, measured, slack[name], draws, error)
        row |= {"claim": guarantee.claims[0], "on": where, "layer": name, "delta": guarantee.delta}
        row["verdict"] = _verdict(where, row, bool(draws.any()))
        rows.append(row)
        arrays[name] = {"epsilon": epsilon, "draws": draws, f"error_{where}": measured}
    return rows, arrays


def with_rounding(epsilon: Tensor, terms: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """epsilon with room for the rounding of sensitivities: each is within (n + 3) u relative, u that of the network.

    A sum of n = `terms` non-negative products is within n u / (1 - n u) of the exact one in whatever order it is taken
    (Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed., 3.1); the division, the product with |w| and
    reading a reweighted weight cost one rounding each. Sums over blocks are in float64.
    """
    unit = torch.finfo(dtype if dtype == torch.float64 else torch.float32).eps / 2
    double = torch.finfo(torch.float64).eps / 2
    # Reweighted weights are rounded as well, which moves Zhat itself by up to u relative to Zhat <= (1 + eps) Z. The
    # error is measured in float64, as a difference of two such sums relative to one of them.
    return epsilon * (1 + (terms + 3) * unit) + (unit + 2 * (terms + 1) * double) * (1 + epsilon)


def _row(epsilon: Tensor, measured: Tensor, limit: Tensor, draws: Tensor, error: BlockErrors) -> dict[str, Any]:
    telling = (epsilon < 1) & (epsilon > 0)
    ratios = measured[telling] / epsilon[telling]
    above = measured > limit
    return {
        "blocks": epsilon.numel(),
        "drawn": int((draws > 0).sum()),
        "vacuous": int((epsilon >= 1).sum()),
        "bound_median": median(epsilon),
        "bound_max": float(epsilon.max()),
        "error_median": median(measured),
        "error_max": float(measured.max()),
        "ratio_max": float(ratios.max()) if ratios.numel() else float("nan"),
        "exceeding": int(above.sum()),
        "exceeding_certain": int((above & (draws == 0)).sum()),
        "exceeding_rate": float(error.exceeding[draws > 0].sum() / error.active[draws > 0].sum().clamp(min=1)),
        "active": int(error.active.sum()),
    }


def _verdict(where: Where, row: dict[str, Any], drawn: bool) -> str:
    if where == "S" and row["exceeding_certain"]:
        return "violated"
    if row["vacuous"] == row["blocks"]:
        return "useless"
    if where == "fresh":
        return "measured"
    return "not falsified" if drawn else "holds"
