"""SNIP against autograd by hand."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from small_networks import build
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import sipp_bench as sb
from sipp_bench.errors import ModelError, PointsError

# float64, 9 points: sums of a few hundred products, each within 1e-16 relative, gradients of order 1e-3 and more.
CLOSE = {"rtol": 1e-10, "atol": 1e-13}


def by_hand(model: nn.Module, points: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
    model.eval()
    weights = {n: p for n, p in model.named_parameters() if p.ndim >= 2}
    total = {n: torch.zeros_like(p) for n, p in weights.items()}
    for x, y in zip(points, labels, strict=True):  # point by point: another order of everything
        loss = F.cross_entropy(model(x[None]), y[None]) / len(points)
        for n, g in zip(weights, torch.autograd.grad(loss, [*weights.values()]), strict=True):
            total[n] += g
    return {n: (p * total[n]).abs().detach() for n, p in weights.items()}


@pytest.mark.parametrize("kind", ["mlp", "conv", "attention"])
@pytest.mark.parametrize("batch_size", [2, 9])
def test_scores(kind: str, batch_size: int) -> None:
    model, points = build(kind, torch.float64)
    labels = torch.arange(9) % 3
    expected = by_hand(model, points, labels)
    scores = sb.fit(model, points, "snip", labels, batch_size=batch_size).observation.scores
    assert list(scores) == list(expected)
    for name, score in scores.items():
        torch.testing.assert_close(score, expected[name], **CLOSE)


def test_where_the_labels_come_from() -> None:
    model, points = build("mlp", torch.float64)
    own, given = torch.arange(9) % 4, (torch.arange(9) + 1) % 4
    predicted = model(points).argmax(1)
    loader = DataLoader(TensorDataset(points, own), batch_size=4)
    cases = [
        (sb.fit(model, points, "snip", given), given),
        (sb.fit(model, points, "snip", given.numpy()), given),
        (sb.fit(model, points, "snip"), predicted),
        (sb.fit(model, loader, "snip"), own),
        (sb.fit(model, loader, "snip", given), given),
        (sb.fit(model, DataLoader(TensorDataset(points), batch_size=4), "snip"), predicted),
    ]
    for fitted, labels in cases:
        expected = by_hand(model, points, labels)
        for name, score in fitted.observation.scores.items():
            torch.testing.assert_close(score, expected[name], **CLOSE)


@pytest.mark.parametrize(
    "labels",
    [
        torch.zeros(8, dtype=torch.long), torch.zeros(10, dtype=torch.long), torch.zeros(9, 2, dtype=torch.long),
        torch.full((9,), 4), torch.full((9,), -1), torch.full((9,), 0.5), np.zeros(4),
    ],
)  # fmt: skip
def test_labels_that_do_not_fit(labels) -> None:
    model, points = build("mlp")
    for batch_size in (4, 9):
        with pytest.raises(PointsError, match="label"):
            sb.fit(model, points, "snip", labels, batch_size=batch_size)
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


def test_no_classifier() -> None:
    model = nn.Sequential(nn.Conv1d(2, 3, 3))
    with pytest.raises(ModelError, match="classifier"):
        sb.fit(model, torch.randn(2, 2, 9), "snip")


def test_frozen_weights_count_and_a_shared_weight_sums_its_uses() -> None:
    model, points = build("mlp", torch.float64)
    labels = torch.arange(9) % 4
    expected = by_hand(model, points, labels)
    model.requires_grad_(False)
    scores = sb.fit(model, points, "snip", labels).observation.scores
    torch.testing.assert_close(scores["0.weight"], expected["0.weight"], **CLOSE)
    assert not any(p.requires_grad for p in model.parameters())
    layer = nn.Linear(4, 4, dtype=torch.float64)
    twice = nn.Sequential(layer, nn.Tanh(), layer)
    x = torch.randn(9, 4, dtype=torch.float64)
    torch.testing.assert_close(
        sb.fit(twice, x, "snip", labels).observation.scores["0.weight"], by_hand(twice, x, labels)["0.weight"], **CLOSE
    )
