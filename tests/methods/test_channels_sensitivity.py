"""Channels by sensitivity: removed with the rows that produce them, within the budget; the bound holds."""

import dataclasses

import pytest
import torch
from samples import build, signed
from torch import Tensor, nn

import sipp_bench as sb
from sipp_bench.compression.changes import Channels
from sipp_bench.compression.honoured import honoured

X = signed(20, 2, 6, 6)
KEEPS = (0.05, 0.3, 0.6, 0.9)


def network() -> nn.Sequential:
    return build(
        lambda: nn.Sequential(
            nn.Conv2d(2, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 8, 2, groups=2),
            nn.ReLU(), nn.Flatten(), nn.Linear(32, 6), nn.ReLU(), nn.Linear(6, 10),
        )
    )  # fmt: skip


@pytest.mark.parametrize("keep", KEEPS)
def test_removed_rows_are_read_by_nobody(keep: float) -> None:
    """The network computes the same whatever the removed rows, their biases and batch-norm entries hold."""
    pruned = sb.prune(network(), X, method="channels-sensitivity", keep=keep)
    model, out = pruned.model.eval(), pruned.model.eval()(X)
    gone = 0
    with torch.no_grad():
        for place, norm in ((0, 1), (4, None), (7, None)):
            rows = ~pruned.changes[f"{place}.weight"].rows
            gone += int(rows.sum())
            model[place].weight[rows] = 7.0
            model[place].bias[rows] = -3.0
            if norm is not None:
                model[norm].bias[rows] = 5.0
    assert gone
    assert torch.equal(model(X), out)


@pytest.mark.parametrize("keep", KEEPS)
def test_within_the_budget_and_no_further_unit_fits(keep: float) -> None:
    pruned = sb.prune(network(), X, method="channels-sensitivity", keep=keep)
    assert pruned.kept == sum(int(mask.sum()) for mask in pruned.masks.values()) <= pruned.requested
    assert all(isinstance(change, Channels) for change in pruned.changes.values())
    left = pruned.requested - pruned.kept
    for name, change in pruned.changes.items():
        per_group = change.rows.reshape(len(change.columns), -1).sum(1)
        for group, columns in enumerate(change.columns):
            if not bool(columns.all()) and name == "0.weight":  # its inputs are units of their own
                assert int(per_group[group]) * change.weight[0, 0].numel() > left


def test_the_bound_holds_and_a_smaller_one_is_broken() -> None:
    model, said = network(), set()
    fitted = sb.fit(model, X, "channels-sensitivity")
    for keep in (*KEEPS, 0.7, 0.8):
        pruned = fitted.prune(keep)
        found = honoured(model, pruned, X)
        assert not any(bool(one.broken.any()) for one in found.values())
        for name, one in found.items():
            if not bool((one.telling & (one.measured.largest > 0)).any()):
                continue
            said.add(name)
            # A bound a little below what was measured.
            below = torch.where(one.telling, one.measured.largest * 0.999, one.bound.epsilon)
            smaller = dataclasses.replace(one.bound, epsilon=below)
            wrong = dataclasses.replace(pruned.guarantee, bounds={**pruned.guarantee.bounds, name: smaller})
            assert bool(honoured(model, dataclasses.replace(pruned, guarantee=wrong), X)[name].broken.any())
    assert len(said) >= 2


def test_epsilon_is_the_sum_of_dropped_sensitivities() -> None:
    model = network()
    pruned, sens = sb.prune(model, X, method="channels-sensitivity", keep=0.5), sb.measure_sensitivity(model, X)
    for name, change in pruned.changes.items():
        s, positive, gone = (t.flatten(1) for t in (sens[name].values.double(), sens[name].positive, ~change.mask))
        expected = torch.stack([(s * gone * sign).sum(1) for sign in (positive, ~positive)], 1).clamp(max=1)
        torch.testing.assert_close(pruned.guarantee.epsilon[name], expected, rtol=1e-12, atol=1e-12)


def test_dead_channels_go_first() -> None:
    model = network()
    with torch.no_grad():
        model[4].weight[3] = 0
        model[4].bias[3] = -1.0  # behind a ReLU: never active
    observation = sb.fit(model, X, "channels-sensitivity").observation
    scores = {(u.producer, u.row): s for u, s in zip(observation.units, observation.unit_scores, strict=True)}
    assert scores["4.weight", 3] == 0
    assert max(scores.values()) > 0.1


def test_streams_stay_whole() -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.inner, self.back, self.head = (nn.Linear(*s) for s in ((5, 6), (6, 7), (7, 6), (6, 3)))

        def forward(self, x: Tensor) -> Tensor:
            x = torch.relu(self.stem(x))
            return self.head(x + self.back(torch.relu(self.inner(x))))

    pruned = sb.prune(build(Residual), signed(9, 5), method="channels-sensitivity", keep=0.5)
    assert bool(pruned.changes["stem.weight"].rows.all())
    assert bool(pruned.changes["back.weight"].rows.all())
    assert not bool(pruned.changes["inner.weight"].rows.all())
