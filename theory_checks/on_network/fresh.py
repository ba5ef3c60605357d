"""Claims C14 to C18 on a user's network, and how often its predictions differ on fresh points.

Fresh points are split at random, by the seed: one half calibrates (C16, C17), the other tests. With S or the
calibrating half held fixed the number of exceedances is beta-binomial, which the tests here use exactly.
"""

import copy
import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sipp_bench import bounds
from sipp_bench.compression.rounding import gamma
from sipp_bench.errors import ModelError
from sipp_bench.network.blocks import median
from theory_checks.certificate import composition
from theory_checks.evidence import statistics
from theory_checks.evidence.finding import Finding, Verdict
from theory_checks.evidence.wording import percent_up
from theory_checks.on_network.context import Cell, Context, NotApplicable, outputs, rounding_of
from theory_checks.on_network.disagreement import prediction_disagreement


def check_fresh_rates(context: Context) -> Finding:
    """C14: Pr(g_j(x) > s_j) <= 1/(n+1) for each weight, over S and x. Given S the rate of a weight without ties is
    Beta(1, n), so that its count over m fresh points is beta-binomial; all N weights are tested, at level / N each."""
    look, n, m = context.look, len(context.points), len(context.fresh)
    worst, name = max((int(counts.max()), name) for name, counts in look.counts.items())
    weights = sum(counts.numel() for counts in look.counts.values())
    level = context.effort.level / weights
    rejected = statistics.beta_binomial_p_value(worst, m, 1, n) <= level
    can_fail = statistics.beta_binomial_p_value(m, m, 1, n) <= level
    at_one = look.audit.exceedances[0]
    data = {"expected": look.audit.expected, "per_weight": at_one.per_weight, "worst": worst, "worst_layer": name}
    detail = (
        f"A single weight exceeds its sensitivity at {at_one.per_weight:.2%} of fresh points on average (claimed "
        f"{look.audit.expected:.2%} at most, on average over S); the worst of {weights} at {worst} of {m}, in {name}."
    )
    if not can_fail:
        detail += " So few points could not show a violation."
        return Finding("C14", Verdict.CANNOT_FAIL, 0, 0, 0.0, detail, data=data)
    verdict = Verdict.FALSIFIED if rejected else Verdict.NOT_FALSIFIED
    if rejected:
        detail += " That is too often for points of one and the same source: is the fresh sample from where S is from?"
    return Finding("C14", verdict, m, worst, worst / m, detail, alpha=context.effort.level, data=data)


def check_assumption(context: Context) -> Finding:
    """C15 rests on an assumption about the tails of g; what the audit of it gave."""
    found = context.look.audit
    data = {
        "exceedances": [
            {"K": e.factor, "any_weight": e.any_weight, "at_most": e.at_most, "per_weight": e.per_weight}
            for e in found.exceedances
        ],
        "supported_delta": found.exceedances[0].supported_delta,
        "weights_with_s_0": found.inactive,
    }
    rates = "; ".join(f"K = {e.factor:g}: {e.any_weight} (at most {percent_up(e.at_most)})" for e in found.exceedances)
    detail = (
        f"Fresh points of {found.points} at which some weight has g > K s, {rates}. So many points support no failure "
        f"rate below {percent_up(found.exceedances[0].supported_delta)}."
    )
    return Finding("C15", Verdict.CONDITIONAL, found.points, found.exceedances[0].any_weight, 0.0, detail, data=data)


def check_conformal_factor(cell: Cell) -> Finding:
    """C16: K-hat from one half of the fresh points; on the other half r <= K-hat sum_P s for all P at once, as often
    as claimed; and whether K-hat sum_P s says anything about this pruning."""
    context = cell.context
    calibration, test = _halves(context)
    ratios = context.look.audit.ratios
    k_hat = bounds.conformal_quantile(ratios[calibration], context.alpha)
    covered = int((ratios[test] <= k_hat).sum())
    data: dict[str, Any] = {"keep": cell.keep, "K_hat": k_hat, "calibration": len(calibration), "test": len(test)}
    if math.isinf(k_hat):
        detail = (
            f"K-hat is infinite: {int(ratios[calibration].isinf().sum())} of {len(calibration)} calibration points use "
            "a weight that S never did, or there are too few points."
        )
        return Finding("C16", Verdict.USELESS, 0, 0, 0.0, detail, data=data)
    blocks = [b for b in cell.blocks().values() if bool((b.concerned & ~b.drawn).any())]
    lost = torch.cat([b.lost[b.concerned & ~b.drawn] for b in blocks]) if blocks else torch.zeros(0)
    telling = int((k_hat * lost < 1).sum())
    data["telling"] = telling
    detail = (
        f"K-hat = {k_hat:.3g}: {covered} of {len(test)} test points have g <= K-hat s for every weight (claimed "
        f"{1 - context.alpha:.0%}); K-hat sum_P s < 1 for {telling} of {len(lost)} blocks that lost weights."
    )
    return _coverage("C16", context, calibration, test, covered, detail, data, None if telling else Verdict.USELESS)


def check_split_conformal(cell: Cell) -> Finding:
    """C17 for the score r(x) = max over k of |yhat_k - y_k|: its conformal quantile from one half of the fresh points
    covers the other half as often as its beta-binomial law says."""
    context = cell.context
    y, yhat = context.dense_outputs, context.pruned_outputs(cell.keep)
    scores = (yhat - y).abs().amax(1)
    calibration, test = _halves(context)
    quantile = bounds.conformal_quantile(scores[calibration], context.alpha)
    covered = int((scores[test] <= quantile).sum())
    span = median(y.amax(1) - y.amin(1))
    data: dict[str, Any] = {"keep": cell.keep, "quantile": quantile, "range_median": span}
    if math.isinf(quantile):
        detail = f"{len(calibration)} calibration points are too few for alpha {context.alpha:g}."
        return Finding("C17", Verdict.USELESS, 0, 0, 0.0, detail, data=data)
    detail = (
        f"The largest logit error is at most {quantile:.3g} on {1 - context.alpha:.0%} of inputs ({covered} of "
        f"{len(test)} test points); the median range of the logits is {span:.3g}."
    )
    empty = Verdict.CANNOT_FAIL if quantile >= span else None
    return _coverage("C17", context, calibration, test, covered, detail, data, empty)


def _halves(context: Context) -> tuple[Tensor, Tensor]:
    """Indices of the fresh points that calibrate, and of those that test."""
    if len(context.fresh) < 2:
        raise NotApplicable("one fresh point cannot both calibrate and test")
    order = torch.from_numpy(np.random.default_rng([context.seed, 17]).permutation(len(context.fresh)))
    return order[: len(order) // 2], order[len(order) // 2 :]


def _coverage(
    claim: str,
    context: Context,
    calibration: Tensor,
    test: Tensor,
    covered: int,
    detail: str,
    data: dict[str, Any],
    empty: Verdict | None,
) -> Finding:
    """Decide coverage by its exact law; `empty`: the verdict of a bound that is sound and says nothing."""
    rank = bounds.conformal_rank(len(calibration), context.alpha)
    law = len(calibration) + 1 - rank, rank  # of the misses
    misses = len(test) - covered
    if statistics.beta_binomial_p_value(misses, len(test), *law) <= context.effort.level:
        empty, detail = Verdict.FALSIFIED, f"Covered too seldom. {detail}"
    elif statistics.beta_binomial_p_value(len(test), len(test), *law) > context.effort.level:
        empty, detail = empty or Verdict.CANNOT_FAIL, f"{detail} So few points could not show a violation."
    return Finding(
        claim, empty or Verdict.NOT_FALSIFIED, len(test), misses, misses / len(test), detail,
        statistics.clopper_pearson(misses, len(test), 1 - context.alpha), context.effort.level, data=data,
    )  # fmt: skip


def check_composition(cell: Cell) -> Finding:
    """C18 on S: xi' <= Delta (xi + eps + xi eps), layer by layer, Delta over all neurons, patches and points."""
    context = cell.context
    factors, complete = context.cancellations
    blocks, parameters = cell.blocks(), dict(context.model.named_parameters())
    if not factors:
        raise NotApplicable("no weight is applied as a linear map")
    xi, spoken = 0.0, 0
    rows: list[dict[str, Any]] = []
    for name, delta in factors.items():
        block, w = blocks.get(name), parameters[name]
        # A weight that stays dense has none, and error 0.
        epsilon = float(block.epsilon[block.active].max()) if block and bool(block.active.any()) else 0.0
        if math.isfinite(xi):
            # Rounding of both float64 runs is at most gamma of every |w_ij a_j| each (claim C18's check has the same).
            n = w[0].numel()
            room = float(rounding_of(torch.tensor(epsilon).double(), n, w.dtype)) + 8 * gamma(n + 4)
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
    try:
        found = prediction_disagreement(context.model, cell.pruned.model, context.fresh.points(512), 1 - context.alpha)
    except ModelError as error:
        raise NotApplicable(str(error)) from error
    sentence = f"Predictions that differ from the dense network's, {found.statement(cell.keep)}."
    return {
        "keep": cell.keep,
        "differing": found.count,
        "points": found.points,
        "upper": found.at_most,
        "sentence": sentence,
    }
