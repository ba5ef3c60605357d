"""Retraining: every forward pass is one of a masked network, by the same training whatever the masks."""

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from samples import build
from torch import Tensor, nn

import sipp_bench as sb
from sipp_bench.protocols import Task, make_protocol
from sipp_bench.zoo import training
from sipp_bench.zoo.data import Part
from sipp_bench.zoo.training import Recipe

RECIPE = Recipe(epochs=2, batch_size=8, learning_rate=0.1, momentum=0.9, weight_decay=1e-2)
N, STEPS = 20, 3


class Watched(nn.Sequential):
    """Notes the weights that each training step runs with. Copies note into the same list."""

    def __init__(self) -> None:
        super().__init__(nn.Flatten(), nn.Linear(9, 7), nn.ReLU(), nn.Linear(7, 3))
        self.seen: list[dict[str, Tensor]] = []

    def __deepcopy__(self, memo: dict[int, Any]) -> "Watched":
        other = Watched()
        other.load_state_dict(self.state_dict())
        for name, parameter in self.named_parameters():
            if id(parameter) in memo:  # the weights that pruning puts in
                path, _, attribute = name.rpartition(".")
                setattr(other.get_submodule(path), attribute, memo[id(parameter)])
        other.seen = self.seen
        return other.train(self.training)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.seen.append({name: value.detach().clone() for name, value in self.named_parameters()})
        out: Tensor = super().forward(x)
        return out


@pytest.fixture
def part() -> Part:
    draws = torch.Generator().manual_seed(1)
    images = torch.rand(N, 1, 3, 3, generator=draws)
    return Part(images, torch.arange(N) % 3, torch.arange(N))


@pytest.fixture
def make_task(part: Part) -> Callable[..., Task]:
    def make(seed: int = 0, keep: float = 0.4) -> Task:
        model = build(Watched).eval()

        def fit(network: nn.Module) -> sb.Fitted:
            return sb.fit(network, part.images, "magnitude")

        return Task(fit(model), fit, lambda epoch: model, part, RECIPE, keep, seed)

    return make


@pytest.mark.parametrize(
    ("name", "options", "steps"),
    [
        ("retrain", {}, 2 * STEPS),
        ("cascade", {"steps": 2}, 4 * STEPS),
        ("rewind", {"rewind_epoch": 1}, STEPS),
        ("lr-rewind", {"retrain_epochs": 1}, STEPS),
        ("lottery", {}, 4 * STEPS),
    ],
)
def test_every_step_begins_with_masked_weights_and_moves_them(
    make_task: Callable[..., Task], name: str, options: dict[str, Any], steps: int
) -> None:
    task = make_task()
    seen = task.fitted.model.seen
    assert isinstance(seen, list)
    outcome = make_protocol(name, **options).run(task)
    assert len(seen) == steps
    kept = [{name: value != 0 for name, value in state.items() if name.endswith("weight")} for state in seen]
    # One subnetwork after the other, or the two steps of a cascade.
    half = steps // 2 if name in ("cascade", "lottery") else steps
    for one in (kept[:half], kept[half:]):
        assert all(not bool((mask & ~one[0][weight]).any()) for state in one for weight, mask in state.items())
    assert outcome.retrained is not None
    expected = [kept[0], kept[half]] if name == "lottery" else [kept[-half]]
    for pruned, first in zip(filter(None, (outcome.control, outcome.retrained)), expected, strict=True):
        assert all(torch.equal(first[weight], mask) for weight, mask in pruned.masks.items())
    for before, after in itertools.pairwise(seen):
        assert any(not torch.equal(before[weight], after[weight]) for weight in before)


def test_the_seed_of_a_cell_is_that_of_its_retraining(make_task: Callable[..., Task]) -> None:
    after = []
    for seed in (0, 0, 1):
        outcome = make_protocol("retrain").run(make_task(seed))
        assert outcome.retrained is not None
        after.append(outcome.retrained.mask_sha256)
    assert after[0] == after[1] != after[2]


def test_a_training_follows_its_seed_in_batches_dropout_and_augmentation(part: Part) -> None:
    def trained(seed: int, images: int, batch_size: int, dropout: float, augment: Any) -> list[float]:
        model = build(lambda: nn.Sequential(nn.Flatten(), nn.Dropout(dropout), nn.Linear(9, 3)))
        recipe = Recipe(epochs=3, batch_size=batch_size, learning_rate=0.1, augment=augment)
        training.train(model, part.images[:images], part.labels[:images], recipe, seed)
        return [round(value, 3) for value in model[2].weight.flatten().tolist()]

    # One image has one order: what else differs between seeds is drawn for it.
    assert trained(0, 1, 1, 0.0, "none") == trained(1, 1, 1, 0.0, "none")
    for settings in ((N, 8, 0.0, "none"), (1, 1, 0.5, "none"), (1, 1, 0.0, "shift")):
        assert trained(0, *settings) == trained(0, *settings)
        assert trained(0, *settings) != trained(1, *settings), settings
