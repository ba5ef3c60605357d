"""Importance sampling with replacement (claims C9, C10, C6): how many draws, and the draws themselves.

Rows are those of a weight flattened to (neurons, n); a row holds two blocks, told apart by `positive`.
"""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sipp_bench.sensitivity import block_sums

# Whole numbers of draws are int64.
_MOST_DRAWS = 2.0**62


def by_block(blocks: Tensor, positive: Tensor) -> Tensor:
    """Numbers of the blocks (neurons, 2) spread over their weights (neurons, n)."""
    return torch.where(positive, blocks[:, :1], blocks[:, 1:])


class BlockSampler:
    """Draws from the blocks of one weight with q_j = s_j / (sum of s over the block's `rest`).

    s, positive, rest: (neurons, n); `rest` marks the weights to draw from, all others have q = 0.
    """

    def __init__(self, s: Tensor, positive: Tensor, rest: Tensor) -> None:
        self.positive = positive
        masses = torch.where(rest, s.double(), 0.0)
        self.totals = block_sums(masses, positive)
        self.q = torch.where(masses > 0, masses / by_block(self.totals, positive), 0.0)
        self._log_left_out = torch.log1p(-self.q.clamp(max=1))

    def expected_distinct(self, draws: Tensor) -> Tensor:
        """Claim C6 for every block: (neurons, 2), from draws (neurons, 2)."""
        spread = by_block(draws, self.positive)
        chance = torch.where((self.q > 0) & (spread > 0), -torch.expm1(spread * self._log_left_out), 0.0)
        return block_sums(chance, self.positive)

    def draws_for(self, distinct: Tensor) -> Tensor:
        """Real numbers of draws with that expected number of distinct weights: (neurons, 2) float64, 0 for 0.

        distinct: whole numbers (neurons, 2), at most one less than the block has weights with q > 0, or exactly 1.
        Newton's method from m = distinct: the expectation is concave and rising in m and at most m, so that every
        step stays at or below the root. It ends at 2^62 draws: weights with q below about 2^-62 are drawn
        more rarely than `distinct` asks.
        """
        target = distinct.double()
        draws = target.clone()
        for _ in range(200):
            spread = by_block(draws, self.positive)
            left_out = torch.where((self.q > 0) & (spread > 0), torch.exp(spread * self._log_left_out), 1.0)
            missing = target - block_sums(1 - left_out, self.positive)
            logs = torch.where(self.q < 1, self._log_left_out, 0.0)
            slope = -block_sums(torch.where(self.q > 0, left_out * logs, 0.0), self.positive)
            open_ = (missing > 1e-9 * target.clamp(min=1)) & (slope > 0) & (draws < _MOST_DRAWS)
            if not bool(open_.any()):
                break
            draws = torch.where(open_, draws + missing / slope.clamp(min=1e-300), draws).clamp(max=_MOST_DRAWS)
        return draws

    def draw(self, draws: Tensor, rng: np.random.Generator) -> Tensor:
        """Counts n_j of a multinomial for each block: (neurons, n) int64."""
        counts = torch.zeros(self.q.shape, dtype=torch.int64)
        for column, sign in enumerate((self.positive, ~self.positive)):
            sizes = draws[:, column].long().cpu()
            rows = sizes.nonzero().flatten()
            if rows.numel():
                q = torch.where(sign, self.q, 0.0).cpu()[rows]
                # numpy insists that probabilities do not pass 1 by rounding, and gives the last one all that rounding
                # leaves over: the largest, where it does not show (and never one with q = 0).
                q, order = (q / q.sum(1, keepdim=True).clamp(min=1)).sort(dim=1)
                drawn: npt.NDArray[np.int64] = rng.multinomial(sizes[rows].numpy(), q.numpy())
                counts[rows] += torch.zeros_like(order).scatter(1, order, torch.from_numpy(drawn))
        return counts.to(self.q.device)


def reweighted(sampler: BlockSampler, weight: Tensor, draws: Tensor, rng: np.random.Generator) -> Tensor:
    """what_j = n_j / (m q_j) w_j after draws (neurons, 2) from each block, in the dtype of the weight (claim C9)."""
    counts = sampler.draw(draws, rng).double()
    expected = by_block(draws.double(), sampler.positive) * sampler.q
    factor = torch.where(counts > 0, counts / expected, 0.0)
    return (factor * weight.double()).to(weight.dtype)


def whole_draws(samplers: dict[str, BlockSampler], targets: dict[str, Tensor]) -> dict[str, Tensor]:
    """Whole draws for each block, whose expected distinct weights add up to the targets' sum.

    All are rounded down; then those with the largest fractions get one more until the sum is reached, so that what
    one block loses another gains: the sum is met to within one weight.
    """
    real = {name: samplers[name].draws_for(target) for name, target in targets.items()}
    lower = {name: draws.floor() for name, draws in real.items()}
    now = {name: samplers[name].expected_distinct(lower[name]) for name in real}
    more = {name: samplers[name].expected_distinct(lower[name] + 1) for name in real}
    drawn = {name: real[name] > 0 for name in real}
    fractions = torch.cat([(real[n] - lower[n])[drawn[n]].cpu() for n in real])
    steps = torch.cat([(more[n] - now[n])[drawn[n]].cpu() for n in real])
    missing = float(sum(target.sum() for target in targets.values()) - sum(e.sum() for e in now.values()))
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
