"""What holds on points that the method has not seen: C18's composition on S, and how often predictions differ."""

import copy
import math
from typing import Any

import torch

from sipp_bench import bounds
from theory_checks import composition, statistics
from theory_checks.claims.base import Finding, Verdict
from theory_checks.network import Cell, NotApplicable, outputs, rounding_of
from theory_checks.rounding import gamma


def check_composition(cell: Cell) -> Finding:
    """C18 on S: xi' <= Delta (xi + eps + xi eps), layer by layer, Delta over all neurons, patches and points."""
    context = cell.context
    factors, complete = context.cancellations
    blocks = cell.blocks()
    if not factors:
        raise NotApplicable("no weight is applied by a Linear or ConvNd module")
    xi, spoken, rows = 0.0, 0, []
    for name, delta in factors.items():
        block, dtype = blocks[name], cell.weights[name][0].dtype
        epsilon = float(block.epsilon[block.active].max()) if bool(block.active.any()) else 0.0
        if math.isfinite(xi):
            # Rounding of both float64 runs is at most gamma of every |w_ij a_j| each (claim C18's check has the same).
            room = float(rounding_of(torch.tensor(epsilon).double(), block.n, dtype)) + 8 * gamma(block.n + 4)
            xi = float(bounds.composed_error(delta.largest, xi, epsilon + room))
            spoken += math.isfinite(xi)
        quantiles = {f"Delta_{share}": delta.quantile(float(share)) for share in ("0.5", "0.9", "0.99")}
        rows.append({"layer": name, **quantiles, "Delta_max": delta.largest, "epsilon_max": epsilon, "xi": xi})
    data: dict[str, Any] = {"keep": cell.keep, "layers": rows, "folded": complete}
    worst = max(rows, key=lambda row: row["Delta_max"])
    tail = f"Delta up to {worst['Delta_max']:.3g} ({worst['layer']}, median {worst['Delta_0.5']:.3g})"
    if not math.isfinite(xi):
        detail = f"The composed error passes 1 after {spoken} of {len(rows)} layers: {tail}."
        return Finding("C18", Verdict.USELESS, 0, 0, 0.0, detail, data=data)
    if not (complete and composition.is_chain(context.model)):
        detail = f"The claim speaks of chains of linear maps, ReLU and pooling, which this network is not; {tail}."
        return Finding("C18", Verdict.USELESS, 0, 0, 0.0, detail, data=data)
    y, yhat = (
        outputs(copy.deepcopy(network).double(), context.points.double())
        for network in (context.model, cell.pruned.model)
    )
    error = (yhat - y).abs()
    relative = torch.where(error > 0, error / y.abs(), 0.0)
    broken = (relative > xi).any(1)
    certain = not any(bool(block.drawn.any()) for block in blocks.values())
    verdict = Verdict.FALSIFIED if certain and bool(broken.any()) else Verdict.CONDITIONAL
    detail = (
        f"Relative error of every output at most {xi:.3g} on S, as long as every block's epsilon holds; measured "
        f"{float(relative.max()):.3g}; {tail}."
    )
    return Finding("C18", verdict, len(y), int(broken.sum()), float(relative.max()) / xi, detail, data=data)


def disagreement(cell: Cell) -> dict[str, Any]:
    """How often the pruned network predicts another class than the dense one on fresh points: an exact upper bound."""
    context = cell.context
    y, yhat = context.dense_outputs, cell.context.pruned_outputs(cell.keep)
    count = int((y.argmax(1) != yhat.argmax(1)).sum())
    upper = statistics.upper_bound(count, len(y), 1 - context.alpha)
    sentence = (
        f"At keep {cell.keep:g} the prediction differs on at most {upper:.1%} of inputs, {1 - context.alpha:.0%} "
        f"confidence ({count} of {len(y)} fresh points)."
    )
    return {"keep": cell.keep, "differing": count, "points": len(y), "upper": upper, "sentence": sentence}
