"""Accuracy and loss by hand, multiply-adds by hand counts, block errors against the float64 oracle."""

import copy
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import oracle
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from samples import build, linear, masked, signed, small_network
from torch import Tensor, nn

import sipp_bench as sb
from sipp_bench.compression import quantities
from sipp_bench.compression.honoured import block_errors
from sipp_bench.errors import ModelError, PointsError
from sipp_bench.measures.cost import multiply_adds
from sipp_bench.measures.predictions import evaluate
from sipp_bench.network.blocks import median


def test_accuracy_and_loss_by_hand() -> None:
    logits = torch.tensor([[0.0, 0.0], [math.log(3), 0.0], [0.0, math.log(4)], [1e4, 0.0]])
    labels = torch.tensor([0, 0, 0, 0])
    found = evaluate(nn.Identity(), logits, labels, batch_size=3)
    # Probabilities of class 0: 1/2 (a tie goes to the first), 3/4, 1/5, 1.
    assert found["accuracy"] == 3 / 4
    assert found["loss"] == pytest.approx((math.log(2) + math.log(4 / 3) + math.log(5)) / 4, rel=1e-6)


@pytest.mark.parametrize(
    ("values", "middle"),
    [
        ([3.0], 3.0),
        ([1.0, 2.0], 1.5),
        ([4.0, 1.0, 2.0, 100.0], 3.0),
        ([1.0, 2.0, math.inf], 2.0),
        ([[1, 2], [3, 4]], 2.5),
    ],
)
def test_the_median_of_an_even_number_is_the_mean_of_the_middle_two(values: list[float], middle: float) -> None:
    assert median(torch.tensor(values)) == middle
    assert math.isnan(median(torch.zeros(0)))


def test_no_median_is_the_lower_of_two() -> None:
    """torch's median is: what is printed as a median goes through `metrics.median`, numpy's, pandas' or Python's."""
    folder = Path(__file__).parents[2]
    lower = re.compile(r"torch\.(nan)?median|\)\.median\(\)\)")
    for package in ("sipp_bench", "theory_checks", "suites"):
        for file in (folder / package).rglob("*.py"):
            found = [line for line in file.read_text(encoding="utf-8").splitlines() if lower.search(line)]
            assert all("flips" in line for line in found), (file, found)  # a pandas column


def test_evaluation_is_in_eval_mode_and_the_same_for_any_batch_size() -> None:
    network, x = build(small_network).train(), signed(13, 2, 6, 6)
    network[5].p = 0.9
    labels = torch.arange(13) % 3
    found = [evaluate(network, x, labels, batch_size=size) for size in (1, 4, 13, 512)]
    with torch.no_grad():
        logits = copy.deepcopy(network).eval()(x)
    expected = nn.functional.cross_entropy(logits.double(), labels)
    for result in found:
        assert result["accuracy"] == int((logits.argmax(1) == labels).sum()) / 13
        # Logits of about 1 differ by rounding between batch sizes: some 100 operations of 6e-8 each.
        assert result["loss"] == pytest.approx(float(expected), abs=1e-5)
    assert evaluate(network, x, labels) == evaluate(network, x, labels)
    assert network.training
    assert network[5].training


def test_evaluation_refuses_points_and_labels_that_do_not_match() -> None:
    with pytest.raises(PointsError, match="not 3, 2"):
        evaluate(nn.Identity(), torch.ones(3, 2), torch.zeros(2, dtype=torch.int64))
    with pytest.raises(PointsError, match="at least one"):
        evaluate(nn.Identity(), torch.ones(0, 2), torch.zeros(0, dtype=torch.int64))
    with pytest.raises(PointsError, match="cannot process"):
        evaluate(nn.Linear(3, 2), torch.ones(4, 2), torch.zeros(4, dtype=torch.int64))


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x, x[:, :3], x[:, :3], need_weights=False)[0]


COUNTS: dict[str, tuple[Any, tuple[int, ...], int]] = {
    "linear": (lambda: nn.Linear(7, 5), (7,), 35),
    "tokens": (lambda: nn.Linear(7, 5), (4, 7), 4 * 35),
    "conv2d, padding included": (lambda: nn.Conv2d(3, 8, 3, padding=1), (3, 5, 6), 30 * 8 * 27),
    "conv2d, groups and stride": (lambda: nn.Conv2d(4, 6, 3, 2, groups=2), (4, 7, 9), 3 * 4 * 6 * 2 * 9),
    "conv1d": (lambda: nn.Conv1d(2, 3, 2, dilation=2), (2, 7), 5 * 3 * 4),
    "conv3d, depthwise": (lambda: nn.Conv3d(2, 2, 2, groups=2), (2, 3, 3, 3), 8 * 2 * 8),
    "network": (small_network, (2, 6, 6), 36 * 4 * 18 + 4 * 4 * 18 + 16 * 6 + 6 * 3),
    "twice": (lambda: nn.Sequential(*[nn.Linear(4, 4)] * 3), (4,), 3 * 16),
    # 5 queries, 3 keys and values, 5 outputs; the products of attention itself have no weights.
    "attention": (Attention, (5, 6), (5 + 3 + 3) * 36 + 5 * 36),
}


@pytest.mark.parametrize("name", COUNTS)
def test_multiply_adds_against_hand_counts(name: str) -> None:
    make, shape, expected = COUNTS[name]
    network = make()
    assert multiply_adds(network, torch.ones(1, *shape)) == expected
    assert multiply_adds(network, torch.ones(3, *shape)) == expected
    ones = {n: torch.ones_like(p, dtype=torch.bool) for n, p in network.named_parameters()}
    assert multiply_adds(network, torch.ones(1, *shape), masked(network, ones)) == expected
    none = {n: ~mask for n, mask in ones.items()}
    assert multiply_adds(network, torch.ones(1, *shape), masked(network, none)) == 0


def test_multiply_adds_of_masked_weights() -> None:
    network, x = build(small_network), torch.ones(1, 2, 6, 6)
    masks = {"0.weight": torch.zeros(4, 2, 3, 3, dtype=torch.bool), "8.weight": torch.zeros(3, 6, dtype=torch.bool)}
    masks["0.weight"][1, 0, 2, :2] = True
    masks["8.weight"][0, 0] = True
    assert multiply_adds(network, x, masked(network, masks)) == 36 * 2 + 4 * 4 * 18 + 16 * 6 + 1
    attention = Attention()
    packed = torch.zeros(18, 6, dtype=torch.bool)
    packed[0, 0] = packed[6, :2] = packed[12, :3] = True
    masks = {"attention.in_proj_weight": packed, "attention.out_proj.weight": torch.zeros(6, 6, dtype=torch.bool)}
    assert multiply_adds(attention, torch.ones(1, 5, 6), masked(attention, masks)) == 5 * 1 + 3 * 2 + 3 * 3


LAYERS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(6, 4), (6,)),
    "tokens": (lambda: nn.Linear(6, 4), (3, 6)),
    "conv2d": (lambda: nn.Conv2d(2, 4, 3, stride=2, padding=1), (2, 5, 5)),
    "conv2d groups": (lambda: nn.Conv2d(4, 4, 2, groups=2, dilation=2, padding="same"), (4, 4, 4)),
    "conv1d": (lambda: nn.Conv1d(2, 3, 3), (2, 6)),
}


def damaged(layer: nn.Module, seed: int) -> nn.Module:
    """A copy with some weights dropped and the others scaled by factors between 0 and 3, signs kept."""
    other = copy.deepcopy(layer)
    shape = other.weight.shape
    factors = torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 3
    with torch.no_grad():
        other.weight.mul_(torch.where(signed(*shape, seed=seed + 1) > 0.5, 0.0, factors))
    return other


@settings(deadline=None, max_examples=40)
@given(st.sampled_from(sorted(LAYERS)), st.integers(0, 999), st.sampled_from([50, 1 << 23]))
def test_block_errors_agree_with_the_oracle(name: str, seed: int, chunk: int) -> None:
    make, shape = LAYERS[name]
    layer = build(make, seed)
    other, x = damaged(layer, seed), signed(5, *shape, seed=seed)
    patches = oracle.patches(layer, x)
    largest, average = oracle.relative_errors(layer.weight, other.weight, patches)
    limits = torch.from_numpy(largest) * 0.5
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quantities, "CHUNK", chunk)
        found = block_errors(layer, other, x, ["weight"], {"weight": limits}, batch_size=2)["weight"]
    # |Zhat - Z| / Z in float64: Z and Zhat within n u of the exact ones, Zhat at most 3 Z.
    np.testing.assert_allclose(found.largest.numpy(), largest, rtol=0, atol=1e-13)
    if isinstance(layer, nn.Linear):
        average = largest  # tokens are patches of their own
    found_average = block_errors(layer, other, x, ["weight"], per_patch=False)["weight"].largest
    np.testing.assert_allclose(found_average.numpy(), average, rtol=0, atol=1e-13)
    assert np.array_equal(found.active.numpy(), oracle.sensitivity(layer.weight, patches).active)
    assert bool((found.exceeding <= found.active).all())
    # Where an error is above its limit, the largest one is; nothing exceeds a limit of infinity.
    assert torch.equal(found.exceeding > 0, torch.from_numpy(largest) > limits)
    unlimited = block_errors(layer, other, x, ["weight"])["weight"]
    assert not unlimited.exceeding.any()


def test_exceedances_are_counted_one_by_one() -> None:
    layer, other = linear([[1.0, 1.0, -1.0]]), linear([[1.0, 0.0, -1.0]])
    # Shares of the dropped weight: .5, .75, .2, .9 on a_+; 1 on a_- of the last point.
    x = torch.tensor([[1.0, 1.0, 1.0], [1.0, 3.0, 0.0], [4.0, 1.0, 0.0], [1.0, 9.0, 0.0], [0.0, -2.0, 5.0]])
    found = block_errors(layer, other, x, ["weight"], {"weight": torch.tensor([[0.5, 0.1]])})["weight"]
    assert found.largest.tolist() == [[1.0, 0.0]]
    assert found.exceeding.tolist() == [[3, 0]]
    assert found.active.tolist() == [[5, 2]]


def test_errors_are_measured_on_the_dense_networks_inputs() -> None:
    network, x = build(small_network).eval(), signed(6, 2, 6, 6)
    pruned = sb.prune(network, x, keep=0.3).model
    names = ["0.weight", "8.weight"]
    found = block_errors(network, pruned, x, names)
    assert list(found) == names
    with torch.no_grad():
        a = network[:8](x)
    largest, _ = oracle.relative_errors(network[8].weight, pruned[8].weight, oracle.patches(network[8], a))
    # The inputs of the last layer differ by the rounding of another batch size, if at all.
    np.testing.assert_allclose(found["8.weight"].largest.numpy(), largest, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(("dense", "pruned"), [(1.0, -1.0), (0.0, 1.0), (1e-300, -1e-300)])
def test_a_changed_sign_is_refused(dense: float, pruned: float) -> None:
    one, other = (linear([[w, 1.0]], torch.float64) for w in (dense, pruned))
    with pytest.raises(ModelError, match="changed the sign"):
        block_errors(one, other, torch.ones(2, 2, dtype=torch.float64), ["weight"])
