"""The trace: which weight, on which input; outputs, modes and settings as without it; attention taken apart exactly."""

import copy
from typing import Any

import numpy as np
import oracle
import pytest
import torch
import torch.nn.functional as F
from samples import build, signed, small_network
from torch import Tensor, nn
from traced import Functional, encoder_layer, trace_calls

import sipp_bench as sb
from sipp_bench.network.tracing import Call, tracing
from sipp_bench.zoo.vision import torchvision


def test_every_spelling_of_a_linear_map_is_seen() -> None:
    network, x = build(Functional), signed(5, 3)
    calls, _ = trace_calls(network, x)
    assert [call.name for call in calls] == ["a", "a", "c.weight", "b"]
    assert torch.equal(calls[0].input, x)
    assert torch.equal(calls[1].input, x)
    assert calls[3].geometry is not None
    assert (calls[3].geometry.padding, calls[3].geometry.dilation, calls[3].geometry.stride) == ("same", (2,), (1,))
    assert calls[3].count_patches() == 5 * 5
    for call in calls:
        assert call.rows == slice(0, call.weight.shape[0])
        assert torch.equal(call.weight, network.get_parameter(call.name))
        assert not call.weight.requires_grad


def test_tied_weights_are_one_weight_named_as_by_the_network() -> None:
    one = nn.Linear(3, 3, bias=False)
    other = nn.Linear(3, 3)
    other.weight = one.weight
    network = nn.Sequential(one, nn.Tanh(), other)
    calls, _ = trace_calls(network, signed(2, 3))
    assert [call.name for call in calls] == ["0.weight", "0.weight"]
    x = signed(2, 3)
    inputs = torch.stack([x, torch.tanh(one(x))], 1)
    expected = oracle.sensitivity(one.weight, oracle.patches(one, inputs))
    found = sb.measure_sensitivity(network, x)["0.weight"].values
    np.testing.assert_allclose(found.numpy(), expected.values, rtol=1e-6)


@pytest.mark.parametrize(("layer", "shape"), [(nn.Conv1d(2, 3, 2), (2, 5)), (nn.Conv2d(2, 4, 3, groups=2), (2, 4, 5))])
def test_a_convolution_without_a_batch_dimension_is_one_point(layer: nn.Module, shape: tuple[int, ...]) -> None:
    class Unbatched(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([self.layer(point) for point in x])

    x = signed(3, *shape)
    expected = oracle.sensitivity(layer.weight, oracle.patches(layer, x))
    sens = sb.measure_sensitivity(Unbatched(), x)
    np.testing.assert_allclose(sens["layer.weight"].values.numpy(), expected.values, rtol=2e-6)
    assert np.array_equal(sens["layer.weight"].active.numpy(), expected.active)
    mean = oracle.sensitivity(layer.weight, oracle.patches(layer, x), "mean")
    found = sb.measure_sensitivity(Unbatched(), x, patch_reduction="mean")
    np.testing.assert_allclose(found["layer.weight"].values.numpy(), mean.values, rtol=2e-6)


def test_modes_are_restored_module_by_module_even_after_an_error() -> None:
    network = build(small_network)
    network.train()
    network[2].eval()
    network[5].eval()
    flags = [module.training for module in network.modules()]
    seen: list[bool] = []
    with tracing(network, lambda call, output: None):
        seen = [module.training for module in network.modules()]
    assert not any(seen)
    assert [module.training for module in network.modules()] == flags
    fast = torch.backends.mha.get_fastpath_enabled()

    def fail(call: Call, output: Tensor) -> None:
        raise KeyError("on purpose")

    with pytest.raises(KeyError, match="on purpose"), tracing(network, fail):
        network(signed(2, 2, 6, 6))
    assert [module.training for module in network.modules()] == flags
    assert torch.backends.mha.get_fastpath_enabled() == fast
    assert not torch.overrides._get_current_function_mode_stack()


def test_what_the_observer_returns_replaces_the_output() -> None:
    network = nn.Sequential(nn.Linear(3, 2), nn.ReLU())
    with torch.no_grad(), tracing(network, lambda call, output: torch.full_like(output, 7.0)):
        assert torch.equal(network(signed(4, 3)), torch.full((4, 2), 7.0))


def manual_attention(
    layer: nn.MultiheadAttention, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, padding: Tensor | None
) -> tuple[Tensor, Tensor]:
    """What enters out_proj, and what attention gives, from its definition; q, k, v (N, L, E)."""
    e, heads = layer.embed_dim, layer.num_heads
    if layer.in_proj_weight is not None:
        weights = layer.in_proj_weight.chunk(3)
    else:
        weights = (layer.q_proj_weight, layer.k_proj_weight, layer.v_proj_weight)
    biases = (0, 0, 0) if layer.in_proj_bias is None else layer.in_proj_bias.chunk(3)
    q, k, v = (x @ w.T + b for x, w, b in zip((q, k, v), weights, biases, strict=True))
    if layer.bias_k is not None:
        k, v = (torch.cat([x, b.expand(len(x), 1, e)], 1) for x, b in ((k, layer.bias_k), (v, layer.bias_v)))
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    scores = q @ k.transpose(-1, -2) / (e / heads) ** 0.5
    extra = scores.shape[-1] - (0 if padding is None else padding.shape[1])
    if mask is not None:
        scores[..., : mask.shape[-1]] += mask
    if padding is not None:
        hidden = F.pad(padding, (0, extra))
        scores = scores.masked_fill(hidden[:, None, None, :], -torch.inf)
    attended = (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)
    return attended, layer.out_proj(attended)


@pytest.mark.filterwarnings("ignore:Support for mismatched key_padding_mask")  # two kinds of masks, on purpose
@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("kind", ["self", "cross", "kdim and vdim", "no bias", "bias_kv"])
def test_attention_against_its_definition(kind: str, masked: bool, need_weights: bool, batch_first: bool) -> None:
    """In float64: rounding of what enters out_proj then stays far below the tolerance of 1e-9."""
    options: dict[str, Any] = {"kdim and vdim": {"kdim": 5, "vdim": 3}, "no bias": {"bias": False}}.get(kind, {})
    if kind == "bias_kv":
        options = {"add_bias_kv": True}
    layer = build(lambda: nn.MultiheadAttention(6, 2, dropout=0.5, batch_first=batch_first, **options)).double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(0.1 * signed(*parameter.shape, seed=3))
    q = signed(3, 4, 6).double()
    k, v = (signed(3, 5, size or 6, seed=seed).double() for size, seed in ((layer.kdim, 1), (layer.vdim, 2)))
    if kind in ("self", "no bias"):
        k = v = q
    mask = padding = None
    if masked:
        mask = torch.full((4, k.shape[1]), -torch.inf, dtype=torch.float64).triu(1)
        padding = torch.zeros(3, k.shape[1], dtype=torch.bool)
        padding[0, -1] = True

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, **points: Tensor) -> Tensor:
            if not batch_first:
                points = {name: x.transpose(0, 1) for name, x in points.items()}
            query, key, value = points["q"], points.get("k", points["q"]), points.get("v", points["q"])
            output, weights = self.layer(
                query, key, value, attn_mask=mask, key_padding_mask=padding, need_weights=need_weights
            )
            assert (weights is not None) == need_weights
            return output if batch_first else output.transpose(0, 1)

    points = {"q": q} if k is q else {"q": q, "k": k, "v": v}
    model = Model()
    loader = torch.utils.data.DataLoader([{n: x[i] for n, x in points.items()} for i in range(3)], batch_size=3)
    sens = sb.measure_sensitivity(model, loader)
    attended, output = manual_attention(layer, q, k, v, mask, padding)
    _, traced = trace_calls(model, **points)
    torch.testing.assert_close(traced, output, rtol=1e-9, atol=1e-12)
    assert set(sens.skipped) == ({"layer.bias_k", "layer.bias_v"} if kind == "bias_kv" else set())

    def check(name: str, rows: slice, x: Tensor) -> None:
        weight = layer.get_parameter(name)[rows]
        expected = oracle.sensitivity(weight, oracle.array(x)[:, :, None])
        found = sens[f"layer.{name}"]
        np.testing.assert_allclose(found.values[rows].numpy(), expected.values, rtol=1e-9, atol=1e-12)
        assert np.array_equal(found.active[rows].numpy(), expected.active)

    if kind == "kdim and vdim":
        for name, x in (("q_proj_weight", q), ("k_proj_weight", k), ("v_proj_weight", v)):
            check(name, slice(None), x)
    else:
        for part, x in enumerate((q, k, v)):
            check("in_proj_weight", slice(6 * part, 6 * part + 6), x)
    check("out_proj.weight", slice(None), attended)
    assert len(sens) == (4 if kind == "kdim and vdim" else 2)


@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_an_encoder_layer_against_its_definition(norm_first: bool, training: bool) -> None:
    layer = build(lambda: encoder_layer(norm_first=norm_first)).double().train(training)
    plain: Any = copy.deepcopy(layer).eval()
    x = signed(4, 5, 8).double()
    with torch.no_grad():
        first = plain.norm1(x) if norm_first else x
        attended, projected = manual_attention(plain.self_attn, first, first, first, None, None)
        middle = x + projected if norm_first else plain.norm1(x + projected)
        second = plain.norm2(middle) if norm_first else middle
        hidden = plain.linear1(second).relu()
    sens = sb.measure_sensitivity(layer, x)
    inputs = {
        "self_attn.in_proj_weight": first, "self_attn.out_proj.weight": attended,
        "linear1.weight": second, "linear2.weight": hidden,
    }  # fmt: skip
    assert set(sens) == set(inputs)
    assert not sens.skipped
    for name, a in inputs.items():
        expected = oracle.sensitivity(layer.get_parameter(name), oracle.array(a)[:, :, None])
        np.testing.assert_allclose(sens[name].values.numpy(), expected.values, rtol=1e-9, atol=1e-12)
        assert np.array_equal(sens[name].active.numpy(), expected.active)
    assert all(module.training == training for module in layer.modules())


def assert_complete(network: nn.Module, sens: sb.Sensitivity) -> None:
    matrices = {name for name, p in network.named_parameters() if p.ndim >= 2 and name.endswith("weight")}
    assert set(sens) == matrices
    assert set(sens.skipped) == {name for name, p in network.named_parameters() if p.ndim >= 2} - matrices
    for layer in sens.values():
        active = layer.active > 0
        assert bool(active.any())
        assert bool((layer.totals[active] >= 1 - 1e-5).all())


def test_a_whole_encoder_with_padding_is_complete() -> None:
    network = nn.TransformerEncoder(encoder_layer(), 2)
    points = [{"src": x, "src_key_padding_mask": torch.arange(5) > 2 + i % 3} for i, x in enumerate(signed(4, 5, 8))]
    sens = sb.measure_sensitivity(network, torch.utils.data.DataLoader(points, batch_size=2))
    assert_complete(network, sens)
    assert sens.num_points == 4


@pytest.mark.parametrize("size", ["small", "ViT-B/16"])
def test_vision_transformers_are_complete(size: str) -> None:
    """ViT-B/16 with all its weights, but on images of 32 instead of 224: 5 tokens instead of 197 save a minute."""
    models = torchvision().models
    if size == "small":
        network = models.VisionTransformer(
            image_size=16, patch_size=8, num_layers=2, num_heads=2, hidden_dim=12, mlp_dim=24, num_classes=5
        )
    else:
        network = models.vit_b_16(image_size=32)
    with torch.no_grad():
        network.heads.head.weight.normal_()  # torchvision starts it at 0, where nothing is active
    image = signed(1, 3, network.image_size, network.image_size)
    sens = sb.measure_sensitivity(network, image)
    assert_complete(network, sens)
    count = 2 if size == "small" else 12
    assert len(sens) == 4 * count + 2
    patch = oracle.patches(network.conv_proj, image)
    expected = oracle.sensitivity(network.conv_proj.weight[:6], patch)
    found = sens["conv_proj.weight"].values[:6]
    np.testing.assert_allclose(found.numpy(), expected.values, rtol=oracle.rounding(patch.shape[3]))
