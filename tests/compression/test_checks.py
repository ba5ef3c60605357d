"""The checks of a run: claim C2 holds for sipp-det, planted violations are found, and empty bounds are called so."""

import copy
import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import oracle
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from samples import build, linear, signed, small_network
from torch import Tensor, nn

import sipp_bench as sb
from sipp_bench.compression.honoured import check_rows
from sipp_bench.compression.quantities import BlockError

X = signed(20, 2, 6, 6)
FRESH = signed(20, 2, 6, 6, seed=9)


def trained_like(seed: int = 0) -> nn.Module:
    """Heavy-tailed weights, as training leaves them; uniform ones would make every bound vacuous."""
    network = build(small_network, seed)
    with torch.no_grad():
        for i, parameter in enumerate(network.parameters()):
            parameter.mul_(10.0 ** (1.5 * signed(*parameter.shape, seed=seed + i)))
    return network


def change(pruned: sb.Pruned, **changes: Mapping[str, Any]) -> sb.Pruned:
    """`pruned` with other fields in its bounds, each by weight name."""
    bounds = {
        name: dataclasses.replace(bound, **{key: values[name] for key, values in changes.items()})
        for name, bound in pruned.guarantee.bounds.items()
    }
    return dataclasses.replace(pruned, guarantee=dataclasses.replace(pruned.guarantee, bounds=bounds))


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 999), st.floats(0, 1), st.sampled_from([torch.float32, torch.float64]))
# Here Z - Zhat has an error of 1.2e-16 Z, the rounding of two sums, far above the rounding of a bound of 8e-4.
@example(438, 0.75, torch.float64)
def test_c2_holds_on_s_for_sipp_det(seed: int, keep: float, dtype: torch.dtype) -> None:
    network = trained_like(seed).to(dtype)
    pruned = sb.prune(network, X.to(dtype), keep=keep)
    rows, arrays = check_rows(network, pruned, X.to(dtype), "S")
    assert [row["layer"] for row in rows] == list(pruned.masks) == list(arrays)
    for row in rows:
        assert row["verdict"] in ("holds", "useless")
        assert (row["claim"], row["on"], row["delta"], row["exceeding"]) == ("C2", "S", 0.0, 0)
        assert (row["verdict"] == "useless") == (row["vacuous"] == row["blocks"])


def test_rows_say_what_the_oracle_measures() -> None:
    network, x = build(lambda: nn.Sequential(nn.Conv2d(2, 4, 3))), X.abs() + 0.1
    with torch.no_grad():
        network[0].weight.mul_(10.0 ** (1.5 * signed(4, 2, 3, 3)))
    pruned = sb.prune(network, x, keep=0.6)
    assert pruned.guarantee is not None
    rows, arrays = check_rows(network, pruned, x, "S")
    first = network[0]
    patches = oracle.patches(first, x)
    largest, _ = oracle.relative_errors(first.weight, pruned.model[0].weight, patches)
    s = oracle.sensitivity(first.weight, patches).values
    dropped = np.where(pruned.masks["0.weight"].numpy(), 0, s).reshape(4, -1)
    signs = np.sign(oracle.array(first.weight)).reshape(4, -1)
    epsilon = np.stack([np.where(signs == sign, dropped, 0).sum(1) for sign in (1, -1)], 1).clip(max=1)
    np.testing.assert_allclose(arrays["0.weight"]["error_S"].numpy(), largest, atol=1e-13)
    np.testing.assert_allclose(arrays["0.weight"]["epsilon"].numpy(), epsilon, rtol=1e-5)
    row, telling = rows[0], (epsilon < 1) & (epsilon > 0)
    assert telling.any()
    assert row["blocks"] == 8
    assert row["vacuous"] == np.count_nonzero(epsilon >= 1)
    assert row["drawn"] == 0
    assert row["bound_max"] == pytest.approx(epsilon.max(), rel=1e-5)
    assert row["error_max"] == pytest.approx(largest.max(), rel=1e-12)
    assert row["ratio_max"] == pytest.approx((largest[telling] / epsilon[telling]).max(), rel=1e-5)
    assert row["ratio_max"] <= 1 + 1e-5
    assert row["active"] == oracle.sensitivity(first.weight, patches).active.sum()
    # C8: dropping weights gives at least the largest of their sensitivities as error.
    assert bool((largest >= np.stack([np.where(signs == t, dropped, 0).max(1) for t in (1, -1)], 1) - 1e-6).all())


def dropped_one() -> tuple[nn.Module, sb.Pruned, Tensor]:
    """One weight of one block dropped: the error is s exactly, so that any smaller bound is wrong (claim C8)."""
    network, x = linear([[8.0, 4.0, 2.0, 1.0]]), torch.tensor([[1.0, 1.0, 1.0, 1.0], [1.0, 2.0, 1.0, 1.5]])
    pruned = sb.prune(network, x, keep=0.75)
    assert pruned.masks["weight"].tolist() == [[True, True, True, False]]
    return network, pruned, x


def test_a_bound_slightly_too_small_is_a_violation() -> None:
    network, pruned, x = dropped_one()
    assert check_rows(network, pruned, x, "S")[0][0]["verdict"] == "holds"
    for factor in (0.5, 0.99, 1 - 1e-5):
        wrong = change(pruned, epsilon={"weight": pruned.guarantee.epsilon["weight"] * factor})
        (row,), _ = check_rows(network, wrong, x, "S")
        assert (row["verdict"], row["exceeding"], row["exceeding_certain"]) == ("violated", 1, 1)
        # No claim speaks of fresh points.
        assert check_rows(network, wrong, x, "fresh")[0][0]["verdict"] == "measured"


def test_a_weight_dropped_or_scaled_behind_the_guarantees_back_is_a_violation() -> None:
    for position, value in ((2, 0.0), (0, 12.0), (1, 3.0)):
        network, pruned, x = dropped_one()
        with torch.no_grad():
            pruned.model.weight[0, position] = value
        assert check_rows(network, pruned, x, "S")[0][0]["verdict"] == "violated"


def test_points_that_the_method_did_not_see_are_not_s() -> None:
    """Taken for S, a point where the dropped weight is all there is shows up at once."""
    network, pruned, _ = dropped_one()
    (row,), _ = check_rows(network, pruned, torch.tensor([[0.0, 0.0, 0.0, 1.0]]), "S")
    assert (row["verdict"], row["error_max"]) == ("violated", 1.0)


def test_bounds_that_say_nothing_are_useless() -> None:
    network = trained_like()
    pruned = sb.prune(network, X, keep=0)
    for where, points in (("S", X), ("fresh", FRESH)):
        rows, _ = check_rows(network, pruned, points, where)  # type: ignore[arg-type]  # literals
        # Everything is dropped: each block that is ever active has error 1, and the bound of 1 holds, for nothing.
        assert rows[0]["verdict"] == "useless"
        assert rows[0]["vacuous"] == rows[0]["blocks"] == 8
        assert rows[0]["error_max"] == 1.0
        assert math.isnan(rows[0]["ratio_max"])
    # A wrong bound is wrong, however large the others are.
    wrong = change(pruned, epsilon={n: torch.full_like(e, 0.9) for n, e in pruned.guarantee.epsilon.items()})
    assert {row["verdict"] for row in check_rows(network, wrong, X, "S")[0]} == {"violated"}


def test_keeping_everything_holds_without_error() -> None:
    network = trained_like()
    rows, _ = check_rows(network, sb.prune(network, X, keep=1), X, "S")
    assert {row["verdict"] for row in rows} == {"holds"}
    assert all(row["error_max"] == row["bound_max"] == 0 for row in rows)


@pytest.mark.parametrize("method", ["sipp-rand", "sipp-hybrid", "sipp-mixture"])
def test_draws_are_not_falsified_but_never_hold(method: str) -> None:
    network = trained_like()
    pruned = sb.prune(network, X, method=method, keep=0.6, delta=1e-12)
    rows, _ = check_rows(network, pruned, X, "S")
    drawn = [row for row in rows if row["drawn"]]
    assert drawn or method != "sipp-rand"
    for row in drawn:
        assert row["verdict"] in ("not falsified", "useless")
        assert row["delta"] == 1e-12
        # 8 blocks times some 1,000 (x, p, tau) at delta 1e-12 each: less than 1e-8 that any exceeds.
        assert row["exceeding_rate"] == 0
    assert {row["verdict"] for row in check_rows(network, pruned, FRESH, "fresh")[0]} <= {"measured", "useless"}
    for row in rows:
        if not row["drawn"]:
            assert row["verdict"] in ("holds", "useless")


def test_means_over_patches_are_checked_as_means() -> None:
    """The authors' choice breaks C2 patch by patch, and holds for the average over a point's patches."""
    network = trained_like(3)
    pruned = sb.prune(network, X, keep=0.4, patch_reduction="mean")
    assert pruned.guarantee is not None
    assert not pruned.guarantee.per_patch
    rows, arrays = check_rows(network, pruned, X, "S")
    assert {row["verdict"] for row in rows} <= {"holds", "useless"}
    _, average = oracle.relative_errors(network[0].weight, pruned.model[0].weight, oracle.patches(network[0], X))
    np.testing.assert_allclose(arrays["0.weight"]["error_S"].numpy(), average, atol=1e-13)
    per_patch, _ = check_rows(network, change(pruned, quantity={name: BlockError() for name in pruned.changes}), X, "S")
    assert "violated" in {row["verdict"] for row in per_patch}


def test_without_a_guarantee_there_is_nothing_to_check() -> None:
    network = trained_like()
    assert check_rows(network, sb.prune(network, X, method="magnitude", keep=0.5), X, "S") == ([], {})
    pruned = sb.prune(network, X, keep=0.5)
    assert check_rows(network, pruned, X, "S")[0]
    pruned.guarantee.void = "retrained"
    assert check_rows(network, pruned, X, "S") == ([], {})


def test_neither_network_is_changed() -> None:
    network = trained_like().train()
    pruned = sb.prune(network, X, keep=0.5)
    before = [copy.deepcopy(model.state_dict()) for model in (network, pruned.model)]
    check_rows(network, pruned, X, "S")
    assert network.training
    for model, state in zip((network, pruned.model), before, strict=True):
        assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
