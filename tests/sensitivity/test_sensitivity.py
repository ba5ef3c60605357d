"""Sensitivities against the float64 oracle: every kind of layer, any scale, any dtype, weights used more than once."""

from collections.abc import Callable
from typing import Any

import numpy as np
import oracle
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from samples import build, linear, signed, small_network
from torch import Tensor, nn

import sipp_bench as sb

LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(7, 5), (7,)),
    "linear without bias": (lambda: nn.Linear(7, 5, bias=False), (7,)),
    "linear on tokens": (lambda: nn.Linear(6, 4), (3, 2, 6)),
    "conv1d": (lambda: nn.Conv1d(3, 4, 3), (3, 9)),
    "conv1d stride, padding, dilation": (lambda: nn.Conv1d(2, 3, 3, 2, 3, 2), (2, 11)),
    "conv1d same, even kernel": (lambda: nn.Conv1d(2, 3, 4, padding="same"), (2, 7)),
    "conv1d circular": (lambda: nn.Conv1d(2, 3, 3, padding=2, padding_mode="circular"), (2, 6)),
    "conv2d": (lambda: nn.Conv2d(3, 4, (3, 2)), (3, 5, 6)),
    "conv2d stride": (lambda: nn.Conv2d(2, 3, 3, stride=(2, 3)), (2, 7, 8)),
    "conv2d padding": (lambda: nn.Conv2d(2, 3, 3, padding=(2, 1)), (2, 4, 5)),
    "conv2d dilation": (lambda: nn.Conv2d(2, 3, 2, dilation=(2, 3)), (2, 5, 6)),
    "conv2d valid": (lambda: nn.Conv2d(2, 3, 2, padding="valid"), (2, 4, 4)),
    "conv2d same": (lambda: nn.Conv2d(2, 3, 3, padding="same"), (2, 4, 5)),
    "conv2d same, even kernel, dilation": (lambda: nn.Conv2d(2, 3, (2, 4), padding="same", dilation=(1, 3)), (2, 5, 6)),
    "conv2d reflect": (lambda: nn.Conv2d(2, 3, 3, padding=(1, 2), padding_mode="reflect"), (2, 4, 5)),
    "conv2d replicate": (lambda: nn.Conv2d(2, 3, 3, padding=2, padding_mode="replicate", stride=2), (2, 4, 5)),
    "conv2d circular, same, even": (lambda: nn.Conv2d(2, 3, 2, padding="same", padding_mode="circular"), (2, 4, 5)),
    "conv2d groups": (lambda: nn.Conv2d(4, 6, 3, groups=2, padding=1), (4, 4, 4)),
    "conv2d depthwise": (lambda: nn.Conv2d(4, 4, 3, groups=4, stride=2, padding=1), (4, 5, 5)),
    "conv2d depthwise, multiplier": (lambda: nn.Conv2d(3, 6, 2, groups=3, dilation=2), (3, 5, 5)),
    "conv2d pointwise": (lambda: nn.Conv2d(5, 3, 1), (5, 3, 3)),
    "conv3d": (lambda: nn.Conv3d(2, 3, (1, 2, 3)), (2, 3, 4, 4)),
    "conv3d everything": (
        lambda: nn.Conv3d(4, 6, (2, 3, 1), (1, 2, 2), (1, 2, 0), (2, 1, 1), groups=2),
        (4, 4, 4, 3),
    ),
    "conv3d same, even kernel": (lambda: nn.Conv3d(2, 2, 2, padding="same"), (2, 3, 2, 3)),
    "conv3d replicate": (lambda: nn.Conv3d(1, 2, 2, padding=1, padding_mode="replicate"), (1, 2, 3, 2)),
}


def assert_measures(found: sb.LayerSensitivity, expected: oracle.Measured, n: int, dtype: torch.dtype) -> None:
    assert found.values.shape == expected.values.shape
    # Below float32's smallest normal number, a sensitivity has fewer digits.
    np.testing.assert_allclose(
        oracle.array(found.values), expected.values, rtol=oracle.rounding(n, dtype), atol=torch.finfo(dtype).tiny
    )
    np.testing.assert_array_equal(found.active.numpy(), expected.active)
    np.testing.assert_allclose(found.totals.numpy(), expected.totals, rtol=oracle.rounding(n, dtype), atol=1e-30)


@pytest.mark.filterwarnings("ignore:Using padding='same'")  # torch's, about speed
@pytest.mark.parametrize("batch_size", [2, 64])
@pytest.mark.parametrize("reduction", ["max", "mean"])
@pytest.mark.parametrize("name", LAYERS)
def test_layers_agree_with_the_oracle(name: str, reduction: Any, batch_size: int) -> None:
    make, shape = LAYERS[name]
    layer, x = build(make), signed(5, *shape)
    patches = oracle.patches(layer, x)
    # A mean over patches is for convolutions only: tokens take the maximum (THEORY section 6).
    convolution = not isinstance(layer, nn.Linear)
    expected = oracle.sensitivity(layer.weight, patches, reduction if convolution else "max")
    sens = sb.measure_sensitivity(layer, x, patch_reduction=reduction, batch_size=batch_size)
    assert list(sens) == ["weight"]
    assert sens["weight"].values.dtype == torch.float32
    # The mean is one more sum, of P non-negative terms.
    n = patches.shape[3] + (patches.shape[1] if reduction == "mean" else 0)
    assert_measures(sens["weight"], expected, n, torch.float32)
    assert torch.equal(sens["weight"].positive, layer.weight > 0)
    assert (sens.num_points, sens.num_patches) == (5, 5 * patches.shape[1])


@st.composite
def convolutions(draw: st.DrawFn) -> tuple[nn.Module, Tensor]:
    d = draw(st.integers(1, 3))
    numbers = lambda low, high: tuple(draw(st.integers(low, high)) for _ in range(d))  # noqa: E731
    kernel, dilation = numbers(1, 3), numbers(1, 2)
    padding: Any = draw(st.one_of(st.just("same"), st.just("valid"), st.just(numbers(0, 2))))
    stride = (1,) * d if padding == "same" else numbers(1, 3)
    spans = [dil * (k - 1) + 1 for dil, k in zip(dilation, kernel, strict=True)]
    # Large enough for one output, and for padding by reflection, which needs more than it pads.
    sizes = [max(span, 3) + draw(st.integers(0, 2)) for span in spans]
    groups = draw(st.integers(1, 3))
    channels, neurons = groups * draw(st.integers(1, 2)), groups * draw(st.integers(1, 2))
    mode = draw(st.sampled_from(["zeros", "reflect", "replicate", "circular"]))
    seed = draw(st.integers(0, 2**16))
    kind: Any = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[d - 1]
    layer = build(lambda: kind(channels, neurons, kernel, stride, padding, dilation, groups, padding_mode=mode), seed)
    return layer, signed(draw(st.integers(1, 3)), channels, *sizes, seed=seed)


@settings(deadline=None, max_examples=60)
@given(convolutions())
def test_any_convolution_agrees_with_the_oracle(case: tuple[nn.Module, Tensor]) -> None:
    layer, x = case
    patches = oracle.patches(layer, x)
    found = sb.measure_sensitivity(layer, x)["weight"]
    assert_measures(found, oracle.sensitivity(layer.weight, patches), patches.shape[3], torch.float32)


@pytest.mark.parametrize("name", ["linear", "conv2d groups", "conv3d everything"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_double_networks_give_double_and_half_networks_single_precision(name: str, dtype: torch.dtype) -> None:
    make, shape = LAYERS[name]
    layer, x = build(make).to(dtype), signed(4, *shape).to(dtype)
    patches = oracle.patches(layer, x)
    found = sb.measure_sensitivity(layer, x)["weight"]
    assert found.values.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert_measures(found, oracle.sensitivity(layer.weight, patches), patches.shape[3], found.values.dtype)


magnitudes = st.one_of(
    st.just(0.0), st.floats(-30, 30).map(lambda e: 10.0**e), st.floats(-45, -38).map(lambda e: 10.0**e)
)
scaled_numbers = st.tuples(magnitudes, st.sampled_from([-1, 1])).map(lambda pair: pair[0] * pair[1])


@settings(deadline=None, max_examples=150)
@given(st.data(), st.integers(1, 3), st.integers(1, 4), st.integers(1, 4))
def test_any_scale_agrees_with_the_oracle(data: st.DataObject, points: int, neurons: int, n: int) -> None:
    w = data.draw(st.lists(scaled_numbers, min_size=neurons * n, max_size=neurons * n))
    a = data.draw(st.lists(scaled_numbers, min_size=points * n, max_size=points * n))
    layer = linear(np.reshape(w, (neurons, n)))
    x = torch.tensor(np.reshape(a, (points, n)), dtype=torch.float32)
    found = sb.measure_sensitivity(layer, x)["weight"]
    assert_measures(found, oracle.sensitivity(layer.weight, oracle.patches(layer, x)), n, torch.float32)


@pytest.mark.parametrize(
    ("w", "a"),
    [
        ([1.0, 1.0], [1e-40, 3e-40]),  # 1 / Z is beyond float32
        ([1.0, 1.0], [3e38, 1e38]),  # Z is
        ([1e-42, 1.0], [3e38, 1e-4]),  # a / Z is
        ([0.0, 1.0], [1e20, 1e-22]),  # the same, for a weight of 0
        ([1e-30, 1.0], [1e-20, 0.0]),  # the product is below float32, and all there is
        ([1e30, 1e-20], [1e-28, 1e20]),  # the weights' range is beyond float32
        ([1e-45, 3e-45], [1.0, 1e-45]),
    ],
)
def test_where_single_precision_would_not_do(w: list[float], a: list[float]) -> None:
    for x in (torch.tensor([a * 2]), torch.tensor([a * 2, [-a[0], a[1]] * 2])):
        layer = linear([[*w, *(-v for v in w)]])
        found = sb.measure_sensitivity(layer, x)["weight"]
        assert_measures(found, oracle.sensitivity(layer.weight, oracle.patches(layer, x)), 4, torch.float32)


def test_a_double_network_on_denormal_activations() -> None:
    layer = linear([[1.0, 2.0, 3.0], [0.0, -4.0, 4.0]], torch.float64)
    x = torch.tensor([[1e-310, 1e-310, 0.0], [0.0, 3e-320, 0.0]], dtype=torch.float64)
    # Two patches that the scaling of C1 brings back to (1, 1, 0) and (0, 1, 0).
    expected = oracle.sensitivity(layer.weight, np.array([[1.0, 1, 0], [0, 1, 0]]).reshape(2, 1, 1, 3))
    assert_measures(sb.measure_sensitivity(layer, x)["weight"], expected, 3, torch.float64)


def test_special_weights() -> None:
    one = sb.measure_sensitivity(linear([[-3.0]]), torch.tensor([[0.0], [2.0]]))["weight"]
    assert one.values.tolist() == [[1.0]]
    assert one.active.tolist() == [[0, 1]]
    equal = sb.measure_sensitivity(linear([[0.5] * 8]), torch.ones(3, 8))["weight"]
    assert equal.values.tolist() == [[0.125] * 8]
    # A zero column, a dead input and a dead neuron: sensitivity exactly 0, the rest as if they were not there.
    w = [[1.0, 0.0, 3.0, 5.0], [0.0, 0.0, 0.0, 0.0]]
    found = sb.measure_sensitivity(linear(w), torch.tensor([[1.0, 9.0, 1.0, 0.0]]))["weight"]
    assert found.values.tolist() == [[0.25, 0.0, 0.75, 0.0], [0.0, 0.0, 0.0, 0.0]]
    assert found.active.tolist() == [[1, 0], [0, 0]]
    assert found.totals.tolist() == [[1.0, 0.0], [0.0, 0.0]]


def test_points_that_reach_nothing_give_zeros() -> None:
    found = sb.measure_sensitivity(nn.Linear(3, 2), torch.zeros(4, 3))["weight"]
    assert not found.values.any()
    assert not found.active.any()
    assert found.num_patches == 4


class Twice(nn.Module):
    """One layer called twice in a forward pass, the second time on another number of patches."""

    def __init__(self, layer: nn.Module, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.layer = layer
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.function(self.layer(x)))


@pytest.mark.parametrize(
    ("layer", "shape", "function"),
    [(nn.Linear(5, 5), (5,), torch.tanh), (nn.Conv2d(2, 2, 3, padding=1), (2, 6, 6), lambda y: y[..., ::2])],
)
def test_a_weight_used_twice_takes_the_patches_of_both_calls(
    layer: nn.Module, shape: tuple[int, ...], function: Callable[[Tensor], Tensor]
) -> None:
    x = signed(4, *shape)
    with torch.no_grad():
        calls = [oracle.patches(layer, x), oracle.patches(layer, function(layer(x)))]
    sens = sb.measure_sensitivity(Twice(layer, function), x)
    assert list(sens) == ["layer.weight"]
    assert sens.num_patches == sum(call.shape[0] * call.shape[1] for call in calls)
    expected = oracle.sensitivity(layer.weight, np.concatenate(calls, 1))
    assert_measures(sens["layer.weight"], expected, calls[0].shape[3], torch.float32)


def test_each_layer_of_a_network_is_measured_on_what_the_network_gives_it() -> None:
    network, x = build(small_network), signed(9, 2, 6, 6)
    inputs: dict[str, tuple[nn.Module, Tensor]] = {}
    hooks = [
        layer.register_forward_pre_hook(lambda layer, args, n=name: inputs.update({f"{n}.weight": (layer, args[0])}))
        for name, layer in network.named_children()
        if hasattr(layer, "weight")
    ]
    with torch.no_grad():
        network.eval()(x)
    for hook in hooks:
        hook.remove()
    sens = sb.measure_sensitivity(network, x)
    assert list(sens) == list(inputs) == ["0.weight", "2.weight", "6.weight", "8.weight"]
    for name, (layer, a) in inputs.items():
        patches = oracle.patches(layer, a)
        assert_measures(sens[name], oracle.sensitivity(layer.weight, patches), patches.shape[3], torch.float32)


def test_a_functional_linear_is_measured_under_the_name_of_its_parameter() -> None:
    class Functional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.matrix = nn.Parameter(signed(4, 3))

        def forward(self, x: Tensor) -> Tensor:
            return F.linear(weight=self.matrix, input=x)

    network, x = Functional(), signed(5, 3, seed=1)
    found = sb.measure_sensitivity(network, x)["matrix"]
    assert_measures(found, oracle.sensitivity(network.matrix, oracle.array(x).reshape(5, 1, 1, 3)), 3, torch.float32)
