"""Claim C1's laws as properties, merging among them; batches and chunks change nothing but rounding."""

from typing import Any

import oracle
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from samples import build, linear, signed, small_network
from torch import Tensor, nn

import sipp_bench as sb
from sipp_bench.errors import OptionError
from sipp_bench.maxtimes import chunked
from sipp_bench.sensitivity import accumulator

PROPERTY = settings(deadline=None, max_examples=60)
N_MAX = 7
# Two computed sensitivities of one exact value differ by at most twice the rounding of one.
RTOL = 2 * oracle.rounding(N_MAX)


@st.composite
def maps(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """(w, a), (M, n) and (P, n): signs mixed, some zero, magnitudes spread over a few decades."""
    m, n, p = draw(st.integers(1, 4)), draw(st.integers(1, N_MAX)), draw(st.integers(1, 6))
    zeros, seed = draw(st.sampled_from([0.0, 0.3, 0.8])), draw(st.integers(0, 2**16))
    w, a = signed(m, n, seed=seed, zeros=zeros), signed(p, n, seed=seed + 1, zeros=zeros)
    return w * 10.0 ** signed(m, n, seed=seed + 2), a * 10.0 ** signed(p, n, seed=seed + 3)


def measure(w: Tensor, a: Tensor) -> sb.LayerSensitivity:
    return sb.measure_sensitivity(linear(w), a)["weight"]


def assert_close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=RTOL, atol=0)


@PROPERTY
@given(maps())
def test_range_of_sensitivities_and_totals(case: tuple[Tensor, Tensor]) -> None:
    w, a = case
    found = measure(w, a)
    s, total, active = found.values, found.totals, found.active
    assert bool(((s >= 0) & (s <= 1)).all())
    nonzero = torch.stack([(w > 0).sum(1), (w < 0).sum(1)], 1)
    assert bool((total[active > 0] >= 1 - RTOL).all())
    assert not total[active == 0].any()
    assert bool((total <= active * (1 + RTOL)).all())
    assert bool((total <= nonzero).all())
    torch.testing.assert_close(total[active == 1], torch.ones_like(total[active == 1]), rtol=RTOL, atol=0)
    assert not s[w == 0].any()


@PROPERTY
@given(maps(), st.integers(0, 1000), st.integers(-40, 40))
def test_scaling_blocks_and_inputs_changes_nothing(case: tuple[Tensor, Tensor], seed: int, exponent: int) -> None:
    w, a = case
    generator = torch.Generator().manual_seed(seed)
    blocks = 10.0 ** (12 * torch.rand(len(w), 2, generator=generator) - 6)
    patches = 10.0 ** (12 * torch.rand(len(a), 1, generator=generator) - 6)
    scaled = torch.where(w > 0, w * blocks[:, :1], w * blocks[:, 1:])
    s = measure(w, a).values
    # Rounding the scaled weights and activations costs u each in every product.
    torch.testing.assert_close(measure(scaled, a).values, s, rtol=2 * RTOL, atol=0)
    torch.testing.assert_close(measure(w, a * patches).values, s, rtol=2 * RTOL, atol=0)
    # By powers of two the scaling is exact.
    assert_close(measure(w * 2.0**exponent, a * 2.0 ** (exponent // 2)).values, s)


@PROPERTY
@given(maps())
def test_negating_activations_or_weights_changes_nothing(case: tuple[Tensor, Tensor]) -> None:
    w, a = case
    found, negated, flipped = measure(w, a), measure(w, -a), measure(-w, a)
    assert_close(negated.values, found.values)
    assert torch.equal(negated.active, found.active)
    assert_close(flipped.values, found.values)
    assert torch.equal(flipped.active, found.active.flip(1))


@PROPERTY
@given(maps(), st.integers(0, 1000))
def test_permuting_outputs_inputs_and_points(case: tuple[Tensor, Tensor], seed: int) -> None:
    w, a = case
    generator = torch.Generator().manual_seed(seed)
    rows, columns, points = (torch.randperm(k, generator=generator) for k in (*w.shape, len(a)))
    found = measure(w[rows][:, columns], a[points][:, columns])
    assert_close(found.values, measure(w, a).values[rows][:, columns])
    assert torch.equal(found.active, measure(w, a).active[rows])


@PROPERTY
@given(maps(), st.integers(1, 5))
def test_merging_is_the_maximum_and_more_points_never_lower_it(case: tuple[Tensor, Tensor], at: int) -> None:
    w, a = case
    a = torch.cat([a, torch.ones(at, a.shape[1])])
    parts = [sb.measure_sensitivity(linear(w), part) for part in (a[:at], a[at:])]
    merged, both = parts[0].merge(parts[1]), sb.measure_sensitivity(linear(w), a)
    assert_close(merged["weight"].values, both["weight"].values)
    assert torch.equal(merged["weight"].active, both["weight"].active)
    assert merged.num_points == both.num_points == len(a)
    for part in parts:
        assert bool((both["weight"].values >= part["weight"].values * (1 - RTOL)).all())


@pytest.mark.parametrize(("groups", "stride", "padding", "dilation"), [(1, 1, 0, 1), (1, 2, 1, 1), (2, 1, 2, 2)])
def test_a_convolution_is_the_linear_map_over_its_unfolded_patches(
    groups: int, stride: int, padding: int, dilation: int
) -> None:
    layer = nn.Conv2d(4, 6, 3, stride, padding, dilation, groups)
    x = signed(3, 4, 7, 7)
    found = sb.measure_sensitivity(layer, x)["weight"].values
    for group, (w, channels) in enumerate(zip(layer.weight.chunk(groups), x.chunk(groups, 1), strict=True)):
        tokens = F.unfold(channels, 3, dilation, padding, stride).transpose(1, 2)
        s = sb.measure_sensitivity(linear(w.detach().flatten(1)), tokens)["weight"].values
        mine = found.chunk(groups)[group].flatten(1)
        torch.testing.assert_close(mine, s, rtol=2 * oracle.rounding(36), atol=0)


@pytest.mark.parametrize("reduction", ["max", "mean"])
def test_batch_sizes_and_chunks_agree(reduction: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    network, x = build(small_network), signed(65, 2, 6, 6)
    whole = sb.measure_sensitivity(network, x, batch_size=64, patch_reduction=reduction)
    others = [sb.measure_sensitivity(network, x, batch_size=size, patch_reduction=reduction) for size in (1, 7)]
    monkeypatch.setattr(accumulator, "_CHUNK", 50)
    monkeypatch.setattr(accumulator, "_CACHED_CHUNK", 50)
    monkeypatch.setattr(chunked, "_TILE", {"cpu": 16})
    others.append(sb.measure_sensitivity(network, x, patch_reduction=reduction))
    for other in others:
        for name, layer in whole.items():
            # The layers' inputs differ by rounding, which a cancellation may enlarge: hence the absolute term.
            torch.testing.assert_close(other[name].values, layer.values, rtol=1e-5, atol=1e-5)
            assert other[name].num_patches == layer.num_patches
        assert torch.equal(other["0.weight"].active, whole["0.weight"].active)


def assert_equal(one: sb.Sensitivity, other: sb.Sensitivity) -> None:
    assert list(one) == list(other)
    for name, layer in one.items():
        torch.testing.assert_close(layer.values, other[name].values, rtol=1e-5, atol=1e-5)
        assert torch.equal(layer.active, other[name].active)
        assert layer.num_patches == other[name].num_patches
    assert (one.num_points, one.num_patches) == (other.num_points, other.num_patches)
    assert one.skipped == other.skipped


def test_merging_shards_is_measuring_all_points() -> None:
    network, x = build(small_network), signed(11, 2, 6, 6)
    shards = [sb.measure_sensitivity(network, part) for part in x.split([4, 1, 6])]
    assert_equal(shards[0].merge(shards[1]).merge(shards[2]), sb.measure_sensitivity(network, x))


class Switch(nn.Module):
    """Uses one of its two layers, by the sign of the batch's first number."""

    def __init__(self) -> None:
        super().__init__()
        self.plus, self.minus = nn.Linear(2, 2), nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.plus(x) if float(x[0, 0]) > 0 else self.minus(x)


def test_merging_shards_that_reached_different_layers() -> None:
    network, x = Switch(), torch.ones(3, 2)
    plus, minus = sb.measure_sensitivity(network, x), sb.measure_sensitivity(network, -x)
    assert list(plus.skipped) == ["minus.weight"]
    merged = plus.merge(minus)
    assert set(merged) == {"plus.weight", "minus.weight"}
    assert not merged.skipped


def test_merge_refuses_what_does_not_fit() -> None:
    network, x = build(small_network), signed(3, 2, 6, 6)
    sens = sb.measure_sensitivity(network, x)
    with pytest.raises(OptionError, match="patch_reduction"):
        sens.merge(sb.measure_sensitivity(network, x, patch_reduction="mean"))
    with pytest.raises(OptionError, match=r"'0\.weight'.*signs differ"):
        sens.merge(sb.measure_sensitivity(build(small_network, 1), x))
    with pytest.raises(OptionError, match="same layers"):
        sens.merge(sb.measure_sensitivity(network, x, layers="0"))
    narrow, wide = (sb.measure_sensitivity(nn.Linear(n, 2), torch.ones(1, n)) for n in (3, 4))
    with pytest.raises(OptionError, match=r"shapes \(2, 3\) and \(2, 4\)"):
        narrow.merge(wide)
