"""Pruning at one keep ratio, after the look at the points, against one copy of the network's weights."""

import copy

import pytest
import torch
from networks import LARGE, NETWORKS, Pair, network

import sipp_bench as sb
from sipp_bench.zoo import models

CPU = torch.device("cpu")


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("method", sb.list_methods())
def test_prune(name: str, method: str, device: torch.device, pair: Pair) -> None:
    model, points = network(name, device)
    labels = torch.arange(len(points), device=device) % 10
    fitted = sb.fit(model, points, method, labels=labels)
    pair(
        lambda: fitted.prune(0.2, 0), lambda: copy.deepcopy(model), device, 3,
        table="prune / copy of the network", row=f"{name}, {device}", column=method,
    )  # fmt: skip


@pytest.mark.parametrize("threads", [2], indirect=True)
@pytest.mark.parametrize("method", sb.list_methods())
def test_prune_a_hundred_million_weights(method: str, threads: int, pair: Pair) -> None:
    with models.seeded(0):
        model = models.build(LARGE, (3, 224, 224), 1000).eval()
        points = torch.rand(1, 3, 224, 224)
    fitted = sb.fit(model, points, method, labels=torch.zeros(1, dtype=torch.int64))
    pair(
        lambda: fitted.prune(0.2, 0), lambda: copy.deepcopy(model), CPU, 1,
        table="prune 138 M weights (VGG16), 2 threads", row=LARGE, column=method,
    )  # fmt: skip
