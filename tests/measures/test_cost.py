"""Compression and theoretical speed-up by hand, and layer by layer against torch's own counter."""

import math

import pytest
import small_networks
import torch
from samples import build, masked, small_network
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from sipp_bench.measures.cost import compression_ratio, multiply_adds, operations, theoretical_speedup


def random_masks(network: nn.Module, names: list[str], keep: float = 0.3) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    weights = dict(network.named_parameters())
    return {name: torch.rand(weights[name].shape, generator=generator) < keep for name in names}


def test_compression_by_hand() -> None:
    network = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2, bias=False))
    assert compression_ratio(network, {}) == 1
    mask = torch.zeros(3, 4, dtype=torch.bool)
    mask[0, :2] = True
    # 12 + 3 + 3 + 3 + 6 parameters, of which 10 go.
    assert compression_ratio(network, masked(network, {"0.weight": mask})) == 27 / 17
    layer = nn.Linear(2, 2, bias=False)
    assert compression_ratio(layer, masked(layer, {"weight": torch.zeros(2, 2, dtype=torch.bool)})) == math.inf


def test_a_tied_weight_counts_once() -> None:
    network = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
    network[1].weight = network[0].weight
    mask = torch.eye(3, dtype=torch.bool)
    assert compression_ratio(network, masked(network, {"0.weight": mask})) == 9 / 3
    assert theoretical_speedup(network, torch.ones(1, 3), masked(network, {"0.weight": mask})) == 18 / 6


@pytest.mark.parametrize("kind", ["mlp", "conv", "small"])
def test_speedup_is_torchs_count_of_each_layer_times_its_nonzero_share(kind: str) -> None:
    if kind == "small":
        network, x = build(small_network), torch.ones(1, 2, 6, 6)
    else:
        network, points = small_networks.build(kind)
        x = points[:1]
    layers = [name for name, module in network.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    masks = random_masks(network, [f"{name}.weight" for name in layers])
    with FlopCounterMode(display=False) as counter:
        network.eval()(x)
    counts = counter.get_flop_counts()
    dense = {name: sum(counts[f"{type(network).__name__}.{name}"].values()) / 2 for name in layers}
    left = sum(dense[name] * float(masks[f"{name}.weight"].double().mean()) for name in layers)
    assert theoretical_speedup(network, x, masked(network, masks)) == pytest.approx(sum(dense.values()) / left)
    assert operations(network, x) == sum(dense.values()) == multiply_adds(network, x)
    assert operations(network, torch.cat([x, x])) == sum(dense.values()), "for one point"


def test_attentions_own_products_stay() -> None:
    network = nn.MultiheadAttention(6, 2, batch_first=True)

    class Self(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = network

        def forward(self, x: Tensor) -> Tensor:
            return self.attention(x, x, x, need_weights=False)[0]

    model, x = Self().eval(), torch.ones(1, 5, 6)
    weights, products = 4 * 5 * 36, 2 * 5 * 5 * 6
    assert operations(model, x) == weights + products
    masks = random_masks(model, ["attention.in_proj_weight", "attention.out_proj.weight"])
    kept = sum(int(mask.sum()) for mask in masks.values())
    assert theoretical_speedup(model, x, masked(model, masks)) == (weights + products) / (5 * kept + products)
    nothing = {name: torch.zeros_like(mask) for name, mask in masks.items()}
    assert theoretical_speedup(model, x, masked(model, nothing)) == (weights + products) / products


def test_the_fast_path_hides_nothing_and_modes_are_restored() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).train()
    before = torch.backends.mha.get_fastpath_enabled()
    try:
        for enabled in (True, False):
            torch.backends.mha.set_fastpath_enabled(enabled)
            assert operations(layer, torch.ones(1, 5, 8)) == 5 * (4 * 64 + 2 * 128) + 2 * 5 * 5 * 8
            assert torch.backends.mha.get_fastpath_enabled() == enabled
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
    assert layer.training


def test_no_masks_no_speedup_and_nothing_left_is_infinite() -> None:
    network, x = build(small_network), torch.ones(1, 2, 6, 6)
    assert theoretical_speedup(network, x, {}) == 1
    names = [name for name, weight in network.named_parameters() if weight.ndim > 1]
    assert theoretical_speedup(network, x, masked(network, random_masks(network, names, keep=0))) == math.inf


def test_a_layer_left_dense_limits_the_speedup() -> None:
    network, x = nn.Sequential(nn.Linear(10, 10), nn.Linear(10, 30)), torch.ones(1, 10)
    masks = random_masks(network, ["0.weight"], keep=0)
    assert theoretical_speedup(network, x, masked(network, masks)) == 400 / 300
