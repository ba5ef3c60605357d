"""Claim C7, and the certificate as people use it."""

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings, target
from hypothesis import strategies as st
from torch import Tensor, nn

from sipp_bench.errors import ModelError, OptionError
from sipp_bench.zoo import models
from theory_checks.cases.strategies import NetworkCase, network_cases
from theory_checks.certificate.certify import certified_class, certify
from theory_checks.certificate.rules import RULES
from theory_checks.claims.c07_network_certificate import CLAIM, prune_somehow
from theory_checks.evidence.finding import QUICK, Verdict
from theory_checks.subjects.known_bad import KNOWN_BAD
from theory_checks.subjects.subject import REFERENCE

pytestmark = pytest.mark.identity

FEW = replace(QUICK, cases=20)


@pytest.mark.parametrize("seed", range(3))
def test_the_library_holds(seed: int) -> None:
    finding = CLAIM.check(REFERENCE, QUICK, seed)
    assert finding.verdict is Verdict.HOLDS, finding.detail
    assert finding.trials == QUICK.cases
    assert finding.worst > 1 - 1e-9, "no tight case was met"


@pytest.mark.parametrize("name", CLAIM.rejects)
def test_known_bad_certificates_are_rejected(name: str) -> None:
    assert CLAIM.check(KNOWN_BAD[name], FEW, 0).verdict is Verdict.FALSIFIED


@pytest.mark.parametrize("shrink", [0.5, 0.9, 0.99])
def test_tight(shrink: float) -> None:
    assert CLAIM.check(replace(REFERENCE, shrink=shrink), FEW, 1).verdict is Verdict.FALSIFIED


def test_a_certificate_that_raises_or_is_nan_is_falsified() -> None:
    def raising(*arguments: object) -> None:
        raise RuntimeError("broken")

    def nan(model: nn.Module, pruned: nn.Module, points: Tensor) -> object:
        good = certify(model, pruned, points)
        return replace(good, error=torch.full_like(good.error, torch.nan))

    for wrong in (raising, nan):
        assert CLAIM.check(replace(REFERENCE, certify=wrong), FEW, 0).verdict is Verdict.FALSIFIED  # type: ignore[arg-type]  # wrong on purpose


def outputs(network: nn.Module, points: Tensor, dtype: torch.dtype) -> Tensor:
    with torch.no_grad():
        result: Tensor = copy.deepcopy(network).to(dtype).eval()(points.to(dtype))
    return result.double()


@settings(max_examples=40, deadline=None)
@given(network_cases(), st.sampled_from(["drop", "reweight", "perturb", "flip", "none"]), st.integers(0, 2**31))
def test_every_network_in_both_precisions(case: NetworkCase, how: str, seed: int) -> None:
    """The bound contains the rounding of float32 as well; pushed towards 1 by Hypothesis."""
    import numpy as np

    pruned = prune_somehow(case.model, how, np.random.default_rng(seed))
    for dtype in (torch.float64, torch.float32):
        certificate = certify(case.model, pruned, case.points, dtype=dtype)
        dense, other = outputs(case.model, case.points, dtype), outputs(pruned, case.points, dtype)
        moved = (other - dense).abs()
        assert (moved <= certificate.error).all()
        assert torch.equal(certificate.output, dense)
        assert not (certificate.certified & (dense.argmax(1) != other.argmax(1))).any()
    target(float((moved / certificate.error.clamp(min=1e-300)).max()))


class Everything(nn.Module):
    """One of nearly every operation that has a rule."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1, padding_mode="reflect")
        self.bn = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 8, 3, padding="same", groups=4, bias=False)
        self.conv3 = nn.Conv1d(8, 4, 3, dilation=2)
        self.fc1 = nn.Linear(20, 9)
        self.fc2 = nn.Linear(9, 5)
        self.gain = nn.Parameter(torch.rand(9))
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.bn(self.conv1(x)), inplace=True)
        x = F.hardswish(self.conv2(x)) + F.pad(x, (0, 0, 0, 0))
        x += 0.1
        x = F.max_pool2d(x, 2) - F.avg_pool2d(x, 2)
        x = self.conv3(x.flatten(2)) * torch.sigmoid(x[:, :4].mean((2, 3)))[:, :, None]
        left, right = F.gelu(x).chunk(2, 1)
        x = torch.cat([left, -right], 1).transpose(1, 2).reshape(x.size(0), -1)
        x = F.leaky_relu(self.fc1(F.mish(x)), 0.1) / 3
        x = 2 * self.drop(F.elu(x)).clamp(max=2) * self.gain
        return F.log_softmax(self.fc2(torch.tanh(1 - x)), dim=1)


@pytest.mark.parametrize("how", ["drop", "perturb"])
def test_operations(how: str) -> None:
    import numpy as np

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Everything()
        points = torch.randn(6, 3, 6, 6)
    nn.init.uniform_(model.bn.running_var, 0.5, 2)
    pruned = prune_somehow(model, how, np.random.default_rng(0))
    for dtype in (torch.float64, torch.float32):
        certificate = certify(model, pruned, points, dtype=dtype)
        moved = (outputs(pruned, points, dtype) - outputs(model, points, dtype)).abs()
        assert (moved <= certificate.error).all()
        assert moved.max() > 0
        assert torch.isfinite(certificate.error).all()


def test_a_network_compared_with_itself_is_certified_everywhere() -> None:
    model = models.build("lenet-5")
    points = torch.rand(3, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    certificate = certify(model, copy.deepcopy(model), points)
    assert certificate.certified.all()
    assert not certificate.error.any()
    assert not certificate.useless.any()


def test_biases_that_differ_are_contained_and_batch_norm_that_differs_is_refused() -> None:
    model = nn.Sequential(nn.Conv1d(2, 3, 2), nn.BatchNorm1d(3), nn.Flatten(), nn.Linear(9, 2))
    points = torch.randn(4, 2, 4)
    retrained = copy.deepcopy(model)
    with torch.no_grad():
        retrained[0].bias += 0.1
        retrained[3].bias -= 0.2
    moved = (outputs(retrained, points, torch.float64) - outputs(model, points, torch.float64)).abs()
    assert (moved <= certify(model, retrained, points).error).all()
    retrained[1].running_mean += 0.1
    with pytest.raises(ModelError, match="batch-norm differs"):
        certify(model, retrained, points)


class Odd(nn.Module):
    """A network with one odd operation."""

    def __init__(self, operation: object) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)
        self.operation = operation

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.operation(self, self.fc(x))  # type: ignore[operator]  # a function of ours
        return result


def through_a_view(net: Odd, y: Tensor) -> Tensor:
    y[:, :2].add_(1)
    return y


def branch(net: Odd, y: Tensor) -> Tensor:
    return y if y.sum() > 0 else -y


@pytest.mark.parametrize(
    ("operation", "sentence"),
    [
        (lambda net, y: torch.exp(y), "'exp'"),
        (lambda net, y: y.softmax(1), "'softmax'"),
        (lambda net, y: F.linear(y, net.fc.weight * 2), "computed from others"),
        (lambda net, y: F.layer_norm(y, (4,)), "'layer_norm'"),
        (lambda net, y: 1 / y, "rdiv|rtruediv"),
        (lambda net, y: F.dropout(y), "at random"),
        (lambda net, y: y.to(torch.float16), "'to'"),
        (lambda net, y: F.prelu(y, net.fc.weight[0, 0]), "'prelu'"),
        (lambda net, y: y[0], "one output tensor"),
        (lambda net, y: (y, y), "one output tensor"),
        (through_a_view, "in place through a view"),
        (branch, "'__bool__'|'gt'"),
    ],
)
def test_what_has_no_rule_is_refused_by_name(operation: object, sentence: str) -> None:
    model = Odd(operation)
    pruned = copy.deepcopy(model)
    with torch.no_grad():
        pruned.fc.weight[0] = 0
    with pytest.raises(ModelError, match=sentence):
        certify(model, pruned, torch.ones(2, 4))


def test_a_rule_of_ones_own() -> None:
    model = Odd(lambda net, y: torch.sin(y))
    pruned = copy.deepcopy(model)
    with torch.no_grad():
        pruned.fc.weight[0] = 0
    rules = RULES | {"sin": RULES["tanh"]}
    certificate = certify(model, pruned, torch.ones(2, 4), rules=rules)
    assert (certificate.error[:, 0] > 0).all()
    with pytest.raises(OptionError, match="float64 or float32"):
        certify(model, pruned, torch.ones(2, 4), dtype=torch.bfloat16)
    with pytest.raises(ModelError, match="same network"):
        certify(model, nn.Linear(4, 4), torch.ones(2, 4))


def test_nothing_is_touched() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Dropout(), nn.Linear(3, 2)).train()
    pruned = copy.deepcopy(model)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    certify(model, pruned, torch.ones(2, 3))
    assert all(module.training for module in (*model.modules(), *pruned.modules()))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_every_other_class_counts() -> None:
    y = torch.tensor([[1.0, 0.9, 0.5], [1.0, 0.9, 0.5], [1.0, 1.0, 0.0]]).double()
    e = torch.tensor([[0.01, 0.01, 0.6], [0.04, 0.05, 0.4], [0.0, 0.0, 0.0]]).double()
    assert certified_class(y, e).tolist() == [False, True, False]
