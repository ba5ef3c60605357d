"""The geometry of convolutions against torch's own convolutions and the oracle's gathered patches."""

from typing import Any

import numpy as np
import oracle
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from samples import build, signed
from torch import Tensor, nn

from sipp_bench.network.patches import ConvGeometry, patch_chunks

CASES: dict[str, tuple[Any, tuple[int, ...]]] = {
    "1d": (lambda: nn.Conv1d(2, 3, 3, stride=2, padding=1), (2, 8)),
    "1d same, even": (lambda: nn.Conv1d(2, 2, 4, padding="same", dilation=3), (2, 5)),
    "2d": (lambda: nn.Conv2d(4, 6, (3, 2), (2, 1), (0, 2), (1, 2), groups=2), (4, 6, 5)),
    "2d depthwise": (lambda: nn.Conv2d(3, 3, 3, groups=3, padding="same"), (3, 4, 4)),
    "3d": (lambda: nn.Conv3d(2, 2, (1, 2, 3), (1, 2, 1), (1, 0, 1), (2, 1, 1)), (2, 3, 4, 5)),
}


def geometry(layer: Any) -> ConvGeometry:
    names = ("stride", "padding", "dilation", "groups")
    return ConvGeometry.from_arguments(len(layer.kernel_size), {name: getattr(layer, name) for name in names})


@pytest.mark.filterwarnings("ignore:Using padding='same'")  # torch's, about speed
@pytest.mark.parametrize("strided", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_unfolding_is_what_the_oracle_gathers_and_gives_torchs_convolution(name: str, strided: bool) -> None:
    make, shape = CASES[name]
    layer = build(make).double()
    x = signed(3, *shape).double()
    if strided:  # a view into something larger, as channels_last and slices are
        x = torch.stack([x, x + 1], -1).transpose(0, 1).contiguous().transpose(0, 1)[..., 0][1:]
        assert not x.is_contiguous()
    unfolded = geometry(layer).unfold(x, layer.weight)
    gathered = oracle.patches(layer, x)
    assert np.array_equal(unfolded.numpy(), gathered.transpose(2, 0, 1, 3).reshape(unfolded.shape))
    assert geometry(layer).count_patches(x, layer.weight) == unfolded.shape[1]
    w = layer.weight.detach().reshape(layer.groups, -1, unfolded.shape[2])
    y = torch.einsum("gpn,gmn->gpm", unfolded, w).permute(1, 0, 2).reshape(len(x), -1, layer.out_channels)
    expected = (layer(x) - layer.bias.reshape(-1, *[1] * (len(shape) - 1))).flatten(2).transpose(1, 2)
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 12), st.integers(1, 4), st.integers(1, 4), st.integers(0, 4), st.integers(1, 3), st.booleans())
def test_counts_are_torchs_output_positions(
    size: int, kernel: int, stride: int, padding: int, dilation: int, same: bool
) -> None:
    x, w = torch.ones(2, 1, size), torch.ones(1, 1, kernel)
    arguments: dict[str, Any] = {"stride": stride, "padding": padding, "dilation": dilation}
    if same:
        arguments |= {"stride": 1, "padding": "same"}
    elif size + 2 * padding < dilation * (kernel - 1) + 1:
        arguments["padding"] = kernel * dilation
    expected = F.conv1d(x, w, **arguments)
    made = ConvGeometry.from_arguments(1, arguments)
    assert made.count_patches(x, w) == expected.numel()
    assert torch.equal(made.unfold(x, w).sum(2).flatten(), expected.flatten())


def test_numbers_are_spread_over_the_dimensions() -> None:
    made = ConvGeometry.from_arguments(2, {"stride": 2, "padding": (1,), "dilation": (1, 2)})
    assert made == ConvGeometry(2, (2, 2), (1, 1), (1, 2), 1)


@pytest.mark.parametrize("limit", [1, 40, 10**6])
@pytest.mark.parametrize("name", [*CASES, "linear"])
def test_chunks_are_the_patches_cut_at_points_and_small(name: str, limit: int) -> None:
    if name == "linear":
        layer, made, x = nn.Linear(4, 3), None, signed(5, 2, 4)
        whole = x.reshape(1, 10, 4)
        per_point = 4 + 2 * 3
        smallest = 1
    else:
        make, shape = CASES[name]
        layer, x = build(make), signed(5, *shape)
        made = geometry(layer)
        whole = made.unfold(x, layer.weight)
        smallest = whole.shape[1] // 5
        per_point = smallest * (whole.shape[2] * layer.groups + 2 * layer.out_channels)
    chunks: list[Tensor] = list(patch_chunks(x, layer.weight, made, limit))
    assert torch.equal(torch.cat(chunks, 1), whole)
    assert all(chunk.shape[1] % smallest == 0 for chunk in chunks)
    assert all(chunk.shape[1] // smallest * per_point <= max(limit, per_point) for chunk in chunks)
    assert (len(chunks) == 1) == (limit == 10**6)
