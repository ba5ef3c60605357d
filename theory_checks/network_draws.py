"""Claims C9, C10, C13 and C11 on a user's network: means and rates over independent draws.

C9, C10 and C13 speak of one (block, x, p, tau) at a time. The hardest are found from the exact standard deviation of
the error, before any draw; each is then tested by itself, on draw sets of its own: nothing is pooled.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sipp_bench.methods.sampling import BlockSampler, reweighted
from sipp_bench.methods.sipp import Plan, SamplingMethod, SippObservation
from sipp_bench.seeds import derived_seed
from theory_checks import oracle, statistics
from theory_checks.capture import BATCH, layer_batches
from theory_checks.claims.base import Finding, Verdict
from theory_checks.network import Cell, NotApplicable, rounding_of

# Instances that are tested; the level of the claim's decision is shared among them.
HARDEST = 6
BETA = 1e-3


@dataclass(frozen=True)
class Instance:
    """One (block, x, p, tau): a row of a weight, the sign of its block, and the activations (a)_tau that it meets.

    hardness: standard deviation of the relative error over epsilon.
    """

    name: str
    row: int
    column: int
    a: Tensor
    hardness: float


def check_rates(cell: Cell) -> Finding:
    """C10: Pr(|Zhat - Z| > eps Z) <= delta over the draws of each block that is drawn whole."""
    return _check_draws(cell, "C10")


def check_mixture(cell: Cell) -> Finding:
    """C13: the same for blocks whose largest sensitivities are kept."""
    return _check_draws(cell, "C13")


def _check_draws(cell: Cell, claim: str) -> Finding:
    method, plan, totals = _plan(cell)
    if claim not in method.claims:
        raise NotApplicable(f"{method.name} draws by claim {'C13' if claim == 'C10' else 'C10'}")
    guarantee = cell.pruned.guarantee
    assert guarantee is not None
    delta = guarantee.delta
    if guarantee.simultaneous:
        delta = method.split_delta(_observation(cell))
    drawn = {name: draws > 0 for name, draws in guarantee.draws.items()}
    blocks = sum(int(mask.sum()) for mask in drawn.values())
    if not blocks:
        raise NotApplicable("no block is drawn at this keep ratio")
    useful = {name: mask & (guarantee.epsilon[name] < 1) for name, mask in drawn.items()}
    telling = sum(int(mask.sum()) for mask in useful.values())
    # An error above T - 1 cannot happen, so that a bound above it cannot fail.
    can_fail = {
        name: mask & (guarantee.epsilon[name] < (totals[name] - 1).clamp(min=1)) for name, mask in drawn.items()
    }
    data: dict[str, Any] = {"keep": cell.keep, "drawn": blocks, "telling": telling, "delta": delta}
    said = f"{telling} of {blocks} drawn blocks have epsilon < 1"
    if not any(bool(mask.any()) for mask in can_fail.values()):
        return Finding(claim, Verdict.CANNOT_FAIL, 0, 0, 0.0, f"{said}; none has epsilon < max(T - 1, 1).", data=data)
    instances = _hardest(cell, plan, useful if telling else can_fail)
    level = cell.context.effort.level / len(instances)
    test = statistics.describe(cell.context.effort.trials, delta, 1.0, level)
    rng = np.random.default_rng([cell.context.seed, 10])
    counts = []
    for instance in instances:
        epsilon = guarantee.epsilon[instance.name][instance.row, instance.column]
        w = cell.weights[instance.name][0]
        limit = float(epsilon + rounding_of(epsilon, w[0].numel(), w.dtype))
        counts.append(int(((_ratios(cell, plan, instance, test.trials, rng) - 1).abs() > limit).sum()))
    worst = max(range(len(counts)), key=counts.__getitem__)
    rejected = sum(test.rejects(count) for count in counts)
    interval = statistics.clopper_pearson(counts[worst], test.trials)
    verdict = Verdict.NOT_FALSIFIED if telling else Verdict.USELESS
    detail = (
        f"{said}; {len(instances)} hardest (block, x, p, tau), {test.trials} draw sets each: at most {counts[worst]} "
        f"exceed, rate {interval.low:.2g} to {interval.high:.2g} (95 %), delta {delta:g}; "
        f"hardness {instances[0].hardness:.2g}."
    )
    if rejected:
        verdict, detail = Verdict.FALSIFIED, f"{rejected} instances exceed too often. {detail}"
    data["instances"] = [
        {"layer": i.name, "neuron": i.row, "sign": "+-"[i.column], "hardness": i.hardness, "count": count}
        for i, count in zip(instances, counts, strict=True)
    ]
    detectable = statistics.smallest_detectable(test.trials, delta, level, BETA)
    return Finding(
        claim, verdict, test.trials, counts[worst], counts[worst] / max(test.critical - 1, 1), detail, interval,
        cell.context.effort.level, BETA, detectable, data,
    )  # fmt: skip


def check_mean(cell: Cell) -> Finding:
    """C9: E[Zhat] = Z. The average over n draw sets is one of n m draws, each within [0, T_R Z] and of variance at
    most v Z^2, so that Bernstein's inequality bounds its distance from Z at the level of the decision."""
    _, plan, totals = _plan(cell)
    guarantee = cell.pruned.guarantee
    assert guarantee is not None
    drawn = {name: draws > 0 for name, draws in guarantee.draws.items()}
    instances = _hardest(cell, plan, drawn)
    if not instances:
        raise NotApplicable("no block is drawn at this keep ratio")
    context, trials = cell.context, cell.context.effort.trials
    log_term = math.log(2 * len(instances) / context.effort.level)
    rng = np.random.default_rng([context.seed, 9])
    off, allowed = [], []
    for instance in instances:
        place = instance.row, instance.column
        t, count = float(totals[instance.name][place]), trials * int(guarantee.draws[instance.name][place])
        a, v = t * log_term / 3, t * t / 4 if t <= 2 else t - 1
        # The pruned weights are rounded once each, by at most u of Zhat, and so are the probabilities that made them.
        dtype = cell.weights[instance.name][0].dtype
        room = float(rounding_of(torch.tensor(0.0).double(), len(instance.a), dtype))
        allowed.append((a + math.sqrt(a * a + 2 * v * log_term * count)) / count + room)
        off.append(abs(float(_ratios(cell, plan, instance, trials, rng).mean()) - 1))
    ratios = [one / most for one, most in zip(off, allowed, strict=True)]
    violations = sum(ratio > 1 for ratio in ratios)
    detail = (
        f"{len(instances)} hardest (block, x, p, tau), {trials} draw sets each: the mean of Zhat / Z is off by "
        f"{max(off):.2g} at most; {min(allowed):.2g} to {max(allowed):.2g} would falsify."
    )
    verdict = Verdict.FALSIFIED if violations else Verdict.NOT_FALSIFIED
    data = {"keep": cell.keep, "off": off, "allowed": allowed}
    level = context.effort.level
    return Finding("C9", verdict, trials, violations, max(ratios), detail, alpha=level, data=data)


def check_together(cell: Cell) -> Finding:
    """C11: with delta split over all active (block, x, p, tau), no drawn block exceeds anywhere on S, with
    probability at least 1 - delta; a trial is one set of draws for the whole network."""
    context = cell.context
    method, _, _ = _plan(cell)
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


def _observation(cell: Cell) -> SippObservation:
    observation = cell.context.fitted.observation
    assert isinstance(observation, SippObservation)
    return observation


def _plan(cell: Cell) -> tuple[SamplingMethod, Plan, dict[str, Tensor]]:
    """The method, its plan and the blocks' T_R, what it draws from."""
    fitted = cell.context.fitted
    method = fitted.method
    if not isinstance(method, SamplingMethod):
        raise NotApplicable(f"{method.name} draws nothing")
    if method.patch_reduction != "max":
        raise NotApplicable("sensitivities averaged over patches speak of averages, not of each patch")
    observation = _observation(cell)
    weights = {name: old for name, (old, _) in cell.weights.items()}
    plan = method.plan(observation, weights, cell.pruned.requested)
    totals = {name: _sampler(cell, plan, name).totals for name in weights}
    return method, plan, totals


def _sampler(cell: Cell, plan: Plan, name: str, rows: Tensor | None = None) -> BlockSampler:
    s, positive = _observation(cell).rows(name)
    rest = ~plan.kept[name]
    if rows is not None:
        s, positive, rest = s[rows], positive[rows], rest[rows]
    return BlockSampler(s, positive, rest)


def _hardest(cell: Cell, plan: Plan, eligible: dict[str, Tensor]) -> list[Instance]:
    """The instances with the largest standard deviation over epsilon, at most one a block (claims C9 and C13):

    Var(Zhat) / Z^2 = (T_R sum over R of g^2 / s - rho^2) / r, rho = sum over R of g, r draws.
    """
    guarantee = cell.pruned.guarantee
    assert guarantee is not None
    found: list[Instance] = []
    for name, layer, x in layer_batches(cell.context.model, cell.context.points.points(BATCH)):
        if name not in eligible or not bool(eligible[name].any()):
            continue
        sampler = _sampler(cell, plan, name)
        s = _observation(cell).rows(name)[0].double()
        w = layer.weight.detach().double().flatten(1)
        rest = torch.where(sampler.q > 0, w, 0.0)
        square = torch.where(sampler.q > 0, rest * rest / s, 0.0) * w.sign()
        z, z_rest, moment = (
            oracle.quadrant_sums(layer, value, weight.reshape(layer.weight.shape))
            for value, weight in ((x, w), (x, rest), (x * x.abs(), square))
        )
        for column in (0, 1):
            draws, total = guarantee.draws[name][:, column, None], sampler.totals[:, column, None]
            variance = (total * moment[..., column, :] - z_rest[..., column, :] ** 2).clamp(min=0) / draws.clamp(min=1)
            spread = variance.sqrt() / z[..., column, :] / guarantee.epsilon[name][:, column, None]
            usable = (z[..., column, :] > 0) & eligible[name][:, column, None]
            hardness = torch.where(usable, spread, -1.0)
            found += _best(name, layer, x, hardness, column)
        found = _one_per_block(found)
    return found


def _best(name: str, layer: oracle.LinearMap, x: Tensor, hardness: Tensor, column: int) -> list[Instance]:
    """The hardest instances of one chunk. hardness: (N, P, M, tau), -1 where there is none."""
    _, p, m, _ = hardness.shape
    by_row = hardness.movedim(2, 0).flatten(1)  # (M, N * P * tau)
    values, places = by_row.max(1)
    instances = []
    for row in values.topk(min(HARDEST, m)).indices.tolist():
        if values[row] > 0:
            place = int(places[row])
            point, patch, tau = place // (2 * p), place // 2 % p, place % 2
            group = row // (m // getattr(layer, "groups", 1))
            a = oracle.patches(layer, x[point : point + 1])[group, 0, patch]
            a = (a if tau == 0 else -a).clamp(min=0)
            instances.append(Instance(name, row, column, a, float(values[row])))
    return instances


def _one_per_block(found: list[Instance]) -> list[Instance]:
    best: dict[tuple[str, int, int], Instance] = {}
    for instance in sorted(found, key=lambda each: -each.hardness):
        best.setdefault((instance.name, instance.row, instance.column), instance)
    return list(best.values())[:HARDEST]


def _ratios(cell: Cell, plan: Plan, instance: Instance, trials: int, rng: np.random.Generator) -> Tensor:
    """Zhat / Z of one instance in `trials` independent draw sets: (trials,) float64."""
    guarantee = cell.pruned.guarantee
    assert guarantee is not None
    w = cell.weights[instance.name][0].flatten(1)[instance.row]
    draws = torch.zeros(2, dtype=torch.int64, device=w.device)
    draws[instance.column] = guarantee.draws[instance.name][instance.row, instance.column]
    kept = torch.where(plan.kept[instance.name][instance.row], w, 0)
    sign = 1 - 2 * instance.column
    z = (w.double() * sign).clamp(min=0) @ instance.a
    found = []
    for part in torch.arange(trials).split(500):
        rows = torch.full((len(part),), instance.row, device=w.device)
        sampler = _sampler(cell, plan, instance.name, rows)
        pruned = kept + reweighted(sampler, w.expand(len(part), -1), draws.expand(len(part), 2), rng)
        found.append(((pruned.double() * sign).clamp(min=0) @ instance.a) / z)
    return torch.cat(found)


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
