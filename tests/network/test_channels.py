"""Which channels feed which: on networks whose wiring is known, through everything that may lie between."""

import pytest
import torch
from samples import build
from torch import Tensor, nn

from sipp_bench.network.channels import NOBODY, SEVERAL, couple


class Wired(nn.Module):
    """A residual sum, a concatenation, and a reversal of channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.inner, self.back = (nn.Conv2d(*c, 3, padding=1) for c in ((2, 4), (4, 5), (5, 4)))
        self.norm, self.join, self.head = nn.BatchNorm2d(5), nn.Conv2d(8, 3, 1), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        y = x + self.back(torch.relu(self.norm(self.inner(x))).flip(1))
        joined = torch.cat([nn.functional.max_pool2d(y, 2), nn.functional.avg_pool2d(x, 2)], 1)
        return self.head(torch.relu(self.join(joined)).mean((2, 3)))


def test_wiring_of_sums_concatenations_and_permutations() -> None:
    found = couple(build(Wired).train(), torch.rand(3, 2, 6, 6))
    fed = {pair: by.tolist() for pair, by in found.feeds.items()}
    stem, inner, back, join, head = (f"{n}.weight" for n in ("stem", "inner", "back", "join", "head"))
    assert fed == {
        (stem, inner): [0, 1, 2, 3],
        (stem, join): [0, 1, 2, 3, 0, 1, 2, 3],
        (inner, back): [4, 3, 2, 1, 0],
        (back, join): [0, 1, 2, 3, NOBODY, NOBODY, NOBODY, NOBODY],
        (join, head): [0, 1, 2],
    }
    assert set(found.leaks) == {head}
    assert set(found.removable(inner)) == {back}
    assert found.removable(join).keys() == {head}
    assert not found.removable(stem), "the residual sum is fed by two layers"
    assert not found.removable(back)


@pytest.mark.parametrize(
    "norm", [nn.LayerNorm(6), nn.GroupNorm(3, 6), nn.Softmax(-1)], ids=lambda norm: type(norm).__name__
)
def test_what_mixes_channels_is_seen(norm: nn.Module) -> None:
    found = couple(nn.Sequential(nn.Linear(4, 6), norm, nn.Linear(6, 2)), torch.rand(2, 4))
    assert set(found.feeds["0.weight", "2.weight"].tolist()) == {SEVERAL}
    assert not found.removable("0.weight")


def test_a_layer_that_is_called_twice_and_one_that_nobody_reads() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.twice, self.unread, self.head = nn.Linear(4, 4), nn.Linear(4, 3), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            self.unread(x)
            return self.head(self.twice(torch.relu(self.twice(x))))

    found = couple(build(Odd), torch.rand(2, 4))
    assert "more than once" in found.leaks["twice.weight"]
    assert "no layer reads" in found.leaks["unread.weight"]


@pytest.mark.parametrize("width", [1, 2, 3, 31, 32, 33])
def test_every_channel_is_told_apart(width: int) -> None:
    order = torch.randperm(width, generator=torch.Generator().manual_seed(width))

    class Shuffled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(3, width), nn.Linear(width, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.second(torch.tanh(self.first(x))[:, order])

    found = couple(build(Shuffled), torch.rand(1, 3))
    assert found.feeds["first.weight", "second.weight"].tolist() == order.tolist()


def test_the_network_stays_as_it_is() -> None:
    model = build(Wired).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    couple(model, torch.rand(3, 2, 6, 6))
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
