"""Sampling methods keep round(keep * N) weights in expectation, within 1 % on networks of 20,000 weights and more."""

import itertools
import math

import pytest
import torch
from torch import Tensor, nn

import sipp_bench as sb
from sipp_bench.compression.pruned import Pruned

KEEPS = [0.005, 0.01, 0.03, 0.1, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.99]


def network(sizes: list[int], trained: bool) -> nn.Sequential:
    """Random as initialised, or like trained ones: heavy-tailed weights, and many units that never fire."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = [m for n, k in itertools.pairwise(sizes) for m in (nn.Linear(n, k), nn.ReLU())][:-1]
        model = nn.Sequential(*layers)
        if trained:
            with torch.no_grad():
                for layer in layers[::2]:
                    layer.weight.mul_(torch.randn_like(layer.weight).exp())
                    layer.bias.sub_(torch.rand_like(layer.bias) * layer.weight.abs().sum(1) / 6)
    return model


def points(count: int, inputs: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(count, inputs, generator=generator) * (torch.rand(count, inputs, generator=generator) < 0.3)
    x[:, ::5] = 0  # inputs that are dead, as the border of a digit
    return x


def expected_and_variance(fitted: sb.Fitted, pruned: Pruned) -> tuple[float, float]:
    """Of the number of weights kept, from the draws alone: 1 - (1 - q_j)^m for each, the rest as it is."""
    expected, variance = 0.0, 0.0
    for name, mask in pruned.masks.items():
        s = fitted.observation.scores[name].double().flatten(1)
        weight = dict(fitted.model.named_parameters())[name].detach().flatten(1)
        new = dict(pruned.model.named_parameters())[name].detach().flatten(1)
        for column, sign in enumerate((weight > 0, weight < 0)):
            m = pruned.guarantee.draws[name][:, column, None].double()
            # In a mixture, what is kept is the top of the block, unchanged; drawn weights change (n_j != m q_j).
            kept = sign & ((m == 0) | (new == weight)) & mask.flatten(1)
            mass = torch.where(sign & ~kept & (m > 0), s, 0.0)
            q = mass / mass.sum(1, keepdim=True).clamp(min=1e-300)
            chance = torch.where(mass > 0, -torch.expm1(m * torch.log1p(-q.clamp(max=1 - 1e-16))), 0.0)
            expected += float(kept.sum() + chance.sum())
            variance += float((chance * (1 - chance)).sum())
    return expected, variance


@pytest.mark.parametrize("weights", ["uniform", "layer", "downstream"])
@pytest.mark.parametrize("count", [1, 4, 60])
@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("method", ["sipp-rand", "sipp-hybrid", "sipp-mixture"])
def test_every_keep_is_met(method: str, trained: bool, count: int, weights: str) -> None:
    model = network([200, 100, 40, 10], trained)
    fitted = sb.fit(model, points(count, 200), method, weights=weights)
    for keep in KEEPS:
        pruned = fitted.prune(keep)
        assert pruned.weights == 24_400
        expected, variance = expected_and_variance(fitted, pruned)
        assert expected == pytest.approx(pruned.requested, rel=0.01)
        # Whether a weight is drawn is negatively associated within a block: Bernstein's inequality holds for the sum,
        # with 2 exp(-t^2 / (2 (variance + t / 3))) = 1e-10, about 600 times.
        log = math.log(2e10)
        margin = log / 3 + math.sqrt((log / 3) ** 2 + 2 * variance * log)
        assert abs(pruned.kept - expected) <= margin


@pytest.mark.parametrize("method", ["sipp-rand", "sipp-mixture"])
def test_lenet_300_100_with_downstream_weights(method: str) -> None:
    model = network([784, 300, 100, 10], trained=True)
    fitted = sb.fit(model, points(40, 784), method, weights="downstream")
    c = fitted.observation.block_weights["0.weight"]
    assert (c == 0).sum() > 100, "no block without weight: the case that this test is for"
    for keep in (0.05, 0.3, 0.7):
        # The mean over 3 seeds; single runs are within 6 standard deviations, at most sqrt(N / 4) each, of 133.
        mean = sum(fitted.prune(keep, seed).kept for seed in range(3)) / 3
        assert abs(mean - round(keep * 266_200)) < 0.01 * keep * 266_200 + 6 * math.sqrt(keep * 266_200 / 3)


def test_a_constant_network_has_no_downstream_weights_and_keeps_its_count() -> None:
    model = network([200, 100, 10], trained=False)
    with torch.no_grad():
        model[-1].weight.zero_()
    live = 20_000
    for method in ("sipp-det", "sipp-rand", "sipp-hybrid", "sipp-mixture"):
        fitted = sb.fit(model, points(60, 200), method, weights="downstream")
        kept = [fitted.prune(0.5, seed).kept for seed in range(5)]
        assert sum(kept) / 5 == pytest.approx(0.5 * (live + 1000), rel=0.02)
