"""Low-rank factors: the bound holds for every input and is attained, ranks are the best, and fit the budget."""

import itertools
from collections.abc import Mapping, Sequence

import numpy as np
import pytest
import torch
from samples import build, signed
from torch import Tensor, nn

import sipp_bench as sb
from sipp_bench.compression.changes import Dense, Factors
from sipp_bench.compression.honoured import honoured


def network() -> nn.Sequential:
    return build(
        lambda: nn.Sequential(
            nn.Conv2d(2, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=2), nn.ReLU(), nn.Flatten(),
            nn.Linear(8 * 16, 10),
        )
    )  # fmt: skip


X = signed(20, 2, 6, 6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("keep", [0.1, 0.3, 0.8])
def test_the_bound_holds_on_points_never_looked_at(keep: float, dtype: torch.dtype) -> None:
    model = network().to(dtype)
    pruned = sb.prune(model, X.to(dtype), method="svd", keep=keep)
    for one in honoured(model, pruned, signed(30, 2, 6, 6, seed=3).to(dtype)).values():
        assert not bool(one.broken.any())
        assert bool((one.measured.largest > 0).all()) or bool((one.bound.epsilon == 0).all())


def test_the_bound_is_attained_and_a_smaller_one_is_broken() -> None:
    layer = nn.Linear(12, 9, bias=False, dtype=torch.float64)
    pruned = sb.prune(layer, torch.ones(1, 12, dtype=torch.float64), method="svd", keep=0.5)
    change, bound = pruned.changes["weight"], pruned.guarantee.bounds["weight"]
    assert isinstance(change, Factors)
    worst = torch.linalg.svd(layer.weight.detach())[2][change.rank][None]
    one = honoured(layer, pruned, worst)["weight"]
    assert float(one.measured.largest) == pytest.approx(float(bound.epsilon), rel=1e-12)
    assert not bool(one.broken.any())
    bound.epsilon.mul_(1 - 1e-9)
    assert bool(honoured(layer, pruned, worst)["weight"].broken.any())


def largest_error(values: Mapping[str, Tensor], ranks: Sequence[int]) -> float:
    """The largest sigma_(k + 1) / sigma_1 of any layer."""
    pairs = zip(values.values(), ranks, strict=True)
    return max(float((s[:, rank:] / s[:, :1]).max()) if rank < s.shape[1] else 0.0 for s, rank in pairs)


def test_ranks_are_the_best_of_all_that_fit() -> None:
    model = build(lambda: nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4)))
    fitted = sb.fit(model, signed(5, 6), "svd")
    values = fitted.observation.values
    shapes = {"0.weight": (5, 6), "2.weight": (4, 5)}
    costs = {
        name: [min(r * (m + n), m * n) if r < min(m, n) else m * n for r in range(min(m, n) + 1)]
        for name, (m, n) in shapes.items()
    }
    for keep in np.linspace(0, 1, 26):
        pruned = fitted.prune(float(keep))
        options = itertools.product(*(range(len(costs[name])) for name in values))
        best = min(
            largest_error(values, ranks)
            for ranks in options
            if sum(costs[name][rank] for name, rank in zip(values, ranks, strict=True)) <= pruned.requested
        )
        found = [
            change.rank if isinstance(change, Factors) else values[name].shape[1]
            for name, change in pruned.changes.items()
        ]
        assert largest_error(values, found) == best
        left = pruned.requested - pruned.kept
        steps = [costs[n][r + 1] - costs[n][r] for n, r in zip(values, found, strict=True) if r + 1 < len(costs[n])]
        # A step beyond which dense takes no more is dense at once: what is left is below any step that is taken.
        assert left >= 0
        assert not steps or left < max(steps)


def test_what_is_stored_is_what_is_counted() -> None:
    model = network()
    pruned = sb.prune(model, X, method="svd", keep=0.3)
    for change in pruned.changes.values():
        stored = sum(t.numel() for t in change.encodings()["dense"].values())
        assert stored == change.numbers()
        if isinstance(change, Factors):
            groups = change.left.shape[0]
            matrices = change.weight.reshape(groups, -1, change.weight[0].numel())
            torch.testing.assert_close(change.left @ change.right, matrices, rtol=0, atol=1e-6)
            assert int(torch.linalg.matrix_rank(matrices.double(), rtol=1e-5).max()) == change.rank
    assert pruned.kept == sum(change.numbers() for change in pruned.changes.values()) <= pruned.requested
    assert isinstance(sb.prune(model, X, method="svd", keep=1.0).changes["0.weight"], Dense)


def test_held_after_a_step_it_has_its_rank_again() -> None:
    model = network()
    pruned = sb.prune(model, X, method="svd", keep=0.3)
    change = pruned.changes["5.weight"]
    parameter = pruned.model[5].weight
    with torch.no_grad():
        parameter.add_(signed(*parameter.shape, seed=4))
    moved = parameter.detach().double().clone()
    assert int(torch.linalg.matrix_rank(moved, rtol=1e-5)) > change.rank
    pruned.apply_masks()
    assert int(torch.linalg.matrix_rank(parameter.detach().double(), rtol=1e-5)) == change.rank
    # The nearest of its rank: what is lost are the smallest singular values.
    lost = torch.linalg.svdvals(moved)[change.rank :].norm()
    assert float((moved - parameter.detach()).norm()) == pytest.approx(float(lost), rel=1e-5)
