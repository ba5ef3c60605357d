"""Paired comparisons: one value of each by hand, and the level of the words."""

import math

import numpy as np
import pytest
from scipy import stats

from sipp_bench.compare.findings import holm
from sipp_bench.compare.paired import guesses, p_value, paired, verdict


def test_three_seeds_by_hand() -> None:
    # Mean 2, deviations -1, 0, 1, s = 1; t(0.975; 2) = 4.302653. The tail of t with 2 degrees of freedom has a closed
    # form, p = 1 - t / sqrt(2 + t^2), t = 2 sqrt(3).
    found = paired([0.01, 0.02, 0.03])
    reach = 0.04302652729911275 / math.sqrt(3)
    assert (found.n, found.difference) == (3, pytest.approx(0.02))
    assert (found.low, found.high) == (pytest.approx(0.02 - reach), pytest.approx(0.02 + reach))
    assert found.p == pytest.approx(1 - math.sqrt(12 / 14))


def test_the_interval_excludes_zero_just_where_the_test_rejects() -> None:
    for shift in np.linspace(0, 4, 41):
        found = paired([shift - 1, shift + 0.3, shift + 0.7, shift + 2])
        assert (found.low > 0) == (found.p < 0.05)


@pytest.mark.parametrize(
    ("differences", "n", "p"), [([], 0, 1), ([0.3], 1, 1), ([0, 0, 0], 3, 1), ([0.01] * 4, 4, 1 / 8)]
)
def test_without_spread_there_is_no_interval(differences: list[float], n: int, p: float) -> None:
    found = paired(differences)
    assert (found.n, found.p) == (n, p)
    assert math.isnan(found.low)
    assert math.isnan(found.high)


def test_the_word() -> None:
    up, down = paired([0.10, 0.11, 0.12]), paired([-0.10, -0.11, -0.12])
    assert (verdict(up, up.p, False), verdict(down, down.p, False)) == ("ahead", "behind")
    assert verdict(up, 0.051, False) == "undecided", "the interval excludes 0, but it is one test of many"
    assert verdict(up, up.p, True) == "at chance"
    assert verdict(paired([0.9]), 0.0, False) == "one seed"
    assert verdict(paired([-0.088, 0.05, 0.3]), p_value([-0.088, 0.05, 0.3]), False) == "undecided"


def test_equal_methods_are_told_apart_in_a_twentieth_of_the_families_at_most() -> None:
    # Level 0.05 for a family of 8 tests of 3 seeds each. 4,000 families: correct code fails with probability 1e-4
    # at most, a level of 0.08 passes with probability 3e-5 (without Holm's correction it is 0.34).
    random, families, alarms = np.random.default_rng(5), 4000, 0
    for _ in range(families):
        found = [paired(row) for row in random.normal(size=(8, 3)).tolist()]
        adjusted = holm([each.p for each in found])
        alarms += any(verdict(each, p, False) != "undecided" for each, p in zip(found, adjusted, strict=True))
    assert stats.binom.sf(alarms - 1, families, 0.05) > 1e-4


def test_chance_is_what_guessing_gives_on_so_many_points() -> None:
    # Bin(1000, 0.1): Pr(>= 123) = 0.0103, Pr(>= 124) = 0.0080.
    assert guesses(0.100, 1000, 10)
    assert guesses(0.123, 1000, 10)
    assert not guesses(0.124, 1000, 10)
    assert not guesses(0.123, 10_000, 10), "more points see smaller differences"
    assert guesses(0.05, 1000, 10), "worse than guessing is no better"
    assert guesses(0.50, 100, 2)
