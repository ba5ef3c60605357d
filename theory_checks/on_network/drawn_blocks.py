"""What the checks of draws on a user's network share: the method drawn with many seeds, and the hardest places."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from sipp_bench.compression.guarantee import Guarantee
from sipp_bench.machine.seeds import derived_seed
from sipp_bench.methods.sampling import BlockSampler, reweighted
from sipp_bench.methods.sipp import SamplingMethod, SippObservation
from sipp_bench.network.blocks import by_block
from theory_checks.cases import oracle
from theory_checks.evidence.own_draws import Law, OwnDraws, always_kept, laws_of
from theory_checks.on_network.capture import BATCH, layer_batches
from theory_checks.on_network.context import Cell, NotApplicable, rounding_of

# Instances that are tested; the level of the claim's decision is shared among them.
HARDEST = 6
# A seed draws a whole network: fewer of them for more weights than this, at the trials of the quick effort.
_DRAWN_WEIGHTS = 20_000_000


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


@dataclass(frozen=True)
class Drawn:
    """A method's own draws at one keep ratio.

    telling, can_fail: by name, drawn blocks (neurons, 2) with epsilon < 1, and with epsilon below max(T - 1, 1), the
    most that draws can be off. instances: the hardest of those that tell, else of those that can fail, else of all.
    ratios: of each instance Zhat / Z with every seed.
    """

    guarantee: Guarantee
    draws: OwnDraws
    telling: Mapping[str, Tensor]
    can_fail: Mapping[str, Tensor]
    instances: Sequence[Instance]
    ratios: Sequence[Tensor]

    @property
    def blocks(self) -> int:
        """How many are drawn."""
        return sum(int(law.drawn.sum()) for law in self.draws.laws.values())

    def limit(self, instance: Instance) -> float:
        """Epsilon of the instance's block, and the room for rounding."""
        epsilon = self.guarantee.epsilon[instance.name][instance.row, instance.column]
        w = self.draws.laws[instance.name].weight
        return float(epsilon + rounding_of(epsilon, w.shape[1], w.dtype))


def drawn(cell: Cell) -> Drawn:
    """The method, drawn with as many seeds as the effort has; once for each keep ratio of a call of `verify`.

    Raises NotApplicable for a method that draws nothing here.
    """
    found = cell.context.own_draws
    if cell.keep not in found:
        found[cell.keep] = _drawn(cell)
    result = found[cell.keep]
    if not isinstance(result, Drawn):
        raise NotApplicable(str(result))
    return result


def seeds_for(trials: int, weights: int) -> int:
    """How many whole networks are drawn: of 2,000 trials 40, and fewer for networks of more than half a million."""
    return min(max(trials // 50, 20), max(8, _DRAWN_WEIGHTS * trials // 2000 // weights))


def _drawn(cell: Cell) -> Drawn | str:
    """See `drawn`; or the reason why there is nothing."""
    context, guarantee = cell.context, cell.pruned.guarantee
    if guarantee is None or guarantee.deterministic:
        return f"{context.method} draws nothing" + ("" if guarantee is None else " at this keep ratio")
    if not guarantee.per_patch:
        return "sensitivities averaged over patches speak of averages, not of each patch"
    count = seeds_for(context.effort.trials, cell.pruned.weights)
    seeds = [derived_seed(context.seed, f"C9, set of draws {trial}") for trial in range(count)]
    prune = partial(context.fitted.prune, cell.keep)
    weights = {name: old for name, (old, _) in cell.weights.items()}
    laws = laws_of(weights, context.sensitivity, guarantee, _kept(cell, weights, seeds))
    own = OwnDraws(laws)
    epsilon = {name: guarantee.epsilon[name].cpu() for name in own.laws}
    telling = {name: law.drawn & (epsilon[name] < 1) for name, law in own.laws.items()}
    # An error above T - 1 cannot happen, so that a bound above it cannot fail.
    can_fail = {name: law.drawn & (epsilon[name] < (law.totals - 1).clamp(min=1)) for name, law in own.laws.items()}
    eligible = next(
        (each for each in (telling, can_fail) if any(bool(mask.any()) for mask in each.values())),
        {name: law.drawn for name, law in own.laws.items()},
    )
    instances = hardest(cell, own.laws, epsilon, eligible)
    ratios: list[list[Tensor]] = [[] for _ in instances]
    for seed in seeds:
        pruned = prune(seed)
        own.add(pruned)
        values = dict(pruned.model.named_parameters())
        for found, instance in zip(ratios, instances, strict=True):
            row = values[instance.name].detach().flatten(1)[instance.row][None]
            found.append(_ratio(instance, own.laws[instance.name], row))
    return Drawn(guarantee, own, telling, can_fail, instances, [torch.cat(found) for found in ratios])


def _kept(cell: Cell, weights: Mapping[str, Tensor], seeds: Sequence[int]) -> Mapping[str, Tensor]:
    """Weights that stay as they are whatever the seed: by the plan, or, of a method without one, by all its seeds."""
    fitted, guarantee = cell.context.fitted, cell.pruned.guarantee
    assert guarantee is not None
    if isinstance(fitted.method, SamplingMethod) and isinstance(fitted.observation, SippObservation):
        return fitted.method.plan(fitted.observation, weights, cell.pruned.requested).kept
    kept = always_kept(partial(fitted.prune, cell.keep), weights, seeds)
    if "C13" in guarantee.claims:
        return kept
    # Claim C10 draws from all of a block.
    return {
        name: mask.flatten(1) & by_block(guarantee.draws[name] == 0, weights[name].flatten(1) > 0)
        for name, mask in kept.items()
    }


def hardest(
    cell: Cell, laws: Mapping[str, Law], epsilon: Mapping[str, Tensor], eligible: Mapping[str, Tensor]
) -> list[Instance]:
    """The instances with the largest standard deviation over epsilon, at most one a block (claims C9 and C13):

    Var(Zhat) / Z^2 = (T_R sum over R of g^2 / s - rho^2) / r, rho = sum over R of g, r draws.
    """
    found: list[Instance] = []
    for name, layer, x in layer_batches(cell.context.model, cell.context.points.points(BATCH)):
        if name not in eligible or not bool(eligible[name].any()):
            continue
        law, w = laws[name], layer.weight.detach().double().flatten(1)
        q, s, draws, totals, usable, eps = (
            t.to(w.device) for t in (law.q, law.s.double(), law.draws, law.totals, eligible[name], epsilon[name])
        )
        rest = torch.where(q > 0, w, 0.0)
        square = torch.where(q > 0, rest * rest / s, 0.0) * w.sign()
        z, z_rest, moment = (
            oracle.quadrant_sums(layer, value, weight.reshape(layer.weight.shape))
            for value, weight in ((x, w), (x, rest), (x * x.abs(), square))
        )
        for column in (0, 1):
            m, total = draws[:, column, None], totals[:, column, None]
            variance = (total * moment[..., column, :] - z_rest[..., column, :] ** 2).clamp(min=0) / m.clamp(min=1)
            spread = variance.sqrt() / z[..., column, :] / eps[:, column, None]
            live = (z[..., column, :] > 0) & usable[:, column, None]
            found += _best(name, layer, x, torch.where(live, spread, -1.0), column)
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
            instances.append(Instance(name, row, column, a.cpu(), float(values[row])))
    return instances


def _one_per_block(found: list[Instance]) -> list[Instance]:
    best: dict[tuple[str, int, int], Instance] = {}
    for instance in sorted(found, key=lambda each: -each.hardness):
        best.setdefault((instance.name, instance.row, instance.column), instance)
    return list(best.values())[:HARDEST]


def sampled(law: Law, instance: Instance, trials: int, rng: np.random.Generator) -> Tensor:
    """Zhat / Z of one instance in `trials` independent draw sets by the library's sampler: (trials,) float64."""
    w, s, kept = law.weight[instance.row], law.s[instance.row], law.kept[instance.row]
    draws = torch.zeros(2, dtype=torch.int64)
    draws[instance.column] = law.draws[instance.row, instance.column]
    found = []
    for part in torch.arange(trials).split(500):
        size = (len(part), -1)
        sampler = BlockSampler(s.expand(size), (w > 0).expand(size), ~kept.expand(size))
        rows = reweighted(sampler, w.expand(size), draws.expand(size), rng)
        found.append(_ratio(instance, law, rows + torch.where(kept, w, 0)))
    return torch.cat(found)


def _ratio(instance: Instance, law: Law, rows: Tensor) -> Tensor:
    """Zhat / Z for pruned rows (..., n) of the instance's neuron."""
    sign = 1 - 2 * instance.column
    z, zhat = ((w.double().cpu() * sign).clamp(min=0) @ instance.a for w in (law.weight[instance.row], rows))
    return zhat / z
