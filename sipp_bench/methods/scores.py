"""Methods that score each weight and keep the largest scores: only the score differs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sipp_bench.allocation import apportion
from sipp_bench.errors import OptionError
from sipp_bench.methods.protocol import Method, Observation, Selection

Scope = Literal["global", "layer", "output"]


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

    def scores(self, observation: Observation, rng: np.random.Generator) -> Mapping[str, Tensor]:
        """The scores that count; those observed, unless a method draws them anew."""
        return observation.scores

    def select(
        self, observation: Observation, weights: Mapping[str, Tensor], budget: int, rng: np.random.Generator
    ) -> Selection:
        """Keep the `budget` largest scores within the scope; exact, ties included."""
        masks = largest(self.scores(observation, rng), weights, budget, self.scope)
        kept = {name: torch.where(masks[name], weight, 0) for name, weight in weights.items()}
        return Selection(kept, {name: int(mask.sum()) for name, mask in masks.items()})


def largest(
    scores: Mapping[str, Tensor], weights: Mapping[str, Tensor], budget: int, scope: Scope = "global"
) -> dict[str, Tensor]:
    """Masks that keep exactly `budget` of the largest scores.

    Ties go to the larger |w|, then to the earlier position. A weight that is 0 already comes last, so that as many
    weights as asked for are left non-zero wherever the network has them.
    """
    names = list(scores)
    sizes = [scores[name].numel() for name in names]
    if scope == "global":
        flat = [_flat(scores[name], weights[name]) for name in names]
        chosen = keep_largest(np.concatenate([s for s, _ in flat]), np.concatenate([w for _, w in flat]), budget)
        parts = np.split(chosen, np.cumsum(sizes)[:-1])
    else:
        nonzero = [int(torch.count_nonzero(weights[name])) for name in names]
        parts = [
            _within(*_flat(scores[name], weights[name]), count, scores[name].shape[0] if scope == "output" else 1)
            for name, count in zip(names, _shares(sizes, nonzero, budget), strict=True)
        ]
    return {
        name: torch.from_numpy(part).reshape(scores[name].shape).to(weights[name].device)
        for name, part in zip(names, parts, strict=True)
    }


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


def _within(scores: npt.NDArray[Any], magnitudes: npt.NDArray[Any], count: int, rows: int) -> npt.NDArray[np.bool_]:
    """The largest in each of `rows` equal parts, which share the count."""
    parts: Sequence[tuple[npt.NDArray[Any], npt.NDArray[Any]]] = list(
        zip(scores.reshape(rows, -1), magnitudes.reshape(rows, -1), strict=True)
    )
    counts = _shares([s.size for s, _ in parts], [int(np.count_nonzero(w)) for _, w in parts], int(count))
    return np.concatenate([keep_largest(s, w, int(c)) for (s, w), c in zip(parts, counts, strict=True)])


def _shares(sizes: Sequence[int], nonzero: Sequence[int], budget: int) -> npt.NDArray[np.int64]:
    """Whole counts proportional to the weights that are not 0 already; what passes those, to the others."""
    useful = min(budget, sum(nonzero))
    return apportion(nonzero, useful) + apportion(np.subtract(sizes, nonzero), budget - useful)


def _flat(scores: Tensor, weight: Tensor) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    magnitude = weight.abs().flatten()
    numbers = torch.where(magnitude > 0, scores.flatten().to(magnitude.device), -1.0)
    # numpy has no bfloat16; float32 holds every number of the half precisions.
    numbers, magnitude = (t.float() if t.itemsize < 4 else t for t in (numbers, magnitude))
    return numbers.cpu().numpy(), magnitude.cpu().numpy()
