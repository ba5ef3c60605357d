"""A method's own draws: whole networks, pruned with independent seeds, counted block by block (claims C9 and C13).

    what_j = n_j / (m q_j) w_j,   q_j = s_j / T_R,   n ~ Multinomial(m, q) for each block, all blocks independent.

The unit is one seed. Of each pruned network the counts n_j are read off its weights: whole numbers that add up to m in
every drawn block, or the block is wrong, with certainty. Over all seeds each weight's count is Binomial(seeds m, q_j);
the number of distinct weights has a known mean; and blocks of two layers have nothing to do with each other.
"""

import itertools
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from sipp_bench.compression.guarantee import Guarantee
from sipp_bench.compression.rounding import gamma, sensitivity_rounding
from sipp_bench.sensitivity.measure import Sensitivity

# Blocks of a layer that are compared with those of another one.
_COMPARED = 16


@dataclass(frozen=True)
class Law:
    """What one weight's pruned values are to be, rows as neurons.

    weight: w, (M, n). s: sensitivities (M, n). kept: which stay as they are (M, n). draws: m of the rest of each block,
    (M, 2), the block of positive weights first.
    """

    weight: Tensor
    s: Tensor
    kept: Tensor
    draws: Tensor

    @cached_property
    def signs(self) -> tuple[Tensor, Tensor]:
        """The weights of the two blocks of each row, each (M, n)."""
        return self.weight > 0, self.weight <= 0

    def each(self, values: Tensor) -> Tensor:
        """Sums of values (M, n) over blocks: (M, 2) float64."""
        return torch.stack([(values * sign).sum(1, dtype=torch.float64) for sign in self.signs], 1)

    def spread(self, blocks: Tensor) -> Tensor:
        """Numbers of blocks (M, 2) for each weight, (M, n)."""
        return torch.where(self.signs[0], blocks[:, :1], blocks[:, 1:])

    @cached_property
    def rest(self) -> Tensor:
        """s of what is drawn from, 0 elsewhere: (M, n) float64."""
        return torch.where(self.kept | (self.spread(self.draws) == 0), 0.0, self.s.double())

    @cached_property
    def totals(self) -> Tensor:
        """T_R of each block that is drawn, else 0: (M, 2)."""
        return self.each(self.rest)

    @cached_property
    def q(self) -> Tensor:
        """(M, n) float64."""
        return self.rest / self.spread(torch.where(self.totals > 0, self.totals, 1.0))

    @property
    def drawn(self) -> Tensor:
        """Blocks that are drawn from: (M, 2)."""
        return (self.draws > 0) & (self.totals > 0)

    @cached_property
    def _scale(self) -> Tensor:
        """m q_j / w_j, 0 for what is not drawn: (M, n)."""
        w = torch.where(self.q > 0, self.weight.double(), 1.0)
        return self.spread(self.draws) * self.q / w

    @cached_property
    def _left(self) -> Tensor:
        """What is left of the weights that are not drawn: (M, n)."""
        return torch.where(self.kept & (self.q == 0), self.weight, 0)

    @property
    def _rounding(self) -> float:
        """Relative: q is measured in the weight's precision by the method and here, and what_j is rounded to it."""
        dtype = self.weight.dtype
        kind = torch.float64 if dtype == torch.float64 else torch.float32
        return 4 * sensitivity_rounding(self.weight.shape[1], kind) + gamma(8) + gamma(2, dtype)

    @cached_property
    def _underflow(self) -> Tensor:
        """Absolute, of counts: what_j may be rounded away to 0."""
        info = torch.finfo(self.weight.dtype)
        return self._scale.abs() * info.smallest_normal * info.eps

    def read(self, pruned: Tensor) -> tuple[Tensor, Tensor]:
        """Counts n_j of one pruned weight (M, n), and which blocks (M, 2) are none: counts that are not whole or do not
        add up to m, or weights that are neither kept as they are nor 0 where nothing is drawn."""
        counts = (raw := pruned.double() * self._scale).nan_to_num(-1, -1, -1).round_()
        room = counts.abs().mul_(self._rounding).add_(self._underflow)
        off = ((raw - counts).abs() <= room).logical_not_().logical_or_(counts < 0)
        off |= pruned.mul(self.q == 0) != self._left
        wrong = self.each(off) > 0
        # Where rounding leaves it open which whole number a count is, it may be that much off.
        unclear = torch.where(room < 0.5, 0.0, room + 0.5)
        wrong |= self.drawn & ((self.each(counts) - self.draws).abs() > self.each(unclear))
        return counts.clamp(min=0), wrong


def laws_of(
    weights: Mapping[str, Tensor], sensitivity: Sensitivity, guarantee: Guarantee, kept: Mapping[str, Tensor]
) -> dict[str, Law]:
    """By name; weights: the dense ones. kept: (neurons, n) or of the weight's shape."""
    return {
        name: Law(
            weights[name].detach().flatten(1).cpu(),
            sensitivity[name].values.flatten(1).cpu(),
            kept[name].flatten(1).cpu(),
            draws.cpu(),
        )
        for name, draws in guarantee.draws.items()
    }


def always_kept(prune: Callable[[int], Any], weights: Mapping[str, Tensor], seeds: Iterable[int]) -> dict[str, Tensor]:
    """Weights that no seed changes, for a method that does not say which it keeps (claim C13)."""
    kept = {name: torch.ones_like(weight, dtype=torch.bool) for name, weight in weights.items()}
    for seed in seeds:
        for name, parameter in prune(seed).model.named_parameters():
            if name in kept:
                kept[name] &= parameter.detach() == weights[name]
    return kept


@dataclass
class _Tally:
    """Of one weight over the seeds. high: for some drawn blocks, whether its first half was drawn more than half."""

    counts: Tensor
    distinct: Tensor
    wrong: Tensor
    high: list[Tensor] = field(default_factory=list)


class OwnDraws:
    """Counts over seeds of a method that should draw by these laws."""

    def __init__(self, laws: Mapping[str, Law]) -> None:
        self.laws = {name: law for name, law in laws.items() if bool(law.drawn.any())}
        self.others = {name: law for name, law in laws.items() if name not in self.laws}
        self.seeds = 0
        self.changed_plans = 0
        self._tallies = {
            name: _Tally(torch.zeros_like(law.q), torch.zeros(law.draws.shape), torch.zeros(law.draws.shape))
            for name, law in laws.items()
        }
        self._halves = {name: _Halves.of(law) for name, law in self.laws.items()}

    def add(self, pruned: Any) -> None:
        """One more seed: something with `model` and `guarantee`, as `sipp_bench.Pruned`."""
        self.seeds += 1
        weights = dict(pruned.model.named_parameters())
        draws = pruned.guarantee.draws
        everything = self.laws | self.others
        self.changed_plans += any(not torch.equal(draws[name].cpu(), law.draws) for name, law in everything.items())
        for name, law in everything.items():
            counts, wrong = law.read(weights[name].detach().flatten(1).cpu())
            tally = self._tallies[name]
            tally.counts += counts
            tally.distinct += law.each(counts > 0)
            tally.wrong += wrong
            if name in self._halves:
                tally.high.append(self._halves[name].high(counts))

    def mean(self, name: str) -> Tensor:
        """The mean of what_j / w_j of what is drawn, from the counts: (M, n), 0 for the others."""
        law = self.laws[name]
        expected = self.seeds * law.spread(law.draws) * law.q
        return torch.where(expected > 0, self._tallies[name].counts / expected.clamp(min=1e-300), 0.0)

    def broken(self) -> list[str]:
        """What is wrong with certainty, a sentence a weight."""
        found = [f"the draws of {self.changed_plans} seeds are not those of another"] if self.changed_plans else []
        for name, tally in self._tallies.items():
            if blocks := int((tally.wrong > 0).sum()):
                found.append(
                    f"{blocks} blocks of {name} are not w n / (m q) with whole counts n that add up to m, in up to "
                    f"{int(tally.wrong.max())} of {self.seeds} seeds"
                )
        return found

    def p_values(self) -> dict[str, float]:
        """Valid p-values, each of one weight or two: counts, distinct weights, independence."""
        found = {}
        for name, law in self.laws.items():
            found[f"{name}, counts"] = self._counts(law, self._tallies[name])
            found[f"{name}, distinct weights"] = self._distinct(law, self._tallies[name])
            found[f"{name}, its blocks together"] = self._together(name, name)
        for one, other in itertools.combinations(self.laws, 2):
            found[f"{one} with {other}"] = self._together(one, other)
        return found

    def p_value(self) -> float:
        """Of all of them together, by a union bound."""
        found = self.p_values()
        return min(1.0, len(found) * min(found.values(), default=1.0))

    def _counts(self, law: Law, tally: _Tally) -> float:
        """Each weight's count over the seeds is binomial."""
        live = law.q > 0
        n = (self.seeds * law.spread(law.draws))[live].double().numpy()
        q, c = law.q[live].clamp(max=1).numpy(), tally.counts[live].numpy()
        tail = np.minimum(stats.binom.sf(c - 1, n, q), stats.binom.cdf(c, n, q))
        return min(1.0, 2 * len(c) * float(tail.min()))

    def _distinct(self, law: Law, tally: _Tally) -> float:
        """Expected distinct weights by claim C6. Whether weights are drawn is negatively associated, so that
        Bernstein's inequality holds as if they were independent; over blocks and seeds they are."""
        chance = -torch.expm1(law.spread(law.draws).double() * torch.log1p(-law.q.clamp(max=1)).clamp(min=-1000.0))
        mean, variance = (self.seeds * law.each(x) for x in (chance, chance * (1 - chance)))
        off = (tally.distinct - mean).abs()
        # All together as well: what is a little wrong everywhere.
        off = torch.cat([off.flatten(), (tally.distinct - mean).sum().abs()[None]])
        variance = torch.cat([variance.flatten(), variance.sum()[None]])
        exponent = off**2 / (2 * (variance + off / 3)).clamp(min=1e-12)
        return min(1.0, 2 * len(off) * math.exp(-float(exponent.max())))

    def _together(self, one: str, other: str) -> float:
        """Given the one's draws, products of the two's centred events are independent and of mean 0, each within a
        range of the one's size: Hoeffding's inequality. Of one weight, each block with the next one, or the one after
        that (the two blocks of a row follow each other)."""
        x, y = (self._halves[name].centred(self._tallies[name].high) for name in (one, other))
        pairings = [(x, y)]
        if one == other:
            place = torch.arange(x.shape[1])
            pairings = [(x[:, place % 2 == 0], x[:, place % 2 == 1]), (x[:, place % 4 < 2], x[:, place % 4 >= 2])]
        found = [_product_p_value(u[..., kind], v[..., kind]) for u, v in pairings for kind in (0, 1)]
        return min(1.0, len(found) * min(found))


def _product_p_value(x: Tensor, y: Tensor) -> float:
    """See `OwnDraws._together`; x, y: (seeds, blocks), of which as many as both have are compared one by one."""
    size = min(x.shape[1], y.shape[1])
    x, y = x[:, :size], y[:, :size]
    squares = float((x**2).sum())
    return min(1.0, 2 * math.exp(-2 * float((x * y).sum()) ** 2 / squares)) if squares else 1.0


@dataclass(frozen=True)
class _Halves:
    """Of the first drawn blocks of a weight, weights up to half of the mass, and how often draws fall on them: those
    that come first by place, and the rarest, since samplers go through them in the one order or the other.

    rows: of the blocks. half: (blocks, n, 2). Draws from a half are high above `least`, with probability `chance`.
    """

    rows: Tensor
    half: Tensor
    least: Tensor
    chance: Tensor

    @classmethod
    def of(cls, law: Law) -> "_Halves":
        rows, columns = law.drawn.nonzero(as_tuple=True)
        rows, columns = rows[:_COMPARED], columns[:_COMPARED]
        own = torch.stack([law.signs[int(c)][r] for r, c in zip(rows, columns, strict=True)])
        q = torch.where(own, law.q[rows], 0.0)
        ordered, order = q.sort(dim=1, stable=True)
        by_rank = torch.zeros_like(q).scatter_(1, order, ordered.cumsum(1))
        half = (torch.stack([q.cumsum(1), by_rank], 2) <= 0.5) & (q > 0)[..., None]
        mass = torch.where(half, q[..., None], 0.0).sum(1).clamp(max=1)
        draws = law.draws[rows, columns, None].expand_as(mass)
        least = (draws * mass).floor()
        chance = torch.from_numpy(np.asarray(stats.binom.sf(least.numpy(), draws.numpy(), mass.numpy())))
        return cls(rows, half, least, chance)

    def high(self, counts: Tensor) -> Tensor:
        """(blocks, 2) bool, from the counts of one seed (M, n)."""
        return torch.where(self.half, counts[self.rows][..., None], 0.0).sum(1) > self.least

    def centred(self, high: list[Tensor]) -> Tensor:
        """(seeds, blocks, 2), of mean 0."""
        return torch.stack(high).double() - self.chance
