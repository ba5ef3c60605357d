"""Where a series took a step: the largest two-sample t over all places, beside that of the runs in other orders."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sipp_bench.compare.timings import smallest_p

ALPHA = 0.01
"""The chance of any false mark on a page, and so its false discovery rate too."""
SIDE = 3
"""So many values at least are on either side of a step: a single strange run is none."""
ORDERS = 9_999
"""Random orders of the runs that an observed one is compared with: p-values are multiples of 1 / 10,000."""
_SEED = 0
_BATCH = 100
_ROUNDING = 1e-9
"""A spread below this share of the values is none, and so is a difference of explained shares below it."""


@dataclass(frozen=True)
class Step:
    """Series number, the place of the first value after the step, and the p-value after correction."""

    series: int
    place: int
    p_adjusted: float


@dataclass(frozen=True)
class _Part:
    """Of a series between two steps: its number, where it begins, its values, and the runs that they are of."""

    series: int
    start: int
    values: NDArray[np.float64]
    runs: tuple[int, ...]


def find_steps(
    series: Sequence[Sequence[float]], runs: Sequence[Sequence[int]] | None = None, alpha: float = ALPHA
) -> list[Step]:
    """Every step of every series, by series and place. runs: of each series, which run each value is of; without, the
    first value of all is of the first run, and so on.

    Statistic of a series of n values: the largest share of its variance that a step explains, max over t of
    (sum before t - t mean)^2 n / (t (n - t) total), which grows with the two-sample t. Null hypothesis: the runs could
    as well have come in any other order. p-value of a series: (b + 1) / (ORDERS + 1), where b counts the random orders
    of the runs, the same one for all series of these runs, in which the largest statistic of *any* of them is at least
    that of this series (Westfall and Young's max T, Resampling-Based Multiple Testing, 1993). So the chance of any
    false mark is at most alpha whatever the shape of the noise and however series depend on each other, those
    with a true step left out. Bonferroni over the sets of runs that series are of, those alone that have
    enough runs to reach alpha (`fewest_runs`). A series with a step is cut
    there and its parts are tested again until none has one.

    All orders are too many to go through as soon as there are enough runs for a mark: 10! = 3,628,800. Assumes that
    runs are exchangeable: noise that lasts over several runs, as of a machine that is busy for days, gives more marks
    than alpha, in seconds above all. tests/history/test_steps.py measures both.
    """
    if runs is None:
        runs = [range(len(values)) for values in series]
    parts = [
        _Part(number, 0, np.asarray(values, dtype=np.float64), tuple(own))
        for number, (values, own) in enumerate(zip(series, runs, strict=True))
    ]
    found: list[Step] = []
    while parts:
        together: dict[tuple[int, ...], list[_Part]] = {}
        for part in parts:
            if len(part.runs) >= fewest_runs(alpha):
                together.setdefault(part.runs, []).append(part)
        parts = []
        for members in together.values():
            places, p_values = _tested(np.stack([part.values for part in members]), alpha)
            for part, place, p in zip(members, places.tolist(), p_values.tolist(), strict=True):
                if (p_adjusted := p * len(together)) <= alpha:
                    found.append(Step(part.series, part.start + place, p_adjusted))
                    parts += _cut(part, place)
    return sorted(found, key=lambda step: (step.series, step.place))


def fewest_runs(alpha: float = ALPHA, after: int | None = None) -> int:
    """Runs that a mark needs at least, of which `after` lie after the step (by default the best number for it).

    n values have n! orders, of which 2 t! (n - t)! show the clearest step at t as clearly: below this number that is
    more than a share of alpha, and no test that makes no assumption on the noise can call it a step.
    """
    runs = 2 * SIDE
    while smallest_p(runs - (after or runs // 2), after or runs // 2) > alpha:
        runs += 1
    return runs


def _cut(part: _Part, place: int) -> list[_Part]:
    return [
        _Part(part.series, part.start, part.values[:place], part.runs[:place]),
        _Part(part.series, part.start + place, part.values[place:], part.runs[place:]),
    ]


def _tested(values: NDArray[np.float64], alpha: float) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Of each row of `values`, series of the same runs: the place of its clearest step, and the p-value of max T.

    Orders are no longer drawn once not even the clearest step of all can come to alpha: its p-value is a lower bound.
    """
    scaled, n = _scaled(values), values.shape[1]
    explained = _explained(scaled)
    places, observed = SIDE + explained.argmax(axis=1), explained.max(axis=1) - _ROUNDING
    p_values, moving = np.ones(len(values)), scaled.any(axis=1)
    if not moving.any():
        return places, p_values
    generator, as_clear, drawn = np.random.default_rng(_SEED), np.zeros(int(moving.sum()), dtype=np.int64), 0
    while drawn < ORDERS and as_clear.min() + 1 <= alpha * (ORDERS + 1):
        orders = generator.random((min(_BATCH, ORDERS - drawn), n)).argsort(axis=1)
        clearest = _explained(scaled[moving][:, orders]).max(axis=(0, 2))
        as_clear += (clearest >= observed[moving, None]).sum(axis=1)
        drawn += len(orders)
    p_values[moving] = (as_clear + 1) / (ORDERS + 1)
    return places, p_values


def _scaled(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Each row with mean 0 and sum of squares 1; 0 where it has no spread."""
    centred = values - values.mean(axis=1, keepdims=True)
    spread = np.sqrt((centred**2).sum(axis=1, keepdims=True))
    still = spread <= np.sqrt(values.shape[1]) * _ROUNDING * np.abs(values).max(axis=1, keepdims=True)
    return np.where(still, 0.0, centred / np.where(still, 1.0, spread))


def _explained(scaled: NDArray[np.float64]) -> NDArray[np.float64]:
    """(..., n) -> (..., n - 2 SIDE + 1): the share of the variance that a step after SIDE, SIDE + 1, ... explains."""
    n = scaled.shape[-1]
    before = np.arange(SIDE, n - SIDE + 1)
    # The mean is 0, so that the sum after is minus that before.
    sums = np.cumsum(scaled, axis=-1)[..., SIDE - 1 : n - SIDE]
    return np.asarray(sums**2 * (1 / before + 1 / (n - before)))
