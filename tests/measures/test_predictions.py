"""Predictions by hand and against scikit-learn; what is planted is found."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from samples import build, small_network
from sklearn.metrics import log_loss, top_k_accuracy_score
from torch import Tensor, nn

from sipp_bench.errors import OptionError, PointsError
from sipp_bench.measures.predictions import (
    agreement,
    evaluate,
    flips,
    losses,
    mean_loss,
    predict,
    softmax_distance,
    top_k_accuracy,
    with_twin,
)


def logits_of(n: int, classes: int, seed: int, whole: bool = False) -> Tensor:
    random = torch.randn(n, classes, generator=torch.Generator().manual_seed(seed))
    return (2 * random).round() if whole else random


def labels_of(n: int, classes: int, seed: int) -> Tensor:
    return torch.randint(classes, (n,), generator=torch.Generator().manual_seed(1000 + seed))


def test_predict_is_in_eval_mode_and_leaves_the_network_as_it_was() -> None:
    network, x = build(small_network).train(), torch.rand(7, 2, 6, 6)
    found = predict(network, x, batch_size=3)
    assert network.training
    assert network[5].training, "dropout"
    assert torch.equal(found, predict(network, x, batch_size=3)), "no dropout"
    labels = labels_of(7, 3, 0)
    of_logits = evaluate(nn.Identity(), predict(network, x), labels)
    assert of_logits == evaluate(network, x, labels)
    with pytest.raises(PointsError, match="at least one"):
        predict(network, x[:0])


def test_top_k_by_hand() -> None:
    logits = torch.tensor([[3.0, 2.0, 1.0], [3.0, 2.0, 1.0], [1.0, 1.0, 1.0], [math.nan, 0.0, 0.0]])
    labels = torch.tensor([0, 1, 2, 0])
    # Ranks 0, 1, 2 (equal logits: the earlier class is larger); the point with NaN is always wrong.
    assert [top_k_accuracy(logits, labels, k) for k in (1, 2, 3, 9)] == [1 / 4, 2 / 4, 3 / 4, 3 / 4]
    with pytest.raises(OptionError, match="at least 1"):
        top_k_accuracy(logits, labels, 0)


@given(st.integers(1, 40), st.integers(3, 7), st.integers(1, 6), st.integers(0, 99))
def test_top_k_is_scikit_learns(n: int, classes: int, k: int, seed: int) -> None:
    k = min(k, classes - 1)
    logits, labels = logits_of(n, classes, seed), labels_of(n, classes, seed)
    expected = top_k_accuracy_score(labels.numpy(), logits.numpy(), k=k, labels=range(classes))
    assert top_k_accuracy(logits, labels, k) == pytest.approx(float(expected), abs=1e-15)


@given(st.integers(1, 40), st.integers(1, 5), st.integers(0, 99))
def test_top_1_is_the_accuracy_of_the_first_largest_logit(n: int, classes: int, seed: int) -> None:
    logits, labels = logits_of(n, classes, seed, whole=True), labels_of(n, classes, seed)
    first = np.argmax(logits.numpy(), 1)
    assert top_k_accuracy(logits, labels, 1) == float((first == labels.numpy()).mean())
    assert top_k_accuracy(logits, labels, classes) == 1


def test_loss_is_scikit_learns_and_that_of_evaluate() -> None:
    logits, labels = logits_of(50, 4, 1), labels_of(50, 4, 1)
    assert mean_loss(logits, labels) == pytest.approx(log_loss(labels, logits.double().softmax(1), labels=range(4)))
    assert mean_loss(logits, labels) == pytest.approx(evaluate(nn.Identity(), logits, labels)["loss"])
    assert losses(torch.tensor([[math.log(3), 0.0]]), torch.tensor([1])).tolist() == pytest.approx([math.log(4)])


def test_flips_by_hand() -> None:
    dense = torch.eye(3)[[0, 1, 2, 0, 1]]
    pruned = torch.eye(3)[[0, 2, 2, 1, 2]]
    found = flips(dense, pruned)
    assert found.points.tolist() == [1, 3, 4]
    assert (found.dense.tolist(), found.pruned.tolist()) == ([1, 0, 1], [2, 1, 2])
    assert found.table().tolist() == [[0, 1, 0], [0, 0, 2], [0, 0, 0]]
    assert agreement(dense, pruned) == 2 / 5


@given(st.integers(1, 30), st.integers(1, 5), st.integers(0, 99))
def test_flips_and_agreement_add_up(n: int, classes: int, seed: int) -> None:
    one, other = logits_of(n, classes, seed, whole=True), logits_of(n, classes, seed + 1, whole=True)
    found = flips(one, other)
    assert len(found) + round(n * agreement(one, other)) == n
    assert int(found.table().sum()) == len(found)
    assert not found.table().diagonal().any()
    assert torch.equal(flips(other, one).table(), found.table().T)
    assert agreement(one, one) == 1
    assert len(flips(one, one)) == 0
    assert 0 <= softmax_distance(one, other) <= math.sqrt(2)
    assert softmax_distance(one, one) == 0


def test_one_planted_flip_is_found() -> None:
    dense = logits_of(200, 10, 3)
    pruned = dense.clone()
    pruned[117, (int(dense[117].argmax()) + 4) % 10] = 99.0
    assert flips(dense, pruned).points.tolist() == [117]
    assert agreement(dense, pruned) == 199 / 200


def test_softmax_distance_by_hand() -> None:
    certain, even = torch.tensor([[500.0, 0.0]]), torch.tensor([[0.0, 0.0]])
    assert softmax_distance(certain, even) == pytest.approx(math.sqrt(0.5))
    assert softmax_distance(certain, -certain) == pytest.approx(math.sqrt(2))


def test_the_twin_is_compared_with_both() -> None:
    labels = torch.arange(10) % 5
    dense = torch.eye(5)[labels]
    twin = torch.eye(5)[torch.where(torch.arange(10) < 3, (labels + 1) % 5, labels)]
    pruned = torch.eye(5)[torch.where(torch.arange(10) >= 8, (labels + 2) % 5, labels)]
    assert with_twin(agreement, pruned, dense, twin) == {"pruned_dense": 0.8, "pruned_twin": 0.5, "dense_twin": 0.7}
    distances = with_twin(softmax_distance, pruned, dense, twin)
    assert distances["pruned_twin"] > distances["dense_twin"] > distances["pruned_dense"] > 0


@pytest.mark.parametrize(
    ("logits", "labels"),
    [((3,), (3,)), ((3, 2), (2,)), ((0, 2), (0,)), ((3, 2), (3, 1))],
)
def test_shapes_that_do_not_match_are_refused(logits: tuple[int, ...], labels: tuple[int, ...]) -> None:
    with pytest.raises(PointsError, match="are needed"):
        mean_loss(torch.zeros(logits), torch.zeros(labels, dtype=torch.int64))


def test_other_points_and_labels_without_a_class_are_refused() -> None:
    with pytest.raises(PointsError, match="the same points"):
        agreement(torch.zeros(3, 2), torch.zeros(4, 2))
    with pytest.raises(PointsError, match="2 classes"):
        top_k_accuracy(torch.zeros(1, 2), torch.tensor([2]), 1)
