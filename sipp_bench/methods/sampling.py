"""Importance sampling with replacement (claims C9, C10, C6): how many draws, and the draws themselves.

Rows are those of a weight flattened to (neurons, n); a row holds two blocks, told apart by `positive`.
"""

import functools
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sipp_bench.machine.parts import Turns, over_parts
from sipp_bench.network.blocks import block_sums

# Whole numbers of draws are int64.
_MOST_DRAWS = 2.0**62
# Blocks of fewer weights are drawn from many at a time.
_FEWEST_WEIGHTS = 64


class Streams(NamedTuple):
    """Two generators for two ways to draw: how much one of them takes does not move the other."""

    multinomial: np.random.Generator
    uniform: np.random.Generator


class BlockSampler:
    """Draws from the blocks of one weight with q_j = s_j / (sum of s over the block's `rest`).

    s, positive, rest: (neurons, n); `rest` marks the weights to draw from, all others have q = 0. totals: these sums
    where they are known already, (neurons, 2) float64; of blocks without a rest any number. The work is done by
    parts of rows on the CPU, in parallel: of what is as large as the weight nothing is kept but what was given.
    """

    def __init__(self, s: Tensor, positive: Tensor, rest: Tensor, totals: Tensor | None = None) -> None:
        self.s, self.positive, self.rest = s, positive, rest
        self.totals = block_sums(s, positive, rest) if totals is None else totals

    @property
    def q(self) -> Tensor:
        """All probabilities: (neurons, n) float64."""
        return self.chances(slice(None)).q.to(self.s.device)

    def chances(self, rows: slice) -> "Chances":
        """The probabilities of some rows."""
        return Chances(*(t[rows].cpu() for t in (self.s, self.positive, self.rest, self.totals)))

    def expected_distinct(self, draws: Tensor) -> Tensor:
        """Claim C6 for every block: (neurons, 2), from draws (neurons, 2)."""
        given = draws.double().cpu()
        found = over_parts(lambda rows: self.chances(rows).expected_distinct(given[rows]), *self.s.shape)
        return torch.cat(found).to(draws.device)

    def draws_for(self, distinct: Tensor) -> Tensor:
        """Real numbers of draws with that expected number of distinct weights: (neurons, 2) float64, 0 for 0.

        distinct: whole numbers (neurons, 2), at most one less than the block has weights with q > 0, or exactly 1.
        """
        return self.rounded_draws_for(distinct)[0]

    def rounded_draws_for(self, distinct: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """`draws_for`; the expected distinct weights of that rounded down; how many more one more draw gives."""
        target = distinct.double().cpu()
        # Blocks that draw nothing: all three are 0.
        found = torch.zeros(3, *target.shape, dtype=torch.float64)

        def invert(rows: slice) -> None:
            if bool(target[rows].any()):
                chances = self.chances(rows)
                draws = chances.draws_for(target[rows])
                found[:, rows] = torch.stack([draws, *chances.distinct_and_next(draws.floor())])

        over_parts(invert, *self.s.shape)
        real, now, more = found.to(distinct.device)
        return real, now, more

    def draw(self, draws: Tensor, rng: np.random.Generator) -> Tensor:
        """Counts n_j of a multinomial for each block: (neurons, n) int64."""
        return self.chances(slice(None)).draw(draws.long().cpu(), Streams(*rng.spawn(2))).to(self.s.device)


class Chances:
    """The probabilities q of some rows, and what is computed from them with few passes over memory.

    Products with `plus` and `minus`, which are 0 or 1, stand for choices by sign: exact, and faster than torch.where.
    """

    def __init__(self, s: Tensor, positive: Tensor, rest: Tensor, totals: Tensor) -> None:
        self.plus = positive.double()
        self.minus = 1 - self.plus
        masses = s.double() * rest.double()
        self.q = masses / self.spread(torch.where(totals > 0, totals, 1.0))

    def spread(self, blocks: Tensor) -> Tensor:
        """`by_block`."""
        return (self.plus * blocks[:, :1]).addcmul_(self.minus, blocks[:, 1:])

    def _sums(self, values: Tensor) -> Tensor:
        # numpy's einsum makes no temporary, and unlike a BLAS dot starts no threads for a row.
        sums = [np.einsum("ij,ij->i", values.numpy(), sign.numpy()) for sign in (self.plus, self.minus)]
        return torch.from_numpy(np.stack(sums, 1))

    @functools.cached_property
    def _log_left_out(self) -> Tensor:
        # For q = 1 a number, not -inf, that still leaves exp(m log) = 0 for any m >= 1 and 1 for m = 0.
        return torch.log1p(-self.q).clamp_(min=-1000.0)

    def expected_distinct(self, draws: Tensor) -> Tensor:
        """Claim C6."""
        return self._sums(torch.expm1(self.spread(draws) * self._log_left_out).neg_())

    def distinct_and_next(self, draws: Tensor) -> tuple[Tensor, Tensor]:
        """Claim C6, and by how much it rises with one more draw, sum of q (1 - q)^m."""
        chance = torch.expm1(self.spread(draws) * self._log_left_out).neg_()
        return self._sums(chance), self._sums((1 - chance) * self.q)

    def draws_for(self, target: Tensor) -> Tensor:
        """See `BlockSampler.draws_for`.

        Newton's method from m = target on -log(sum of (1 - q)^m), which is concave and rising in m and nearly straight,
        so that every step stays at or below the root. It ends at 2^62 draws: weights with q below about 2^-62 are drawn
        more rarely than `target` asks.
        """
        draws = target.clone()
        live = self._sums((self.q > 0).double())
        never = torch.stack([self.plus.sum(1), self.minus.sum(1)], 1) - live
        for _ in range(200):
            left_out = self.spread(draws).mul_(self._log_left_out).exp_()
            left = self._sums(left_out) - never
            missing = target - (live - left)
            slope = -self._sums(left_out.mul_(self._log_left_out))
            open_ = (missing > 1e-9 * target.clamp(min=1)) & (slope > 0) & (draws < _MOST_DRAWS)
            if not bool(open_.any()):
                break
            step = left * torch.log(left / (live - target)) / slope.clamp(min=1e-300)
            draws = torch.where(open_, draws + step, draws).clamp(max=_MOST_DRAWS)
        return draws

    def draw(
        self,
        draws: Tensor,
        streams: Streams,
        turn: AbstractContextManager[None] = nullcontext(),  # noqa: B008  # it has no state
    ) -> Tensor:
        """Counts n_j of a multinomial for each block: (rows, n) int64. The streams are used within `turn` only.

        Blocks take from them row by row, so that the counts do not depend on which rows are a part.
        """
        columns = self.q.shape[1]
        counts = torch.zeros(self.q.shape, dtype=torch.int64)
        # Inverting the distribution function takes time by the draw, numpy's multinomial by the weight.
        few = (draws > 0) & (draws < 4 * columns) & (columns >= _FEWEST_WEIGHTS)
        many = (draws > 0) & ~few
        # numpy insists that probabilities do not pass 1 by rounding, and gives the last one all that rounding leaves
        # over: the largest, where it does not show (and never one with q = 0).
        q, (rows, _) = self._blocks(many)
        q, order = (q / q.sum(1, keepdim=True).clamp(min=1)).sort(dim=1)
        sizes = draws[few]
        with turn:
            drawn: npt.NDArray[np.int64] = streams.multinomial.multinomial(draws[many].numpy(), q.numpy())
            uniform = 1 - streams.uniform.random(int(sizes.sum()))
        counts.index_add_(0, rows, torch.zeros_like(order).scatter_(1, order, torch.from_numpy(drawn)))
        q, (rows, _) = self._blocks(few)
        each = np.split(uniform, sizes.cumsum(0)[:-1].numpy())
        for row, cumulative, numbers in zip(rows.tolist(), q.cumsum(1).numpy(), each, strict=False):
            counts[row] += torch.from_numpy(_inverted(cumulative, numbers))
        return counts

    def _blocks(self, chosen: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Of the blocks chosen by a mask (rows, 2), row by row: q (blocks, n), 0 outside; and the blocks' places."""
        row, column = chosen.nonzero(as_tuple=True)
        sign = self.plus[row].sub_(column[:, None]).abs_()
        return sign.mul_(self.q[row]), (row, column)


def _inverted(cumulative: npt.NDArray[np.float64], uniform: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """Counts of draws, each the first weight at which the cumulative probability reaches a uniform number on (0, 1].

    Scaled to (0, total]: no draw passes the end by rounding, and none stops at a weight with q = 0, at which the sum
    does not rise.
    """
    reached = uniform * cumulative[-1]
    reached.sort()  # in order they are found faster
    return np.bincount(np.searchsorted(cumulative, reached), minlength=len(cumulative))


def reweighted(sampler: BlockSampler, weight: Tensor, draws: Tensor, rng: np.random.Generator) -> Tensor:
    """what_j = n_j / (m q_j) w_j after draws (neurons, 2) from each block, in the dtype of the weight (claim C9).

    The same for any number of threads and any size of the parts: they draw in the order of the rows.
    """
    streams = Streams(*rng.spawn(2))
    result = torch.zeros(weight.shape, dtype=weight.dtype, device=weight.device)
    turns = Turns()

    def fill(rows: slice) -> None:
        try:
            whole = draws[rows].cpu().long()
            if bool(whole.any()):
                chances = sampler.chances(rows)
                counts = chances.draw(whole, streams, turns.turn(rows))
                # Where nothing was drawn 0 is divided: by anything but 0.
                expected = chances.spread(whole.double()).mul_(chances.q).clamp_(min=5e-324)
                # Adding 0 turns the -0 of a negative weight into 0.
                factor = counts.double().div_(expected)
                result[rows] = factor.mul_(weight[rows].cpu().double()).add_(0.0).to(weight)
        finally:
            turns.done(rows)

    over_parts(fill, *weight.shape)
    return result


def whole_draws(samplers: dict[str, BlockSampler], targets: dict[str, Tensor]) -> dict[str, Tensor]:
    """Whole draws for each block, whose expected distinct weights add up to the targets' sum.

    All are rounded down; then those with the largest fractions get one more until the sum is reached, so that what
    one block loses another gains: the sum is met to within one weight.
    """
    found = {name: samplers[name].rounded_draws_for(target) for name, target in targets.items()}
    real = {name: draws for name, (draws, _, _) in found.items()}
    lower = {name: draws.floor() for name, draws in real.items()}
    drawn = {name: real[name] > 0 for name in real}
    fractions = torch.cat([(real[n] - lower[n])[drawn[n]].cpu() for n in real])
    steps = torch.cat([more[drawn[n]].cpu() for n, (_, _, more) in found.items()])
    missing = float(sum(target.sum() for target in targets.values()) - sum(now.sum() for _, now, _ in found.values()))
    order = torch.argsort(fractions, descending=True, stable=True)
    reached = torch.cumsum(steps[order], 0)
    chosen = torch.zeros(len(order), dtype=torch.float64)
    chosen[order[reached <= missing + 1e-9]] = 1
    result, start = {}, 0
    for name, mask in drawn.items():
        count = int(mask.sum())
        draws = lower[name].clone()
        draws[mask] += chosen[start : start + count].to(draws.device)
        start += count
        result[name] = draws.long()
    return result
