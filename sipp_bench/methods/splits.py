"""Splitting a budget of kept weights over the blocks, for the methods that draw (claims C3 and C5)."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from sipp_bench.machine.parts import over_parts
from sipp_bench.methods.allocation import allocate_whole
from sipp_bench.methods.sipp import Plan, SippObservation, keep_top
from sipp_bench.network.blocks import block_sums, by_block

BestK = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


def split_for_draws(observation: SippObservation, budget: int, delta: float) -> dict[str, Tensor]:
    """Claim C5 over all blocks: kept weights (neurons, 2), whole numbers that add up to the budget.

    A block's cap is its weights with s > 0; the others are never drawn. The authors' reading: m counts the distinct
    weights that are kept, and the bound is at most eps(m), since m distinct weights take at least m draws.
    """
    names = list(observation.sensitivity)
    live = [observation.live[name] for name in names]
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
    best_k: BestK,
) -> Plan:
    """The plan of smaller cost among those for the split of claim C3 and that of claim C5; both depend on s alone.

    best_k: for blocks of any shape (...), from T_R after keeping the k largest s, (..., n + 1) for k = 0..n, the share
    of each block and its number of weights with s > 0, (...): how many to keep, the rest of the share being drawn, and
    the bound. Cost: the weighted sum of the bounds.
    """
    if (everything := keep_all_live(observation, weights, budget)) is not None:
        return everything
    splits = (split_for_dropping(observation, weights, budget), split_for_draws(observation, budget, delta))
    costs = [0.0] * len(splits)
    choices: list[dict[str, tuple[Tensor, Tensor]]] = [{} for _ in splits]
    for name, c in observation.block_weights.items():
        given = [shares[name] for shares in splits]
        found = _best_of_blocks(*observation.rows(name), given, observation.live[name], best_k)
        for index, (k, least, bound) in enumerate(found):
            costs[index] += float((c * bound).sum())
            choices[index][name] = k.long(), least
    best = min(range(len(splits)), key=costs.__getitem__)
    kept = {name: top_of_blocks(observation, name, weights[name], *choices[best][name]) for name in splits[best]}
    return Plan(kept, {name: share - choices[best][name][0] for name, share in splits[best].items()})


def _best_of_blocks(s: Tensor, positive: Tensor, splits: Sequence[Tensor], live: Tensor, best_k: BestK) -> Tensor:
    """Of every block in each split: k, the k-th largest s, the bound; (splits, 3, neurons, 2) float64."""

    def choose(rows: slice) -> Tensor:
        ordered = descending(s[rows], positive[rows])
        rest = rest_totals(ordered)
        found = []
        for shares in splits:
            k, bound = best_k(rest, shares[rows], live[rows])
            least = ordered.gather(2, (k - 1).clamp(min=0)[..., None])[..., 0]
            found.append(torch.stack([k.double(), least.double(), bound]))
        return torch.stack(found)

    return torch.cat(over_parts(choose, *s.shape), 2)


def descending(s: Tensor, positive: Tensor) -> Tensor:
    """Sensitivities of each block from the largest down, then zeros: (rows, 2, n)."""
    # One sort for both blocks: by sign, from the largest of the one to the largest of the other. numpy sorts values
    # many times faster than torch.
    signed = s * (2 * positive.to(s.dtype) - 1)
    ascending = torch.from_numpy(np.sort(signed.cpu().numpy(), axis=1)).to(s.device)
    return torch.stack([ascending.flip(1), -ascending], 1).clamp_(min=0)


def rest_totals(ordered: Tensor) -> Tensor:
    """T_R after keeping the k first of s in descending order, k = 0..n: (..., n + 1) float64.

    Summed from the small end: no cancellation.
    """
    return torch.nn.functional.pad(ordered.flip(-1).cumsum(-1, dtype=torch.float64).flip(-1), (0, 1))


def top_of_blocks(observation: SippObservation, name: str, weight: Tensor, k: Tensor, least: Tensor) -> Tensor:
    """The k largest s of each block, of which the smallest is `least`: (neurons, n) mask; k, least: (neurons, 2).

    Ties go to the earlier position, and never to a weight that is 0: k counts none.
    """
    s, positive = observation.rows(name)
    top = torch.zeros(s.shape, dtype=torch.bool, device=s.device)
    threshold = torch.where(k > 0, least, torch.inf).to(s.dtype)

    def mark(rows: slice) -> None:
        signs = positive[rows]
        at = by_block(threshold[rows], signs)
        kept = (s[rows] >= at) & (weight[rows].flatten(1) != 0)
        crowded = (block_sums(kept, signs) > k[rows]).any(1)
        if bool(crowded.any()):
            tie, sign = kept[crowded] & (s[rows] == at)[crowded], signs[crowded]
            above = kept[crowded] & ~tie
            missing = k[rows][crowded] - block_sums(above, sign)
            place = torch.where(sign, (tie & sign).cumsum(1), (tie & ~sign).cumsum(1))
            kept[crowded] = above | (tie & (place <= by_block(missing, sign)))
        top[rows] = kept

    over_parts(mark, *s.shape)
    return top


def keep_all_live(observation: SippObservation, weights: Mapping[str, Tensor], budget: int) -> Plan | None:
    """The plan for a budget that covers every weight with s > 0: they stay as they are, nothing is drawn, eps = 0.

    The rest of the budget goes to weights that are never active on S, the largest |w| first. None if it doesn't.
    """
    if budget < sum(int(observation.live[name].sum()) for name in weights):
        return None
    unweighted = {name: torch.ones_like(c) for name, c in observation.block_weights.items()}
    even = SippObservation(observation.scores, observation.skipped, observation.sensitivity, unweighted)
    return without_draws(keep_top(even, weights, budget), observation)


def without_draws(kept: Mapping[str, Tensor], observation: SippObservation) -> Plan:
    """A plan that only keeps and drops."""
    nothing = {name: torch.zeros_like(observation.sensitivity[name].active) for name in kept}
    return Plan(kept, nothing)
