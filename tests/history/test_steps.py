"""Steps: planted ones are found where they are, flat noise gives as few as stated, whatever its shape."""

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from sipp_bench.history.steps import ALPHA, SIDE, find_steps
from theory_checks.statistics import critical_count

Shape = Callable[[np.random.Generator, tuple[int, int]], NDArray[np.float64]]
SHAPES: dict[str, Shape] = {
    "normal": lambda generator, size: generator.standard_normal(size),
    "uniform": lambda generator, size: generator.random(size),
    "heavy tails": lambda generator, size: generator.standard_t(3, size),
    "skewed, as times are": lambda generator, size: generator.lognormal(0.0, 0.3, size),
    "counts, as accuracies are": lambda generator, size: generator.binomial(300, 0.9, size) / 300,
}


@pytest.mark.statistical
@pytest.mark.parametrize("runs", [6, 12, 30])
@pytest.mark.parametrize("shape", SHAPES)
def test_flat_noise_is_marked_as_rarely_as_stated(shape: str, runs: int) -> None:
    """200 pages of 20 series without a step: an exact binomial test of "rate <= alpha" at 1e-3 does not reject."""
    generator = np.random.default_rng(1)
    pages = (SHAPES[shape](generator, (20, runs)) for _ in range(200))
    marked = sum(bool(find_steps(list(page))) for page in pages)
    assert marked < critical_count(200, ALPHA, 1e-3), marked


@pytest.mark.parametrize("place", [3, 6, 9])
def test_a_planted_step_is_found_at_its_place(place: int) -> None:
    """One of 50 series of 12 runs has a step of 8 standard deviations, in 100 pages: marked within a run of its place.

    Seen in 295 to 300 of 300 other pages: fewer than 90 of 100 has a chance below 1e-4 even at a rate of 0.97.
    """
    generator = np.random.default_rng(7)
    hits = 0
    for _ in range(100):
        page = generator.normal(100.0, 1.0, (50, 12))
        page[7, place:] += 8
        hits += any(step.series == 7 and abs(step.place - place) <= 1 for step in find_steps(list(page)))
    assert hits >= 90


def test_several_steps_of_a_series_are_found() -> None:
    noise = np.random.default_rng(3).normal(0, 0.01, 24)
    found = find_steps([noise + np.repeat([0.0, 1.0, 0.5], 8), noise])
    assert [(step.series, step.place) for step in found] == [(0, 8), (0, 16)]


def test_a_change_among_equal_values_is_a_step_of_any_size() -> None:
    flat, moved = [0.91] * 8, [0.91] * 4 + [0.911] * 4
    assert [(step.series, step.place) for step in find_steps([flat, moved, flat])] == [(1, 4)]
    assert find_steps([[0.1 + 0.2, 0.3] * 4]) == [], "rounding is no change"


def test_what_is_too_short_or_a_single_outlier_is_not_marked() -> None:
    assert find_steps([]) == find_steps([[]]) == find_steps([[1.0] * (SIDE - 1) + [2.0] * SIDE]) == []
    generator = np.random.default_rng(4)
    series = generator.normal(0, 1, 12)
    series[5] = 40
    assert find_steps([series]) == []


def test_the_same_series_give_the_same_steps() -> None:
    page = np.random.default_rng(5).normal(0, 1, (10, 12)) + np.repeat([0.0, 5.0], 6)
    assert find_steps(list(page)) == find_steps(list(page))
