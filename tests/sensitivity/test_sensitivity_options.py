"""Sensitivities: which layers, what is refused, what is skipped, and that nothing is left changed."""

import copy
from typing import Any

import pytest
import torch
from samples import build, signed, small_network
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

import sipp_bench as sb
from sipp_bench.errors import ModelError, OptionError, PointsError


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        ("0.weight", ["0.weight"]),
        ("6", ["6.weight"]),
        (["8", "0"], ["0.weight", "8.weight"]),
        ("[02].*", ["0.weight", "2.weight"]),
        (["*"], ["0.weight", "2.weight", "6.weight", "8.weight"]),
    ],
)
def test_layers_by_name_and_by_pattern(layers: Any, expected: list[str]) -> None:
    network, x = build(small_network), signed(3, 2, 6, 6)
    sens = sb.measure_sensitivity(network, x, layers=layers)
    assert list(sens) == expected
    full = sb.measure_sensitivity(network, x)
    assert all(torch.equal(sens[name].values, full[name].values) for name in expected)
    assert not sens.skipped


def test_bad_options_are_refused() -> None:
    network, x = build(small_network), signed(3, 2, 6, 6)
    with pytest.raises(OptionError, match=r"'fc9'.*0\.weight, 2\.weight"):
        sb.measure_sensitivity(network, x, layers=["0", "fc9"])
    with pytest.raises(OptionError, match=r"patch_reduction.*'median'"):
        sb.measure_sensitivity(network, x, patch_reduction="median")  # type: ignore[arg-type]  # that is the point
    with pytest.raises(OptionError, match="batch_size"):
        sb.measure_sensitivity(network, x, batch_size=0)


def test_bad_networks_are_refused_and_named() -> None:
    network, x = build(small_network), signed(3, 2, 6, 6)
    for value in (float("nan"), float("inf")):
        bad = copy.deepcopy(network)
        with torch.no_grad():
            bad[6].weight[0, 0] = value
        with pytest.raises(ModelError, match=r"'6\.weight' holds NaN or infinity"):
            sb.measure_sensitivity(bad, x)
    exploding = nn.Sequential(nn.Linear(2, 2), nn.Threshold(1e9, float("nan")), nn.Linear(2, 2))
    with pytest.raises(ModelError, match=r"input of layer '2\.weight' holds NaN or infinity"):
        sb.measure_sensitivity(exploding, torch.ones(3, 2))
    with pytest.raises(ModelError, match="nothing to prune"):
        sb.measure_sensitivity(nn.Sequential(nn.ReLU(), nn.BatchNorm1d(2)), torch.ones(3, 2))
    with pytest.raises(ModelError, match=r"nothing to prune.*transposed convolutions"):
        sb.measure_sensitivity(nn.ConvTranspose1d(1, 1, 1), torch.ones(3, 1, 2))
    with pytest.raises(ModelError, match="not initialised"):
        sb.measure_sensitivity(nn.LazyLinear(2), torch.ones(3, 2))


def test_bad_points_are_refused() -> None:
    layer = nn.Linear(3, 2)
    with pytest.raises(PointsError, match="Point 5 holds NaN or infinity"):
        sb.measure_sensitivity(layer, torch.ones(8, 3).index_fill(0, torch.tensor([5, 6]), torch.inf), batch_size=4)
    with pytest.raises(PointsError, match="no points"):
        sb.measure_sensitivity(layer, torch.ones(0, 3))
    with pytest.raises(PointsError, match=r"shape \(8, 4\)"):
        sb.measure_sensitivity(layer, torch.ones(8, 4))
    with pytest.raises(PointsError, match="single number"):
        sb.measure_sensitivity(layer, torch.tensor(1.0))
    with pytest.raises(PointsError, match=r"shape \(4, 5\).*4D input"):
        sb.measure_sensitivity(nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 1, 1)), torch.ones(4, 5))


class Odd(nn.Module):
    """Every kind of weight that must stay dense, and one that need not."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(5, 4)
        self.measured = nn.Linear(4, 4)
        self.tied = nn.Linear(4, 5, bias=False)
        self.tied.weight = self.table.weight
        self.upward = nn.ConvTranspose1d(4, 4, 1)
        self.recurrent = nn.LSTM(4, 4, batch_first=True)
        self.unused = nn.Linear(4, 4)
        self.masked = prune.random_unstructured(nn.Linear(4, 4), "weight", amount=2)
        self.normed = parametrizations.weight_norm(nn.Linear(4, 4))
        self.sliced = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.normed(self.masked(self.measured(self.table(x))))
        hidden = hidden @ self.sliced.weight.T
        hidden, _ = self.recurrent(self.upward(hidden.transpose(1, 2)).transpose(1, 2))
        return self.tied(hidden)


def test_what_cannot_be_measured_is_listed_with_its_reason() -> None:
    network = build(Odd)
    sens = sb.measure_sensitivity(network, torch.tensor([[0, 1, 2], [4, 3, 3]]))
    assert list(sens) == ["measured.weight", "sliced.weight"]
    expected = {
        "table.weight": "embedding",
        "upward.weight": "transposed convolutions",
        "recurrent.weight_ih_l0": "recurrent",
        "recurrent.weight_hh_l0": "recurrent",
        "unused.weight": "never used",
        "masked.weight": "computed from other parameters",
        "normed.weight": "computed from other parameters",
        "masked.weight_orig": "used in 'mul'",
        "normed.parametrizations.weight.original0": "used in",
        "normed.parametrizations.weight.original1": "used in",
    }
    assert set(sens.skipped) == set(expected)
    assert all(reason in sens.skipped[name] for name, reason in expected.items())
    with pytest.raises(ModelError, match=r"nothing to prune.*unused"):
        sb.measure_sensitivity(network, torch.tensor([[0, 1]]), layers="unused")


def test_an_embedding_table_applied_by_a_functional_call_is_listed() -> None:
    class Functional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.inner = nn.Embedding(5, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.linear(self.inner(self.table(x)), self.table.weight)

    sens = sb.measure_sensitivity(Functional(), torch.tensor([[1, 2]]))
    assert list(sens) == ["inner.weight"]
    assert list(sens.skipped) == ["table.weight"]


def test_the_network_is_left_as_it_was() -> None:
    network, x = build(small_network), signed(5, 2, 6, 6)
    network[2].weight.requires_grad_(False)
    network(x).sum().backward()
    before = {name: (p.detach().clone(), p.grad, p.requires_grad, p._version) for name, p in network.named_parameters()}
    grads = {name: None if grad is None else grad.clone() for name, (_, grad, _, _) in before.items()}
    network.eval()
    network[5].training = True
    flags = [m.training for m in network.modules()]
    rng = torch.get_rng_state()
    sb.measure_sensitivity(network, x)
    with pytest.raises(PointsError):
        sb.measure_sensitivity(network, torch.full((2, 2, 6, 6), torch.nan))
    with pytest.raises(PointsError):
        sb.measure_sensitivity(network, x[:, :1])
    assert [m.training for m in network.modules()] == flags
    assert torch.equal(torch.get_rng_state(), rng)
    for name, parameter in network.named_parameters():
        value, grad, requires_grad, version = before[name]
        assert torch.equal(parameter, value)
        assert parameter.grad is grad
        assert grad is None or torch.equal(grad, grads[name])
        assert (parameter.requires_grad, parameter._version) == (requires_grad, version)


@pytest.fixture
def restored_settings() -> Any:
    precision, fast = torch.get_float32_matmul_precision(), torch.backends.mha.get_fastpath_enabled()
    cuda = torch.backends.cuda.matmul.fp32_precision
    yield
    torch.backends.cuda.matmul.fp32_precision = cuda
    torch.set_float32_matmul_precision(precision)
    torch.backends.mha.set_fastpath_enabled(fast)


def test_global_settings_are_left_as_they_were(restored_settings: None) -> None:
    x = signed(3, 4)
    for precision, fast in (("high", True), ("medium", False), ("highest", True)):
        torch.set_float32_matmul_precision(precision)
        torch.backends.mha.set_fastpath_enabled(fast)
        with torch.enable_grad():
            sb.measure_sensitivity(nn.Linear(4, 2), x)
            assert torch.is_grad_enabled()
        with pytest.raises(PointsError):
            sb.measure_sensitivity(nn.Linear(4, 2), x[:, :3])
        assert torch.get_float32_matmul_precision() == precision
        assert torch.backends.mha.get_fastpath_enabled() == fast
        assert torch.is_grad_enabled()
        assert not torch.overrides._get_current_function_mode_stack()


def test_precisions_set_by_backend_are_left_as_they_were(restored_settings: None) -> None:
    # torch refuses torch.get_float32_matmul_precision() in this state.
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    layer, x = nn.Linear(4, 2), signed(3, 4)
    found = sb.measure_sensitivity(layer, x)
    assert torch.backends.cuda.matmul.fp32_precision == "tf32"
    torch.backends.cuda.matmul.fp32_precision = "ieee"
    assert torch.equal(found["weight"].values, sb.measure_sensitivity(layer, x)["weight"].values)


def test_autocast_and_inference_mode_around_a_measurement_change_nothing() -> None:
    layer, x = nn.Linear(40, 20), signed(30, 40)
    plain = sb.measure_sensitivity(layer, x)["weight"].values
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(sb.measure_sensitivity(layer, x)["weight"].values, plain)
    with torch.inference_mode():
        assert torch.equal(sb.measure_sensitivity(layer, x)["weight"].values, plain)


def test_device_measures_a_copy() -> None:
    layer, x = nn.Linear(4, 2), signed(3, 4)
    found = sb.measure_sensitivity(layer, x, device="cpu")["weight"].values
    assert torch.equal(found, sb.measure_sensitivity(layer, x)["weight"].values)
    with pytest.raises(ModelError, match="meta device"):
        sb.measure_sensitivity(layer.to("meta"), x, device="cpu")


@pytest.mark.parametrize("signed", [False, True])
def test_outputs_derived_from_sums_give_the_same_sensitivities(signed: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3, stride=2, padding=1, bias=not signed), nn.ReLU(), nn.Conv2d(4, 6, 3, groups=2),
        nn.Flatten(), nn.Linear(54, 7), nn.Tanh(), nn.Linear(7, 3),
    ).eval()  # fmt: skip
    points = torch.randn(5, 2, 10, 10) if signed else torch.rand(5, 2, 10, 10)
    plain = sb.measure_sensitivity(model, points)
    derived = sb.measure_sensitivity(model, points, derive_outputs=True)
    for name, layer in plain.items():
        # Three layers before, each with sums of at most 54 products that partly cancel.
        torch.testing.assert_close(derived[name].values, layer.values, rtol=1e-4, atol=1e-7)
        assert derived[name].num_patches == layer.num_patches
    outputs: list[torch.Tensor] = []
    model[-1].register_forward_hook(lambda module, inputs, output: outputs.append(output))
    sb.measure_sensitivity(model, points, derive_outputs=True)
    with torch.no_grad():
        expected = model(points)
    torch.testing.assert_close(outputs[0], expected, rtol=1e-4, atol=1e-5)
    assert not torch.equal(outputs[0], expected)  # else nothing was derived


def test_outputs_stay_the_networks_own_to_the_last_bit() -> None:
    torch.manual_seed(0)
    model, outputs = nn.Sequential(nn.Conv2d(1, 3, 3), nn.Flatten(), nn.Linear(108, 4)).eval(), []
    model.register_forward_hook(lambda module, inputs, output: outputs.append(output))
    points = torch.randn(3, 1, 8, 8)
    sb.measure_sensitivity(model, points)
    with torch.no_grad():
        model(points)
    assert torch.equal(*outputs)


def test_what_float32_cannot_hold_is_not_derived() -> None:
    layer = nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        layer.weight[:] = torch.tensor([[1e-30, 1e-30]])
    outputs: list[torch.Tensor] = []
    layer.register_forward_hook(lambda module, inputs, output: outputs.append(output))
    sens = sb.measure_sensitivity(layer, torch.tensor([[1e-30, 3e-30]]), derive_outputs=True)
    torch.testing.assert_close(sens["weight"].values, torch.tensor([[0.25, 0.75]]))
    assert sens["weight"].num_patches == 1


def test_activations_of_a_double_network_stay_what_they_are() -> None:
    # Shapes whose patches are a view of the input: scaling them in place would change what the network computes on.
    layer, points = nn.Linear(3, 2).double(), torch.tensor([[1e-5, 3.0, 700.0]], dtype=torch.float64)
    before = points.clone()
    sb.measure_sensitivity(layer, points)
    assert torch.equal(points, before)
    conv, image = nn.Conv1d(1, 2, 1).double(), torch.tensor([[[1e-5, 3.0, 700.0]]], dtype=torch.float64)
    before = image.clone()
    sb.measure_sensitivity(conv, image)
    assert torch.equal(image, before)
