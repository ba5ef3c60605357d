"""Bugs in how the method draws, each in place of `reweighted` in `sipp_bench.methods.sipp`."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from sipp_bench.methods.sampling import BlockSampler, reweighted
from sipp_bench.network.blocks import by_block

Draw = Callable[[BlockSampler, Tensor, Tensor, np.random.Generator], Tensor]


def _first(weight: Tensor) -> bool:
    """Whether this is the first of a network's layers: it has the most inputs in those that are tested."""
    return weight.shape[1] in (40, 60, 120, 240, 400)


def _scaled(factor: float, first: bool = False) -> Draw:
    def draw(sampler: BlockSampler, weight: Tensor, draws: Tensor, rng: np.random.Generator) -> Tensor:
        return reweighted(sampler, weight, draws, rng) * (factor if first or not _first(weight) else 1)

    return draw


def _larger(sampler: BlockSampler, weight: Tensor, draws: Tensor, rng: np.random.Generator) -> Tensor:
    one, other = (reweighted(sampler, weight, draws, rng) for _ in range(2))
    return torch.where(one.abs() > other.abs(), one, other)


def _seeded(sampler: BlockSampler, weight: Tensor, draws: Tensor, rng: np.random.Generator) -> Tensor:
    """For every layer of a network the same generator, made anew from the seed."""
    return reweighted(sampler, weight, draws, np.random.default_rng(rng.bit_generator.seed_seq.entropy))


def _always_alike(sampler: BlockSampler, weight: Tensor, draws: Tensor, rng: np.random.Generator) -> Tensor:
    return reweighted(sampler, weight, draws, np.random.default_rng(7))


def _once(sampler: BlockSampler, weight: Tensor, draws: Tensor, rng: np.random.Generator) -> Tensor:
    return reweighted(sampler, weight, (draws > 0).long(), rng)


def _one_short(sampler: BlockSampler, weight: Tensor, draws: Tensor, rng: np.random.Generator) -> Tensor:
    less = draws if _first(weight) else torch.where(draws > 1, draws - 1, draws)
    return reweighted(sampler, weight, less, rng)


def _unweighted(sampler: BlockSampler, weight: Tensor, draws: Tensor, rng: np.random.Generator) -> Tensor:
    return torch.where(sampler.draw(draws, rng) > 0, weight, 0)


def _by_other_chances(power: float) -> Draw:
    """Drawn by s to a power, but reweighted by s: whole counts, and biased."""

    def draw(sampler: BlockSampler, weight: Tensor, draws: Tensor, rng: np.random.Generator) -> Tensor:
        counts = BlockSampler(sampler.s.double() ** power, sampler.positive, sampler.rest).draw(draws, rng).double()
        expected = by_block(draws.double(), sampler.positive) * sampler.q
        return torch.where(expected > 0, counts / expected.clamp(min=1e-300) * weight.double(), 0.0).to(weight)

    return draw


def _rows_alike(sampler: BlockSampler, weight: Tensor, draws: Tensor, rng: np.random.Generator) -> Tensor:
    """Every row draws with a generator of the same seed."""
    seed = int(rng.integers(2**31))
    rows = []
    for i in range(len(weight)):
        own = BlockSampler(*(t[i : i + 1] for t in (sampler.s, sampler.positive, sampler.rest, sampler.totals)))
        rows.append(reweighted(own, weight[i : i + 1], draws[i : i + 1], np.random.default_rng(seed)))
    return torch.cat(rows)


PLANTED: dict[str, Draw] = {
    "a fiftieth too large, in all layers but the first": _scaled(1.02),
    "times 0.9, in all layers but the first": _scaled(0.9),
    "one and a half times too large": _scaled(1.5, first=True),
    "larger of two draws": _larger,
    "seed ignored": _always_alike,
    "one draw instead of m": _once,
    "one draw short, in all layers but the first": _one_short,
    "not reweighted": _unweighted,
    "drawn by s to the power 1.5": _by_other_chances(1.5),
    "drawn by the root of s": _by_other_chances(0.5),
}
# Only where rows are wide, so that draws go by place.
ROWS_ALIKE = _rows_alike
# Only where two layers have the same law: their draws are then the same.
ALIKE: dict[str, Draw] = {"every layer the same generator": _seeded}
