"""Methods that score each weight and keep the largest scores: only the score differs."""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Any, Literal, Protocol, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sipp_bench.errors import OptionError
from sipp_bench.machine.parts import over_parts
from sipp_bench.methods.allocation import apportion
from sipp_bench.methods.observers import AppliedWeights, Observer
from sipp_bench.methods.protocol import Method, Observation, Selection

Scope = Literal["global", "layer", "output"]

# One for negative numbers, and all of float32 that are not, by sign, exponent and 7 bits of the fraction.
_BINS = 1 + (1 << 15)


@dataclass(frozen=True, kw_only=True)
class ScoreMethod(Method):
    """Keeps the weights with the largest scores: a subclass observes (or draws) the scores, nothing else.

    scope: where scores compete. "global": over the network; "layer": each weight tensor keeps its share of the budget,
    in proportion to its weights that are not 0 already; "output": each row (output neuron) of each tensor does.
    """

    scope: Scope = "global"

    def __post_init__(self) -> None:
        if self.scope not in get_args(Scope):
            raise OptionError(f"scope is one of {', '.join(get_args(Scope))}, not {self.scope!r}.")

    @property
    def needs(self) -> tuple[Observer[Any], ...]:
        """Which weights the network uses; more for a score that looks at activations or gradients."""
        return (AppliedWeights(),)

    def scores(self, observation: Observation, rng: np.random.Generator) -> Mapping[str, Tensor]:
        """The scores that count; those observed, unless a method draws them anew."""
        return observation.scores

    def select(
        self, observation: Observation, weights: Mapping[str, Tensor], budget: int, rng: np.random.Generator
    ) -> Selection:
        """Keep the `budget` largest scores within the scope; exact, ties included."""
        masks = largest(self.scores(observation, rng), weights, budget, self.scope)
        kept = {name: keep_only(weight, masks[name]) for name, weight in weights.items()}
        return Selection.masked(kept, {name: int(torch.count_nonzero(mask)) for name, mask in masks.items()})


def keep_only(weight: Tensor, mask: Tensor) -> Tensor:
    """The weight where the mask is True, else 0."""
    # A masked copy, since torch.where is several times as slow.
    return weight.masked_fill(~mask, 0)


class Rows(Protocol):
    """Scores of one weight, by slices of its rows: a tensor, or something that computes them when asked."""

    def __getitem__(self, rows: slice, /) -> Tensor:
        """Scores of these rows."""


def largest(
    scores: Mapping[str, Rows], weights: Mapping[str, Tensor], budget: int, scope: Scope = "global"
) -> dict[str, Tensor]:
    """Masks that keep exactly `budget` of the largest scores.

    Ties go to the larger |w|, then to the earlier position. A weight that is 0 already comes last, so that as many
    weights as asked for are left non-zero wherever the network has them.
    """
    names = list(scores)
    # One dtype for all, in which scores of different layers compare exactly.
    dtypes = [t.dtype for name in names for t in (scores[name][:1], weights[name])]
    dtype = functools.reduce(torch.promote_types, dtypes, torch.float32)
    layers = {name: _Layer(scores[name], weights[name].flatten(1), dtype) for name in names}
    if scope == "global":
        _keep_largest(list(layers.values()), budget)
    else:
        nonzero = [int(torch.count_nonzero(weights[name])) for name in names]
        sizes = [weights[name].numel() for name in names]
        for layer, count in zip(layers.values(), _shares(sizes, nonzero, budget), strict=True):
            if scope == "output":
                _keep_largest_of_rows(layer, int(count))
            else:
                _keep_largest([layer], int(count))
    return {name: layer.mask.reshape(weights[name].shape) for name, layer in layers.items()}


class _Layer:
    """Scores of one weight (neurons, n) as they compete, and the mask of those kept so far."""

    def __init__(self, scores: Rows, weight: Tensor, dtype: torch.dtype) -> None:
        self.scores, self.weight, self.dtype = scores, weight, dtype
        self.has_zeros = int(torch.count_nonzero(weight)) < weight.numel()
        self.mask = torch.zeros(weight.shape, dtype=torch.bool, device=weight.device)

    def numbers(self, part: slice) -> Tensor:
        """Of a part of rows: the scores, -1 for a weight that is 0 already."""
        numbers = self.scores[part].flatten(1).to(self.weight.device, self.dtype)
        return torch.where(self.weight[part] == 0, -1.0, numbers) if self.has_zeros else numbers

    def count(self, histogram: Tensor) -> None:
        """Add the number of scores in each bin to `histogram`."""
        lock = Lock()

        def add(part: slice) -> None:
            counts = torch.bincount(_bins(self.numbers(part)).flatten(), minlength=_BINS).cpu()
            with lock:
                histogram.add_(counts)

        over_parts(add, *self.weight.shape)

    def keep_above(self, least: int) -> tuple[Tensor, Tensor, Tensor]:
        """Mark what is in a bin above; of what is in the bin itself: positions in the weight, scores, |w|."""

        def mark(part: slice) -> tuple[Tensor, Tensor, Tensor]:
            numbers = self.numbers(part)
            bins = _bins(numbers)
            self.mask[part] = bins > least
            places = torch.from_numpy(np.flatnonzero((bins == least).cpu().numpy()))
            chosen = places.to(numbers.device)
            magnitudes = self.weight[part].flatten()[chosen].abs().to(self.dtype)
            first = part.start * self.weight.shape[1]
            return places + first, numbers.flatten()[chosen].cpu(), magnitudes.cpu()

        inside = over_parts(mark, *self.weight.shape)
        places, scores, magnitudes = (torch.cat(column) for column in zip(*inside, strict=True))
        return places, scores, magnitudes


def _keep_largest(layers: Sequence[_Layer], count: int) -> None:
    """Mark the `count` largest over all layers, without a copy of all scores.

    First a histogram over the leading bits of float32, whose order is that of the numbers; then an exact choice within
    the one bin that holds the smallest score to keep.
    """
    if count <= 0:
        return
    histogram = torch.zeros(_BINS, dtype=torch.int64)
    for layer in layers:
        layer.count(histogram)
    reached = histogram.flip(0).cumsum(0).flip(0)
    least = int((reached >= min(count, int(reached[0]))).nonzero()[-1])
    inside = [layer.keep_above(least) for layer in layers]
    scores, magnitudes = (torch.cat([found[index] for found in inside]).numpy() for index in (1, 2))
    chosen = keep_largest(scores, magnitudes, count - int(reached[least]) + len(scores))
    parts = np.split(chosen, np.cumsum([len(places) for places, _, _ in inside])[:-1])
    for layer, (places, _, _), part in zip(layers, inside, parts, strict=True):
        layer.mask.view(-1)[places[torch.from_numpy(part)].to(layer.mask.device)] = True


def keep_largest(scores: npt.NDArray[Any], tie_break: npt.NDArray[Any], count: int) -> npt.NDArray[np.bool_]:
    """Exactly `count` of the largest scores; among those equal to the last one kept, the largest `tie_break`."""
    if count >= scores.size:
        return np.ones(scores.size, dtype=np.bool_)
    if count <= 0:
        return np.zeros(scores.size, dtype=np.bool_)
    threshold = np.partition(scores, scores.size - count)[scores.size - count]
    kept: npt.NDArray[np.bool_] = scores > threshold
    ties = np.flatnonzero(scores == threshold)
    missing = count - int(np.count_nonzero(kept))
    kept[ties[np.argsort(-tie_break[ties], kind="stable")[:missing]]] = True
    return kept


def _bins(numbers: Tensor) -> Tensor:
    """Bin of each number, rising with it: 0 for negative ones, else sign, exponent and 7 bits of the fraction, plus 1.

    Rounding to float32 keeps the order, and equal numbers share a bin: adding 0 turns -0 into 0.
    """
    return ((numbers.float() + 0.0).view(torch.int32) >> 16).clamp_(min=-1).add_(1)


def _keep_largest_of_rows(layer: _Layer, count: int) -> None:
    """Mark the largest of each row; the rows share the count."""
    rows, columns = layer.weight.shape
    shares = _shares([columns] * rows, torch.count_nonzero(layer.weight, 1).tolist(), count)

    def mark(part: slice) -> None:
        numbers = layer.numbers(part)
        share = torch.from_numpy(shares[part]).to(numbers.device)[:, None]
        # numpy sorts values many times faster than torch.
        ascending = torch.from_numpy(np.sort(numbers.cpu().numpy(), axis=1)).to(numbers.device)
        threshold = torch.where(share > 0, ascending.gather(1, (columns - share).clamp(max=columns - 1)), torch.inf)
        kept, tie = numbers > threshold, numbers == threshold
        missing = share - kept.sum(1, keepdim=True)
        crowded = (tie.sum(1, keepdim=True) > missing).flatten()
        kept |= tie & ~crowded[:, None]
        if bool(crowded.any()):
            keys = torch.where(tie, layer.weight[part].abs().to(layer.dtype), -1.0)[crowded]
            order = torch.argsort(keys, dim=1, descending=True, stable=True)
            first = (torch.arange(columns, device=keys.device) < missing[crowded]).expand_as(order)
            kept[crowded] |= torch.zeros_like(first).scatter(1, order, first)
        layer.mask[part] = kept

    over_parts(mark, rows, columns)


def _shares(sizes: Sequence[int], nonzero: Sequence[int], budget: int) -> npt.NDArray[np.int64]:
    """Whole counts proportional to the weights that are not 0 already; what passes those, to the others."""
    useful = min(budget, sum(nonzero))
    return apportion(nonzero, useful) + apportion(np.subtract(sizes, nonzero), budget - useful)
