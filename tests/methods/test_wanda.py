"""Wanda against a computation over unfolded patches."""

import numpy as np
import pytest
import torch
from small_networks import build, layer_patches
from torch import nn

import sipp_bench as sb


@pytest.mark.parametrize("kind", ["mlp", "conv"])
@pytest.mark.parametrize("batch_size", [2, 9])
def test_scores(kind: str, batch_size: int) -> None:
    model, points = build(kind, torch.float64)
    scores = sb.fit(model, points, "wanda", batch_size=batch_size).observation.scores
    for name, (layer, patches) in layer_patches(model, points).items():
        norms = np.sqrt((patches**2).sum((0, 1))).repeat(len(layer.weight) // patches.shape[2], 0)
        expected = layer.weight.detach().flatten(1).abs().numpy() * norms
        # Norms are rounded to float32, u = 6e-8.
        np.testing.assert_allclose(scores[name].flatten(1).numpy(), expected, rtol=2e-7)


def test_by_hand() -> None:
    model = nn.Sequential(nn.Linear(3, 1, bias=False))
    model[0].weight = nn.Parameter(torch.tensor([[1.0, -2.0, 10.0]]))
    points = torch.tensor([[3.0, 0.0, 0.0], [4.0, -1.0, 0.0]])
    fitted = sb.fit(model, points, "wanda")
    assert fitted.observation.scores["0.weight"].tolist() == [[5.0, 2.0, 0.0]]
    assert fitted.prune(1 / 3).masks["0.weight"].tolist() == [[True, False, False]]


def test_each_output_keeps_its_share() -> None:
    model, points = build("conv")
    pruned = sb.prune(model, points, method="wanda", keep=0.5)
    for mask in pruned.masks.values():
        counts = mask.flatten(1).sum(1)
        assert counts.max() - counts.min() <= 1
    assert pruned.kept == pruned.requested
