"""Splitting a budget of kept weights over the blocks, for the methods that draw (claims C3 and C5)."""

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor

from sipp_bench.allocation import allocate_whole
from sipp_bench.methods.sipp import Plan, SippObservation, keep_top
from sipp_bench.sensitivity import block_sums


def split_for_draws(observation: SippObservation, budget: int, delta: float) -> dict[str, Tensor]:
    """Claim C5 over all blocks: kept weights (neurons, 2), whole numbers that add up to the budget.

    A block's cap is its weights with s > 0; the others are never drawn. The authors' reading: m counts the distinct
    weights that are kept, and the bound is at most eps(m), since m distinct weights take at least m draws.
    """
    names = list(observation.sensitivity)
    live = [observation.live(name) for name in names]
    counts = allocate_whole(
        torch.cat([observation.sensitivity[name].totals.flatten() for name in names]),
        torch.cat([block.flatten() for block in live]),
        budget,
        delta=delta,
        weights=torch.cat([observation.block_weights[name].flatten() for name in names]),
    )
    parts = np.split(counts, np.cumsum([block.numel() for block in live])[:-1])
    return {
        name: torch.from_numpy(part).reshape(block.shape).to(block.device)
        for name, part, block in zip(names, parts, live, strict=True)
    }


def split_for_dropping(observation: SippObservation, weights: Mapping[str, Tensor], budget: int) -> dict[str, Tensor]:
    """Claim C3 over all blocks: kept weights (neurons, 2)."""
    masks = keep_top(observation, weights, budget)
    return {name: block_sums(mask, observation.rows(name)[1]).long() for name, mask in masks.items()}


def better_split(
    observation: SippObservation,
    weights: Mapping[str, Tensor],
    budget: int,
    delta: float,
    carry_out: Callable[[Mapping[str, Tensor]], tuple[float, Plan]],
) -> Plan:
    """The plan of smaller cost among those for the split of claim C3 and that of claim C5; both depend on s alone.

    carry_out: from a split to its weighted sum of bounds and its plan.
    """
    if (everything := keep_all_live(observation, weights, budget)) is not None:
        return everything
    splits = (split_for_dropping(observation, weights, budget), split_for_draws(observation, budget, delta))
    return min(map(carry_out, splits), key=lambda candidate: candidate[0])[1]


def keep_all_live(observation: SippObservation, weights: Mapping[str, Tensor], budget: int) -> Plan | None:
    """The plan for a budget that covers every weight with s > 0: they stay as they are, nothing is drawn, eps = 0.

    The rest of the budget goes to weights that are never active on S, the largest |w| first. None if it doesn't.
    """
    live = sum(int((observation.rows(name)[0] > 0).sum()) for name in weights)
    if budget < live:
        return None
    unweighted = {name: torch.ones_like(c) for name, c in observation.block_weights.items()}
    even = SippObservation(observation.scores, observation.skipped, observation.sensitivity, unweighted)
    return without_draws(keep_top(even, weights, budget), observation)


def without_draws(kept: Mapping[str, Tensor], observation: SippObservation) -> Plan:
    """A plan that only keeps and drops."""
    nothing = {name: torch.zeros_like(observation.sensitivity[name].active) for name in kept}
    return Plan(kept, nothing)
