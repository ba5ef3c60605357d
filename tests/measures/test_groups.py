"""Groups by hand and against scikit-learn; one class that pruning ruins is found."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import recall_score
from torch import Tensor

from sipp_bench.errors import PointsError
from sipp_bench.measures.groups import class_accuracies, group_means, largest_gap, loss_changes, worst_group
from sipp_bench.measures.predictions import mean_loss


def sample(n: int, classes: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    dense, pruned = torch.randn(2, n, classes, generator=generator)
    return dense, pruned, torch.randint(classes, (n,), generator=generator)


@given(st.integers(1, 60), st.integers(2, 6), st.integers(0, 99))
def test_class_accuracy_is_scikit_learns_recall(n: int, classes: int, seed: int) -> None:
    logits, _, labels = sample(n, classes, seed)
    found = class_accuracies(logits, labels).numpy()
    there = labels.unique().numpy()
    expected = recall_score(labels.numpy(), logits.argmax(1).numpy(), labels=there, average=None, zero_division=0)
    np.testing.assert_allclose(found[there], expected, rtol=1e-14)
    assert np.isnan(np.delete(found, there)).all(), "a class without points has no accuracy"


def test_groups_by_hand() -> None:
    values, groups = torch.tensor([1.0, 2.0, 4.0, 8.0]), torch.tensor([2, 0, 2, 0])
    means = group_means(values, groups, 4)
    assert means[[0, 2]].tolist() == [5.0, 2.5]
    assert means[[1, 3]].isnan().all()
    assert worst_group(means) == (2, 2.5)
    assert largest_gap(means) == 2.5
    assert worst_group(torch.tensor([3.0, 1.0, 1.0])) == (1, 1.0), "the first of several"


def test_loss_changes_by_hand() -> None:
    even, sure = [0.0, 0.0], [math.log(3), 0.0]  # probabilities 1/2, 1/2 and 3/4, 1/4
    dense, pruned = torch.tensor([even, even, even]), torch.tensor([sure, sure, even])
    found = loss_changes(dense, pruned, torch.tensor([0, 1, 1]), torch.tensor([0, 1, 1]), 2)
    assert found.tolist() == pytest.approx([math.log(2 / 3), math.log(2) / 2])
    assert largest_gap(found) == pytest.approx(math.log(2) / 2 + math.log(3 / 2))


@given(st.integers(1, 60), st.integers(2, 6), st.integers(0, 99))
def test_loss_changes_average_to_the_change_of_the_loss(n: int, classes: int, seed: int) -> None:
    dense, pruned, labels = sample(n, classes, seed)
    groups = (torch.arange(n) * 7 + seed) % 3  # other groups than the classes
    changes = loss_changes(dense, pruned, labels, groups, 3)
    sizes = torch.bincount(groups, minlength=3)
    total = float((changes.nan_to_num() * sizes).sum()) / n
    assert total == pytest.approx(mean_loss(pruned, labels) - mean_loss(dense, labels), abs=1e-12)
    assert loss_changes(dense, dense, labels, groups, 3).nan_to_num().tolist() == [0, 0, 0]
    assert torch.equal(loss_changes(pruned, dense, labels, groups, 3).nan_to_num(), -changes.nan_to_num())


def test_a_ruined_class_is_the_worst_and_makes_the_gap() -> None:
    labels = torch.arange(100) % 10
    dense = 5 * torch.eye(10)[labels]
    pruned = dense.clone()
    pruned[labels == 6] = pruned[labels == 6].roll(1, 1)
    assert worst_group(class_accuracies(pruned, labels)) == (6, 0.0)
    changes = loss_changes(dense, pruned, labels, labels, 10)
    assert int(changes.argmax()) == 6
    assert largest_gap(changes) == pytest.approx(5)


def test_groups_that_do_not_fit_are_refused() -> None:
    with pytest.raises(PointsError, match="each value"):
        group_means(torch.ones(3), torch.zeros(2, dtype=torch.int64), 1)
    with pytest.raises(PointsError, match="2 groups"):
        group_means(torch.ones(1), torch.tensor([2]), 2)
    with pytest.raises(PointsError, match="No group"):
        largest_gap(torch.full((2,), math.nan))
