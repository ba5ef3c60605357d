"""verify on networks whose modules don't tell what is applied to what: no false alarm, and planted bugs are seen."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from odd_networks import ODD, VECTORS, ByVmap, Complex, build, sample
from torch import Tensor, nn

import sipp_bench as sb
from sipp_bench import bounds
from sipp_bench.errors import ModelError
from sipp_bench.methods.sipp_det import SippDet
from theory_checks import Report, verify
from theory_checks.cases import oracle
from theory_checks.certificate.composition import is_chain
from theory_checks.evidence.finding import QUICK, Verdict
from theory_checks.on_network import capture as capture_module
from theory_checks.on_network.capture import layer_batches

EFFORT = replace(QUICK, cases=5, trials=300)
# Where some block loses a single weight, so that its error is its bound (claim C8).
SOFT = (0.8, 0.9, 0.95, 0.98, 0.995)


def run(kind: str, **options: Any) -> Report:
    builder, shape = ODD[kind]
    given = {"keep": (0.3, 0.95), "effort": EFFORT, "draws": 4} | options
    return verify(build(builder), sample(50, shape, 1), sample(60, shape, 2), **given)


def falsified(report: Report) -> set[str]:
    return {finding.claim for finding in report.findings if finding.verdict is Verdict.FALSIFIED}


@pytest.mark.parametrize("method", ["sipp-det", "sipp-rand"])
@pytest.mark.parametrize("kind", ODD)
def test_no_false_alarm(kind: str, method: str) -> None:
    report = run(kind, method=method)
    assert report.ok, str(report)


@pytest.mark.parametrize("kind", ODD)
def test_a_network_is_left_as_it_was(kind: str) -> None:
    builder, shape = ODD[kind]
    model = build(builder)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    verify(model, sample(9, shape, 1), sample(9, shape, 2), claims=["C1", "C2", "C7"], method="sipp-det")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize("kind", ODD)
def test_planted_bound_that_is_a_little_too_small(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = bounds.deterministic_epsilon
    monkeypatch.setattr("sipp_bench.methods.sipp.deterministic_epsilon", lambda s, dim=None: honest(s, dim) / 1.05)
    assert "C2" in falsified(run(kind, method="sipp-det", claims=["C2"], keep=SOFT))


@pytest.mark.parametrize("kind", ODD)
def test_planted_weights_that_are_a_little_too_large(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = SippDet.select

    def select(self: SippDet, *arguments: Any) -> Any:
        found = honest(self, *arguments)
        return found.with_weights({name: 1.05 * w for name, w in found.weights.items()})

    monkeypatch.setattr(SippDet, "select", select)
    assert "C2" in falsified(run(kind, method="sipp-det", claims=["C2"], keep=SOFT))


@pytest.mark.parametrize("kind", ODD)
def test_sensitivities_from_captured_inputs(kind: str) -> None:
    """Of the oracle, over all that it is given, against the library's."""
    builder, shape = ODD[kind]
    model, points = build(builder), sample(9, shape, 1)
    expected = sb.measure_sensitivity(model, points)
    found: dict[str, Tensor] = {}
    for name, layer, x in layer_batches(model, points, set(expected)):
        s = oracle.sensitivities(layer, x)
        found[name] = torch.maximum(s, found.get(name, torch.zeros_like(s)))
    assert set(found) == set(expected)
    for name, s in found.items():
        torch.testing.assert_close(s.float(), expected[name].values.flatten(1), rtol=1e-5, atol=1e-12)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Linear(5, 3), (6, 11, 5)),
        (nn.Conv1d(2, 4, 3, stride=2, padding=2, dilation=3, groups=2), (5, 2, 23)),
        (nn.Conv2d(3, 4, (3, 2), stride=(2, 3), padding=(1, 2), padding_mode="circular"), (4, 3, 9, 11)),
        (nn.Conv2d(1, 4, (4, 2), padding="same", dilation=(1, 2)), (4, 1, 9, 8)),
        (nn.Conv3d(1, 2, 2, stride=(2, 1, 1)), (3, 1, 5, 4, 6)),
    ],
)
@pytest.mark.parametrize("part", [1 << 22, 500, 1])
def test_parts_are_the_whole(
    layer: oracle.Layer, shape: tuple[int, ...], part: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(capture_module, "_PART", part)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    found = [oracle.quadrant_sums(applied, a).flatten(0, 1) for _, applied, a in layer_batches(layer, x)]
    if part == 1:
        assert len(found) > shape[0]
    z = oracle.quadrant_sums(layer, x).flatten(0, 1)
    torch.testing.assert_close(torch.cat(found), z, rtol=1e-12, atol=0)


def test_inputs_that_memory_does_not_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    model, points = build(ODD["transformer"][0]), sample(9, (1, 16, 16), 1)
    at_once = [(name, x) for name, _, x in layer_batches(model, points)]
    monkeypatch.setattr(capture_module, "_HELD", 1)
    one_by_one = [(name, x) for name, _, x in layer_batches(model, points)]
    assert [name for name, _ in at_once] == [name for name, _ in one_by_one]
    for (_, x), (_, again) in zip(at_once, one_by_one, strict=True):
        torch.testing.assert_close(x, again)


def test_a_trace_that_tells_another_stride(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = capture_module._linear_map

    def other(call: Any, weight: Tensor) -> Any:
        layer, x = honest(call, weight)
        return (replace(layer, stride=(1, 1), dilation=(2, 2)) if layer.stride == (2, 2) else layer), x

    monkeypatch.setattr(capture_module, "_linear_map", other)
    with pytest.raises((ModelError, RuntimeError), match=r"first\.weight|size of tensor"):
        run("TensorFlow's padding", method="sipp-det", claims=["C2"])


def test_vmap_is_refused_in_a_sentence() -> None:
    with pytest.raises(ModelError, match=r"'layers\.0\.weight' is applied inside torch\.vmap"):
        sb.measure_sensitivity(build(ByVmap), sample(9, VECTORS, 1))


def test_complex_weights_stay_dense() -> None:
    sens = sb.measure_sensitivity(build(Complex), sample(9, VECTORS, 1))
    assert set(sens) == {"head.weight"}
    assert "no sign" in sens.skipped["first.weight"]


def test_composition_follows_functional_layers() -> None:
    """fx takes padding subclasses apart, where only the trace sees the convolutions."""
    report = run("TensorFlow's padding", method="sipp-det", claims=["C18"], keep=0.3)
    assert len(report.findings[0].data["layers"]) == 3
    assert "of 3 layers" in report.findings[0].detail


@pytest.mark.parametrize("kind", ["clipped input", "weight norm", "weight norm by hooks", "masked weights"])
def test_no_chain(kind: str) -> None:
    assert not is_chain(build(ODD[kind][0]))


def test_chains() -> None:
    linear = nn.Linear(4, 4)
    assert is_chain(nn.Sequential(linear, nn.Sequential(nn.ReLU(), nn.Linear(4, 4))))
    assert not is_chain(nn.Sequential(linear, nn.ReLU(), linear))
    assert is_chain(nn.Sequential(nn.Conv1d(1, 1, 1), nn.ReLU(), nn.AvgPool1d(2)))
    assert not is_chain(nn.Sequential(nn.Conv1d(1, 1, 1), nn.AvgPool1d(2)))
