"""Whom pruning hurts: accuracy and loss by class, or by any other division of the points into groups.

Groups are int64 (n,), numbered from 0; the labels themselves are such groups. A group without points has NaN.
"""

import torch
from torch import Tensor

from sipp_bench.errors import PointsError
from sipp_bench.measures.predictions import check, losses


def group_means(values: Tensor, groups: Tensor, count: int) -> Tensor:
    """The mean of `values` (n,) in each of `count` groups: (count,) float64."""
    if values.ndim != 1 or values.shape != groups.shape or len(values) == 0:
        raise PointsError(f"A group for each value is needed: {tuple(groups.shape)} for {tuple(values.shape)}.")
    if groups.min() < 0 or groups.max() >= count:
        raise PointsError(f"There are {count} groups, but numbers from {groups.min()} to {groups.max()}.")
    sums = torch.zeros(count, dtype=torch.float64).index_add_(0, groups, values.double())
    return sums / torch.bincount(groups, minlength=count)


def class_accuracies(logits: Tensor, labels: Tensor) -> Tensor:
    """The share of each class's points that are predicted as that class: (classes,) float64."""
    check(logits, labels)
    return group_means(logits.argmax(1) == labels, labels, logits.shape[1])


def worst_group(values: Tensor) -> tuple[int, float]:
    """The group with the smallest value, the first of several, and that value; groups with NaN are passed over."""
    group = int(_known(values).argmin())
    return int((~values.isnan()).nonzero()[group]), float(_known(values)[group])


def loss_changes(dense: Tensor, pruned: Tensor, labels: Tensor, groups: Tensor, count: int) -> Tensor:
    """R(a) = mean loss of the pruned network over group a, minus that of the dense one: (count,) float64, in nats.

    The excessive loss of Tran et al. 2022, "Pruning has a disparate impact on model accuracy" (arXiv:2205.13574).
    dense, pruned: logits (n, classes); R(a) > 0 where pruning hurts.
    """
    return group_means(losses(pruned, labels) - losses(dense, labels), groups, count)


def largest_gap(values: Tensor) -> float:
    """max_{a, a'} |values(a) - values(a')| over the groups that have a value.

    Of `loss_changes`, it is the disparate impact (fairness violation) of Tran et al. 2022 (arXiv:2205.13574).
    """
    return float(_known(values).max() - _known(values).min())


def _known(values: Tensor) -> Tensor:
    known = values[~values.isnan()]
    if len(known) == 0:
        raise PointsError("No group has a value: give points in at least one.")
    return known
