"""Which split of a budget a method takes: the one with the smaller weighted sum of bounds."""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import sipp_bench as sb
from sipp_bench.bounds import bernstein_epsilon
from sipp_bench.methods.allocation import allocate_whole
from sipp_bench.methods.sipp import Plan
from sipp_bench.methods.splits import better_split, split_for_draws, split_for_dropping


def bound_of(rest: Tensor, share: Tensor, live: Tensor) -> tuple[Tensor, Tensor]:
    """All of the share is kept, and the bound is any function of it."""
    return share, rest.gather(-1, share[..., None])[..., 0].sqrt() + 1 / (1 + share)


def test_the_smaller_weighted_sum_of_bounds_decides() -> None:
    """Block weights of 1 / neurons, on layers of 3 and of 60 neurons: without them another split is cheaper."""
    differing = 0
    for seed in range(12):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = nn.Sequential(nn.Linear(20, 60), nn.ReLU(), nn.Linear(60, 3))
            points = torch.rand(8, 20)
        fitted: Any = sb.fit(model, points, "sipp-hybrid", weights="layer")
        seen, weights = fitted.observation, {n: p.detach() for n, p in model.named_parameters() if p.ndim > 1}
        for budget in (150, 400, 700):
            splits = split_for_dropping(seen, weights, budget), split_for_draws(seen, budget, 0.05)
            weighted, plain = [], []
            for split in splits:
                each = {n: dropped_bounds(seen, n, share) for n, share in split.items()}
                weighted.append(sum(float((seen.block_weights[n] * b).sum()) for n, b in each.items()))
                plain.append(sum(float(b.sum()) for b in each.values()))
            best = splits[int(np.argmin(weighted))]
            plan: Plan = better_split(seen, weights, budget, 0.05, bound_of)
            for name, share in best.items():
                kept = plan.kept[name]
                positive = seen.rows(name)[1]
                found = torch.stack([(kept & sign).sum(1) for sign in (positive, ~positive)], 1)
                assert torch.equal(found.double(), torch.minimum(share.double(), seen.live[name]))
            differing += int(np.argmin(weighted)) != int(np.argmin(plain))
    assert differing


def dropped_bounds(seen: Any, name: str, share: Tensor) -> Tensor:
    """`bound_of` for each block, one by one."""
    s, positive = seen.rows(name)
    found = torch.zeros(share.shape, dtype=torch.float64)
    for row in range(len(s)):
        for column, sign in enumerate((positive[row], ~positive[row])):
            m = int(share[row, column])
            rest = s[row][sign].double().sort(descending=True).values[m:].sum()
            found[row, column] = rest.sqrt() + 1 / (1 + m)
    return found


def test_fewer_draws_than_blocks_go_where_they_gain_most() -> None:
    """One draw takes a block from eps = 1 to eps(1), for equal c the less, the smaller its T."""
    totals, caps = np.array([3.0, 1.0, 2.0, 1.5]), np.full(4, 9)
    gains = 1 - bernstein_epsilon(totals, np.ones(4), 0.1)
    for budget in (1, 2, 3):
        expected = np.zeros(4, dtype=int)
        expected[np.argsort(-gains)[:budget]] = 1
        assert allocate_whole(totals, caps, budget, delta=0.1).tolist() == expected.tolist()
