"""Steps: planted ones are found where they are, flat noise gives as few as stated, whatever its shape."""

import itertools
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats
from scipy.signal import lfilter

from sipp_bench.history.steps import ALPHA, ORDERS, SIDE, fewest_runs, find_steps
from theory_checks.evidence.statistics import critical_count

Shape = Callable[[np.random.Generator, tuple[int, int]], NDArray[np.float64]]


def flips(generator: np.random.Generator, size: tuple[int, int], rate: float) -> NDArray[np.float64]:
    """330 of 360 images, and one less in this share of the runs."""
    return np.asarray((330 - (generator.random(size) < rate)) / 360)


def together(generator: np.random.Generator, size: tuple[int, int]) -> NDArray[np.float64]:
    """What a run does to one series it does to all."""
    return generator.standard_normal((1, size[1])) + 0.1 * generator.standard_normal(size)


def lasting(generator: np.random.Generator, size: tuple[int, int]) -> NDArray[np.float64]:
    """Runs like those before them: an AR(1) process of coefficient 0.7."""
    drawn = lfilter([1.0], [1.0, -0.7], generator.standard_normal((size[0], 50 + size[1])), axis=1)
    return np.asarray(drawn[:, 50:])


SHAPES: dict[str, Shape] = {
    "normal": lambda generator, size: generator.standard_normal(size),
    "uniform": lambda generator, size: generator.random(size),
    "heavy tails": lambda generator, size: generator.standard_t(3, size),
    "no mean at all": lambda generator, size: generator.standard_cauchy(size),
    "skewed, as times are": lambda generator, size: generator.lognormal(0.0, 0.3, size),
    "counts, as accuracies are": lambda generator, size: generator.binomial(300, 0.9, size) / 300,
    "a flip in 1 of 100 runs": lambda generator, size: flips(generator, size, 0.01),
    "a flip in 1 of 20 runs": lambda generator, size: flips(generator, size, 0.05),
    "a flip in 1 of 5 runs": lambda generator, size: flips(generator, size, 0.2),
    "always equal": lambda generator, size: np.full(size, 0.91),
    "the same for all series": together,
}


def marked_pages(shape: Shape, runs: int, pages: int, series: int) -> int:
    generator = np.random.default_rng(1)
    return sum(bool(find_steps(list(shape(generator, (series, runs))))) for _ in range(pages))


@pytest.mark.statistical
@pytest.mark.parametrize("runs", [12, 20])
@pytest.mark.parametrize("shape", SHAPES)
def test_flat_noise_is_marked_as_rarely_as_stated(shape: str, runs: int) -> None:
    """150 pages of 40 series, 200 with flips, without a step: an exact binomial test of "rate <= alpha" at 1e-3
    does not reject.

    It rejects from 7 marked pages on, which a rate of 8 % has with probability 0.96. A t-test with p = 0 where there
    is no spread marked 57 of 150 pages of twelve runs with a flip in every fifth.
    """
    marked = marked_pages(SHAPES[shape], runs, 150, series=200 if "flip" in shape else 40)
    assert marked < critical_count(150, ALPHA, 1e-3), marked


@pytest.mark.statistical
def test_noise_that_lasts_over_several_runs_is_beyond_the_test_as_the_page_says() -> None:
    """60 pages: more than alpha with certainty (1e-3), so that the page has to say it."""
    assert marked_pages(lasting, 12, 60, series=40) >= critical_count(60, ALPHA, 1e-3)


@pytest.mark.parametrize("place", [3, 6, 9])
def test_a_planted_step_is_found_at_its_place(place: int) -> None:
    """One of 50 series of 14 runs has a step of 8 standard deviations, in 20 pages: marked within a run of its place.

    Fewer than 18 of 20 has a chance of 1e-3 at a rate of 0.99; 299 of 300 other pages were seen.
    """
    generator = np.random.default_rng(7)
    hits = 0
    for _ in range(20):
        page = generator.normal(100.0, 1.0, (50, 14))
        page[7, place:] += 8
        hits += any(step.series == 7 and abs(step.place - place) <= 1 for step in find_steps(list(page)))
    assert hits >= 18, hits


def test_a_step_of_some_images_is_found_among_rare_flips() -> None:
    """20 pages of 50 series of 20 runs with flips of one image: 6 images less from run 10 on, in one series.

    Marked there and nowhere else in 90 of 100 other pages; fewer than 14 of 20 has a chance of 2e-3 at that rate.
    """
    generator = np.random.default_rng(8)
    hits = 0
    for _ in range(20):
        page = flips(generator, (50, 20), 0.05)
        page[3, 10:] -= 6 / 360
        hits += [(step.series, step.place) for step in find_steps(list(page))] == [(3, 10)]
    assert hits >= 14, hits


def test_p_values_are_those_of_all_orders() -> None:
    """Two series of seven runs, all 5,040 orders: the share in which either shows as clear a step, by F."""
    page = np.array([[0.0, 0.3, 0.1, 2.0, 2.2, 1.9, 2.4], [1.0, 0.0, 0.5, 0.2, 0.9, 1.5, 0.7]])

    def clearest(rows: NDArray[np.float64]) -> NDArray[np.float64]:
        places = range(SIDE, 8 - SIDE)
        return np.max([stats.f_oneway(rows[:, :t], rows[:, t:], axis=1).statistic for t in places], axis=0)

    orders = np.array(list(itertools.permutations(range(7))))
    largest = np.maximum(*(clearest(row[orders]) for row in page))
    exact = (largest >= clearest(page[:1]) * (1 - 1e-9)).mean()
    (step,) = find_steps(list(page), alpha=0.2)
    assert (step.series, step.place) == (0, 3)
    low, high = stats.binom.interval(1 - 1e-4, ORDERS, exact) / np.array(ORDERS + 1)
    assert low <= step.p_adjusted <= high + 1 / (ORDERS + 1), (step.p_adjusted, exact)


def test_series_of_other_runs_are_corrected_for_as_another_family() -> None:
    """Of two sets of runs each has half of alpha; one with too few runs to reach alpha takes nothing away."""
    moved = [0.0] * 8 + [1.0] * 8
    (alone,) = find_steps([moved], [range(16)])
    both = find_steps([moved, [1.0] * 16], [range(16), range(1, 17)])
    assert [step.p_adjusted for step in both] == pytest.approx([2 * alone.p_adjusted])
    short = find_steps([moved, [1.0, 2.0] * 4], [range(16), range(8)])
    assert [step.p_adjusted for step in short] == pytest.approx([alone.p_adjusted])


def test_as_few_runs_as_stated_show_a_step() -> None:
    """2 / 252 for five on either side of ten, 2 / 126 for nine; 2 / 220 for three of twelve, 2 / 165 of eleven."""
    assert (fewest_runs(), fewest_runs(after=SIDE), fewest_runs(0.05)) == (10, 12, 8)
    clear = [0.0] * 5 + [1.0] * 5
    (step,) = find_steps([clear])
    assert step.place == 5
    assert step.p_adjusted == pytest.approx(2 / 252, abs=4 * (2 / 252 / ORDERS) ** 0.5)
    assert find_steps([clear[1:]]) == find_steps([clear[:-1]]) == []


def test_several_steps_of_a_series_are_found() -> None:
    noise = np.random.default_rng(3).normal(0, 0.01, 24)
    found = find_steps([noise + np.repeat([0.0, 1.0, 0.5], 8), noise])
    assert [(step.series, step.place) for step in found] == [(0, 8), (0, 16)]


def test_a_change_among_equal_values_is_a_step_of_any_size() -> None:
    flat, moved = [0.91] * 12, [0.91] * 6 + [0.911] * 6
    (step,) = find_steps([flat, moved, flat])
    assert (step.series, step.place) == (1, 6)
    assert step.p_adjusted > 0, "some order of the runs always shows it"
    assert find_steps([[0.1 + 0.2, 0.3] * 6]) == [], "rounding is no change"


def test_what_is_too_short_or_a_single_outlier_is_not_marked() -> None:
    assert find_steps([]) == find_steps([[]]) == find_steps([[1.0] * (SIDE - 1) + [2.0] * 20]) == []
    generator = np.random.default_rng(4)
    series = generator.normal(0, 1, 12)
    series[5] = 40
    assert find_steps([series]) == []


def test_the_same_series_give_the_same_steps() -> None:
    page = np.random.default_rng(5).normal(0, 1, (10, 12)) + np.repeat([0.0, 5.0], 6)
    assert find_steps(list(page)) == find_steps(list(page)) != []
