"""Random budgets: exact, within the sizes, from the seed alone, and as spread out as promised; percentiles by hand."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from samples import signed

from sipp_bench.errors import OptionError
from sipp_bench.measures.random_splits import _shares, percentile, random_splits, split_masks


@given(st.lists(st.integers(1, 10**6), min_size=1, max_size=12), st.floats(0, 1), st.integers(0, 99))
def test_every_split_is_exact_and_within_the_sizes(sizes: list[int], keep: float, seed: int) -> None:
    layers = {str(number): size for number, size in enumerate(sizes)}
    budget = round(keep * sum(sizes))
    splits = list(random_splits(layers, budget, 5, seed))
    assert len(splits) == 5
    for split in splits:
        assert list(split) == list(layers)
        assert sum(split.values()) == budget
        assert all(0 <= split[name] <= size for name, size in layers.items())


@given(st.lists(st.tuples(st.integers(1, 10**6), st.floats(1e-6, 30)), min_size=1, max_size=9), st.floats(0.001, 1))
def test_shares_are_capped_multiples_of_the_draws(layers: list[tuple[int, float]], keep: float) -> None:
    size, draws = np.array([n for n, _ in layers]), np.array([g for _, g in layers])
    budget = max(1, round(keep * size.sum()))
    shares = _shares(draws, size, budget)
    assert (shares * size).sum() == pytest.approx(budget)
    assert ((shares >= 0) & (shares <= 1)).all()
    free = shares < 1
    if free.any():
        t = float((shares[free] / draws[free])[0])
        np.testing.assert_allclose(shares[free], t * draws[free], rtol=1e-9)
        assert (t * draws[~free] >= 1 - 1e-9).all(), "a full layer would have got more"


def test_splits_follow_from_the_seed_and_differ() -> None:
    sizes = {"a": 500, "b": 40000, "c": 500}
    one, again, other = (list(random_splits(sizes, 4100, 20, seed)) for seed in (0, 0, 1))
    assert one == again
    assert one != other
    assert len({tuple(split.values()) for split in one}) == 20
    assert list(random_splits(sizes, 4100, 5, 0)) == one[:5], "more splits don't change the first ones"


def test_layers_are_alike_on_average_and_differ_by_large_factors() -> None:
    sizes = {"a": 1000, "b": 1000, "c": 1000}
    shares = np.array([list(split.values()) for split in random_splits(sizes, 150, 2000, 3)]) / 150
    # Without caps the shares of equal layers are a flat Dirichlet: mean 1/3, variance 1/18; 5 standard errors of it.
    np.testing.assert_allclose(shares.mean(0), 1 / 3, atol=5 * np.sqrt(1 / 18 / 2000))
    np.testing.assert_allclose(shares.var(0), 1 / 18, rtol=0.15)
    ratios = shares.max(1) / np.maximum(shares.min(1), 1 / 150)
    assert np.median(ratios) > 4


def test_impossible_budgets_are_refused() -> None:
    for sizes, budget in (({"a": 3}, 4), ({"a": 3}, -1), ({"a": 0}, 0)):
        with pytest.raises(OptionError, match="can't be drawn"):
            list(random_splits(sizes, budget, 1, 0))


def test_masks_of_a_split_keep_each_layers_largest_scores() -> None:
    weights = {"a": signed(4, 5, seed=1, zeros=0), "b": signed(3, 2, 2, seed=2, zeros=0)}
    scores = {name: weight.abs() for name, weight in weights.items()}
    for split in random_splits({"a": 20, "b": 12}, 9, 10, 0):
        masks = split_masks(scores, weights, split)
        assert {name: int(mask.sum()) for name, mask in masks.items()} == split
        for name, mask in masks.items():
            assert mask.shape == weights[name].shape
            if 0 < split[name] < mask.numel():
                assert scores[name][mask].min() >= scores[name][~mask].max()


def test_percentiles_by_hand() -> None:
    assert percentile(0.5, [0.1, 0.5, 0.5, 0.9]) == 50  # one below, two ties
    assert percentile(0.9, [0.1, 0.5, 0.5, 0.9]) == 87.5
    assert percentile(2, [0.1]) == 100
    assert percentile(0, [0.1]) == 0
    with pytest.raises(OptionError, match="at least one"):
        percentile(0.5, [])
    with pytest.raises(OptionError, match="NaN"):
        percentile(0.5, [float("nan")])


@given(st.integers(0, 9), st.lists(st.integers(0, 9), min_size=1))
def test_percentiles_are_the_formula(value: int, others: list[int]) -> None:
    below, ties = sum(other < value for other in others), others.count(value)
    assert percentile(value, list(map(float, others))) == pytest.approx(100 * (below + ties / 2) / len(others))


def test_a_planted_winner_and_loser_are_seen() -> None:
    others = torch.rand(99, generator=torch.Generator().manual_seed(0)).tolist()
    assert percentile(1.5, others) == 100
    assert percentile(-1.5, others) == 0
    assert percentile(float(np.median(others)), others) == pytest.approx(50)
