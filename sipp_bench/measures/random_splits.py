"""A method's place among random ways to share the same budget over the layers.

The split alone explains much of what pruning at initialization does: shuffling masks within layers costs little
(Frankle et al. 2021, "Pruning neural networks at initialization: why are we missing the mark?", arXiv:2009.08576). To
set one design against the distribution of random ones follows Radosavovic et al. 2019 (arXiv:1905.13214).
"""

from collections.abc import Iterator, Mapping

import numpy as np
from torch import Tensor

from sipp_bench.errors import OptionError
from sipp_bench.machine.seeds import require_seed
from sipp_bench.methods.allocation import Array, Counts
from sipp_bench.methods.scores import largest


def random_splits(sizes: Mapping[str, int], budget: int, count: int, seed: int) -> Iterator[dict[str, int]]:
    """`count` random splits of `budget` kept weights over layers of these sizes, each exact and within the sizes.

    Layer l keeps the share min(1, t g_l), g_l drawn independently from Exp(1) and t such that the budget is met;
    whole numbers by largest remainders. So every layer has the same expected share before the cap, and shares
    differ by large factors. This distribution is our choice; it is not uniform over all splits.
    """
    names, size = list(sizes), np.array(list(sizes.values()), dtype=np.int64)
    if (size < 1).any() or not 0 <= budget <= size.sum() or count < 0:
        raise OptionError(
            f"{count} splits of a budget of {budget} over layers of {list(sizes.values())} can't be drawn."
        )
    random = np.random.default_rng(require_seed(seed))
    for _ in range(count):
        counts = _round(_shares(random.exponential(size=size.size), size, budget) * size, size, budget)
        yield {name: int(kept) for name, kept in zip(names, counts, strict=True)}


def split_masks(
    scores: Mapping[str, Tensor], weights: Mapping[str, Tensor], split: Mapping[str, int]
) -> dict[str, Tensor]:
    """The masks of a scoring method with the budget of each layer given: its largest scores, ties as in `largest`."""
    return {name: largest({name: scores[name]}, weights, kept)[name] for name, kept in split.items()}


def percentile(value: float, others: Array | list[float]) -> float:
    """100 (#{others < value} + #{others = value} / 2) / #others: the percentage that `value` beats, ties half.

    For something that should be large, such as accuracy. Raises OptionError where there is nothing to compare with.
    """
    from scipy.stats import percentileofscore

    if len(others) == 0 or np.isnan([value, *others]).any():
        raise OptionError("A percentile needs a number, and at least one other to compare it with, none of them NaN.")
    return float(percentileofscore(others, value, kind="mean"))


def _shares(draws: Array, size: Counts, budget: int) -> Array:
    """min(1, t g) with sum(size * min(1, t g)) = budget: layers that are full at this t leave the rest more."""
    order = np.argsort(-draws, kind="stable")
    g, n = draws[order], size[order].astype(np.float64)
    # With the first j layers full, t_j meets the budget; the right j is the first whose next layer isn't full.
    left = budget - np.concatenate([[0.0], np.cumsum(n)[:-1]])
    t = left / np.cumsum((g * n)[::-1])[::-1]
    full = int(np.argmax(t * g <= 1)) if (t * g <= 1).any() else g.size
    shares = np.ones_like(g)
    shares[full:] = np.clip(t[full] * g[full:], 0, 1) if full < g.size else 1
    result = np.empty_like(shares)
    result[order] = shares
    return result


def _round(counts: Array, size: Counts, budget: int) -> Counts:
    whole = np.minimum(np.floor(counts), size).astype(np.int64)
    remainders = np.where(whole < size, counts - whole, -np.inf)
    # Rounding in `counts` may leave one too many or too few; there is room below the cap, or something to give.
    while (missing := budget - int(whole.sum())) != 0:
        open_layers = np.argsort(-remainders, kind="stable")
        if missing > 0:
            chosen = [layer for layer in open_layers if whole[layer] < size[layer]][:missing]
        else:
            chosen = [layer for layer in open_layers[::-1] if whole[layer] > 0][:-missing]
        whole[chosen] += int(np.sign(missing))
    return whole
