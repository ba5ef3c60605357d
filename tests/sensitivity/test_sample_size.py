"""The authors' rule for the number of points, at the two networks whose numbers THEORY gives, and by hand."""

import math

import pytest
import torch
from torch import Tensor, nn

import sipp_bench as sb
from sipp_bench.errors import ModelError, OptionError, PointsError


def lenet() -> nn.Module:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(784, 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU(), nn.Linear(100, 10)
    )


class ResNet20(nn.Module):
    """CIFAR's, as far as its output sizes go: shortcuts without weights."""

    def __init__(self) -> None:
        super().__init__()
        widths = [16] * 7 + [32] * 6 + [64] * 6
        strides = [1] * 7 + [2] + [1] * 5 + [2] + [1] * 5
        channels = [3, *widths[:-1]]
        self.body = nn.Sequential(
            *(nn.Conv2d(c, w, 3, s, 1) for c, w, s in zip(channels, widths, strides, strict=True))
        )
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).mean((2, 3)))


def test_the_numbers_that_theory_gives() -> None:
    assert sb.sample_size(lenet()) == 152
    assert sb.sample_size(lenet(), example=torch.ones(1, 1, 28, 28)) == 152
    assert sb.sample_size(ResNet20(), example=torch.ones(1, 3, 32, 32)) == 183


@pytest.mark.parametrize("delta", [0.5, 1e-3, 1e-16, 1e-300])
def test_the_rule_by_hand(delta: float) -> None:
    network = nn.Sequential(nn.Conv1d(2, 3, 2, stride=2), nn.Flatten(), nn.Linear(12, 5))
    expected = math.ceil(3 * math.log(8 * (3 * 4 + 5) * 12 / delta))
    # Only the first of several points counts.
    assert sb.sample_size(network, delta, example=torch.ones(4, 2, 9)) == expected


@pytest.mark.parametrize("delta", [0, 1, -0.5, float("nan")])
def test_delta_is_a_probability(delta: float) -> None:
    with pytest.raises(OptionError, match="delta is a failure probability"):
        sb.sample_size(lenet(), delta)


def test_what_is_refused() -> None:
    with pytest.raises(OptionError, match=r"Conv2d.*example"):
        sb.sample_size(nn.Conv2d(1, 1, 1))
    with pytest.raises(OptionError, match=r"MultiheadAttention.*example"):
        sb.sample_size(nn.TransformerEncoderLayer(4, 2))
    with pytest.raises(ModelError, match="no Linear or ConvNd"):
        sb.sample_size(nn.ReLU())
    with pytest.raises(PointsError, match="cannot process"):
        sb.sample_size(lenet(), example=torch.ones(1, 5))


def test_the_mode_of_the_network_stays() -> None:
    network = lenet().train()
    network[1].eval()
    sb.sample_size(network, example=torch.ones(1, 784))
    assert [module.training for module in network] == [True, False, True, True, True, True]
