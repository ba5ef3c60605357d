"""Whether the bounds say anything on this network, and which of their factors is to blame."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from sipp_bench import bounds
from sipp_bench.methods.sipp import split_delta
from sipp_bench.network.blocks import block_sums, median
from theory_checks.on_network.context import Cell, Context, blocks_of

# Keep ratios are searched to 1/256, on these first.
_STEPS = 256
_GRID = (3, 8, 16, 26, 51, 77, 102, 128, 179, 230, 255)
# Networks of more weights than this are tried at these alone: each takes a plan for the whole network.
_LARGE, _COARSE = 2_000_000, (8, 26, 77, 128, 230)

Row = dict[str, Any]


def draws_needed(context: Context) -> list[Row]:
    """For each weight: T, the weights with s > 0 of a block, and m* = (8/3) T L, the draws from which C10's bound is
    below 1, against them. Medians over the active blocks."""
    rows = []
    for name, layer in context.sensitivity.items():
        active = layer.active > 0
        totals, sizes = layer.totals[active], block_sums(layer.values > 0, layer.positive)[active]
        needed = bounds.vacuity_draws(totals, context.delta)
        rows.append(
            {
                "layer": name,
                "blocks": int(active.sum()),
                "T": median(totals),
                "weights": median(sizes),
                "draws_needed": median(needed),
                "ratio": median(needed / sizes),
                "reachable": float((needed < sizes).double().mean()) if len(totals) else math.nan,
            }
        )
    return rows


def telling_blocks(cell: Cell) -> list[Row]:
    """For each weight at one keep ratio: how many blocks pruning changed, and the share of them with epsilon < 1."""
    rows = []
    for name, blocks in cell.blocks().items():
        epsilon = blocks.epsilon[blocks.concerned]
        rows.append(
            {
                "keep": cell.keep,
                "layer": name,
                "changed": int(blocks.concerned.sum()),
                "drawn": int((blocks.drawn & blocks.active).sum()),
                "epsilon_median": median(epsilon),
                "telling": float((epsilon < 1).double().mean()) if len(epsilon) else math.nan,
            }
        )
    return rows


def decomposition(cell: Cell) -> list[Row]:
    """C10's bound at the weights (or draws) that each block has at this keep ratio, factor by factor, in medians over
    the active blocks; and what it would be without each factor.

    epsilon: with T, L = ln(2 / delta), C = 1. with_union: delta split over all active (block, x, p, tau) (claim C11).
    with_C: the authors' C = 3. without_T: T = 1, the least that an active block can have. without_L: L = 1.
    dropping: claim C2's sum of dropped s, not capped. Delta: of claim C18; output: the smaller bound times Delta's
    median, what claim C4 leaves of it for a neuron's value.
    """
    context = cell.context
    active = sum(int(layer.active.sum()) for layer in context.sensitivity.values())
    split = split_delta(context.delta, active)
    guarantee, factors = cell.pruned.guarantee, context.cancellations[0]
    rows = []
    for name, (w, pruned) in cell.weights.items():
        layer = context.sensitivity[name]
        kept = block_sums((pruned != 0) & (layer.values > 0), layer.positive)
        draws = kept if guarantee is None else torch.maximum(kept, guarantee.draws[name].double())
        live = (layer.active > 0) & (draws > 0)
        t, m = layer.totals[live], draws[live]
        lost = torch.where((w != 0) & (pruned == 0), layer.values, 0.0).double()
        dropping = block_sums(lost, layer.positive)[live]
        epsilon = bounds.bernstein_epsilon(t, m, context.delta)
        delta = factors.get(name)
        middle = math.nan if delta is None else delta.quantile(0.5)
        rows.append(
            {
                "keep": cell.keep,
                "layer": name,
                "T": median(t),
                "m": median(m),
                "L": math.log(2 / context.delta),
                "L_union": math.log(2 / split),
                "epsilon": median(epsilon),
                "with_union": median(bounds.bernstein_epsilon(t, m, split)),
                "with_C": median(bounds.bernstein_epsilon(3 * t, m, context.delta)),
                "without_T": median(bounds.bernstein_epsilon(torch.ones_like(t), m, context.delta)),
                "without_L": median(bounds.bernstein_epsilon(t, m, 2 / math.e)),
                "dropping": median(dropping),
                "Delta": middle,
                "Delta_max": math.nan if delta is None else delta.largest,
                "output": median(torch.minimum(epsilon, dropping)) * middle,
            }
        )
    return rows


def smallest_keeps(context: Context) -> dict[str, float | None]:
    """The smallest keep ratio, to 1/256 (of five alone for networks of over 2 million weights), at which any, half and
    all of the blocks that pruning changes have a bound below 1; from the sensitivities alone. The share of such blocks
    need not rise with the keep ratio: a coarse grid comes first, then bisection before its first hit. None where there
    is no hit."""
    cache: dict[int, float] = {}
    large = sum(layer.values.numel() for layer in context.sensitivity.values()) > _LARGE
    grid = _COARSE if large else _GRID

    def share(step: int) -> float:
        if step not in cache:
            cache[step] = _telling_share(context, step / _STEPS)
        return cache[step]

    return {name: _first(share, least, grid) for name, least in (("any", 1 / 2**53), ("half", 0.5), ("all", 1.0))}


def _first(share: Callable[[int], float], least: float, grid: Sequence[int]) -> float | None:
    """The smallest step with at least this share, as a keep ratio."""
    hit = next((place for place, step in enumerate(grid) if share(step) >= least), None)
    if hit is None:
        return None
    low, high = grid[hit - 1] if hit else 0, grid[hit]
    while grid is _GRID and high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if share(middle) >= least else (middle, high)
    return high / _STEPS


def _telling_share(context: Context, keep: float) -> float:
    fitted = context.fitted
    old = {name: p.detach() for name, p in context.model.named_parameters() if name in fitted.observation.scores}
    budget = round(keep * sum(w.numel() for w in old.values()))
    selection = fitted.method.select(fitted.observation, old, budget, np.random.default_rng(context.seed))
    pairs = {name: (w, selection.changes[name].effective()) for name, w in old.items()}
    blocks = blocks_of(context.sensitivity, pairs, selection.guarantee).values()
    concerned = sum(int(block.concerned.sum()) for block in blocks)
    return sum(int(block.telling.sum()) for block in blocks) / concerned if concerned else 1.0
