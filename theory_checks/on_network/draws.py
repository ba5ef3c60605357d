"""Claims C9, C10, C13 and C11 on a user's network: means and rates over independent draws.

The method itself is drawn: the network is pruned with many seeds, each an independent draw set (`own_draws`). C10 and
C13 speak of one (block, x, p, tau) at a time, at rates for which so few seeds say little. The hardest are found from
the exact standard deviation of the error, before any draw; each is then tested by itself, on the method's seeds and on
many more draw sets by the library's sampler, under the law that claim C9 tests the method for: nothing is pooled.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from torch import Tensor

from sipp_bench.machine.seeds import derived_seed
from sipp_bench.methods.sipp import SamplingMethod, split_delta
from theory_checks.cases import oracle
from theory_checks.evidence import statistics
from theory_checks.evidence.finding import Finding, Verdict
from theory_checks.on_network.capture import BATCH, layer_batches
from theory_checks.on_network.context import Cell, NotApplicable, rounding_of
from theory_checks.on_network.drawn_blocks import drawn, sampled

BETA = 1e-3


def check_rates(cell: Cell) -> Finding:
    """C10: Pr(|Zhat - Z| > eps Z) <= delta over the draws of each block that is drawn whole."""
    return _check_draws(cell, "C10")


def check_mixture(cell: Cell) -> Finding:
    """C13: the same for blocks whose largest sensitivities are kept."""
    return _check_draws(cell, "C13")


def _check_draws(cell: Cell, claim: str) -> Finding:
    context, found = cell.context, drawn(cell)
    if claim not in found.guarantee.claims:
        raise NotApplicable(f"{context.method} draws by claim {'C13' if claim == 'C10' else 'C10'}")
    delta = found.guarantee.delta
    if found.guarantee.simultaneous:
        delta = split_delta(delta, sum(int(layer.active.sum()) for layer in context.sensitivity.values()))
    telling, can_fail = (sum(int(mask.sum()) for mask in each.values()) for each in (found.telling, found.can_fail))
    data: dict[str, Any] = {"keep": cell.keep, "drawn": found.blocks, "telling": telling, "delta": delta}
    said = f"{telling} of {found.blocks} drawn blocks have epsilon < 1"
    if not can_fail:
        return Finding(claim, Verdict.CANNOT_FAIL, 0, 0, 0.0, f"{said}; none has epsilon < max(T - 1, 1).", data=data)
    # Each instance is decided twice: by the sampler's draw sets, and by the method's own.
    level = context.effort.level / (2 * len(found.instances))
    many, few = (statistics.describe(n, delta, 1.0, level) for n in (context.effort.trials, found.draws.seeds))
    rng = np.random.default_rng([context.seed, 10])
    rows: list[dict[str, Any]] = []
    for instance, ratios in zip(found.instances, found.ratios, strict=True):
        more = sampled(found.draws.laws[instance.name], instance, many.trials, rng)
        count, own = (_exceeding(each, found.limit(instance)) for each in (more, ratios))
        rows.append({
            "layer": instance.name, "neuron": instance.row, "sign": "+-"[instance.column],
            "hardness": instance.hardness, "count": count, "own": own,
        })  # fmt: skip
    rejected = sum(many.rejects(row["count"]) or few.rejects(row["own"]) for row in rows)
    worst, own = (max(row[key] for row in rows) for key in ("count", "own"))
    interval = statistics.clopper_pearson(worst, many.trials)
    verdict = Verdict.NOT_FALSIFIED if telling else Verdict.USELESS
    detail = (
        f"{said}; {len(rows)} hardest (block, x, p, tau): of {many.trials} draw sets each by the library's sampler at "
        f"most {worst} exceed, rate {interval.low:.2g} to {interval.high:.2g} (95 %), delta {delta:g}, and of "
        f"{few.trials} by the method itself at most {own}; hardness {rows[0]['hardness']:.2g}."
    )
    if rejected:
        verdict, detail = Verdict.FALSIFIED, f"{rejected} instances exceed too often. {detail}"
    data |= {"seeds": few.trials, "instances": rows}
    detectable = statistics.smallest_detectable(many.trials, delta, level, BETA)
    return Finding(
        claim, verdict, many.trials, worst, max(worst / max(many.critical - 1, 1), own / max(few.critical - 1, 1)),
        detail, interval, context.effort.level, BETA, detectable, data,
    )  # fmt: skip


def _exceeding(ratios: Tensor, limit: float) -> int:
    """Draw sets with |Zhat / Z - 1| above the limit; NaN is."""
    return int((~((ratios - 1).abs() <= limit)).sum())


def check_mean(cell: Cell) -> Finding:
    """C9: the method's own draws, seed by seed. In every drawn block of every weight what_j = n_j / (m q_j) w_j with
    whole n_j that add up to m; each n_j binomial over the seeds, so that E[Zhat] = Z for every x; as many distinct
    weights as expected; blocks and weights independent of each other."""
    found, level = drawn(cell), cell.context.effort.level
    broken, p_values = found.draws.broken(), found.draws.p_values()
    least = min(p_values.values(), default=1.0)
    failed = broken + [f"{name}: p = {p:.2g}" for name, p in p_values.items() if p <= level / len(p_values)]
    off = max((abs(float(ratios.mean()) - 1) for ratios in found.ratios), default=0.0)
    seeds = found.draws.seeds
    detail = (
        f"The method itself drawn with {seeds} seeds, {found.blocks} blocks of {len(found.draws.laws)} weights: whole "
        f"counts that add up to m, in {len(p_values)} tests as the multinomial law has them (smallest p-value "
        f"{least:.2g}); at the {len(found.instances)} hardest (block, x, p, tau) the mean of Zhat / Z is off by "
        f"{off:.2g} at most."
    )
    verdict = Verdict.NOT_FALSIFIED
    if failed:
        verdict, detail = Verdict.FALSIFIED, f"{'; '.join(failed)}. {detail}"
    worst = math.inf if broken else level / max(len(p_values), 1) / max(least, 1e-300)
    data = {"keep": cell.keep, "seeds": seeds, "drawn": found.blocks, "off": off, "p_values": p_values}
    return Finding("C9", verdict, seeds, len(failed), worst, detail, alpha=level, data=data)


def check_together(cell: Cell) -> Finding:
    """C11: with delta split over all active (block, x, p, tau), no drawn block exceeds anywhere on S, with
    probability at least 1 - delta; a trial is one set of draws for the whole network."""
    context = cell.context
    method = context.fitted.method
    if not isinstance(method, SamplingMethod):
        raise NotApplicable(f"{context.method} has no option to split delta")
    if method.patch_reduction != "max":
        raise NotApplicable("sensitivities averaged over patches speak of averages, not of each patch")
    fitted = replace(context.fitted, method=replace(method, simultaneous=True))
    first = fitted.prune(cell.keep, context.seed).guarantee
    assert first is not None
    if first.deterministic:
        raise NotApplicable("no block is drawn at this keep ratio once delta is split")
    useful = {name: (draws > 0) & (first.epsilon[name] < 1) for name, draws in first.draws.items()}
    blocks, telling = (sum(int(mask.sum()) for mask in masks) for masks in (
        [draws > 0 for draws in first.draws.values()], useful.values(),
    ))  # fmt: skip
    data = {"keep": cell.keep, "drawn": blocks, "telling": telling, "delta": context.delta}
    said = f"{telling} of {blocks} drawn blocks have epsilon < 1 with delta split among all that are active"
    if not telling:
        return Finding("C11", Verdict.USELESS, 0, 0, 0.0, f"{said}: nothing to test.", data=data)
    test = statistics.describe(context.draws, context.delta, 1.0, context.effort.level)
    if test.critical > test.trials:
        detail = f"{said}, but {test.trials} sets of draws could not show a rate above {context.delta:g}: ask for more."
        return Finding("C11", Verdict.CANNOT_FAIL, 0, 0, 0.0, detail, data=data)
    count = 0
    for trial in range(context.draws):
        pruned = fitted.prune(cell.keep, derived_seed(context.seed, f"C11, set of draws {trial}"))
        assert pruned.guarantee is not None
        weights = {name: p.detach() for name, p in pruned.model.named_parameters() if name in useful}
        count += _any_exceeds(cell, weights, pruned.guarantee.epsilon, useful)
    interval = statistics.clopper_pearson(count, test.trials)
    verdict = Verdict.FALSIFIED if test.rejects(count) else Verdict.NOT_FALSIFIED
    detail = (
        f"{said}; {count} of {test.trials} draw sets exceed anywhere, rate {interval.low:.2g} to {interval.high:.2g}."
    )
    return Finding(
        "C11", verdict, test.trials, count, count / max(test.critical - 1, 1), detail, interval, context.effort.level,
        BETA, statistics.smallest_detectable(test.trials, context.delta, context.effort.level, BETA), data,
    )  # fmt: skip


def _any_exceeds(
    cell: Cell, weights: Mapping[str, Tensor], epsilons: Mapping[str, Tensor], useful: Mapping[str, Tensor]
) -> bool:
    for name, layer, x in layer_batches(cell.context.model, cell.context.points.points(BATCH)):
        if name in useful and bool(useful[name].any()):
            r = oracle.relative_errors(layer, x, weights[name]).amax((0, 1, 4))
            limit = epsilons[name] + rounding_of(epsilons[name], layer.weight[0].numel(), layer.weight.dtype)
            if bool(((r > limit) & useful[name]).any()):
                return True
    return False
