"""Claim C18, and Delta of real networks."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from theory_checks.certificate.composition import Distribution, cancellation, folded, is_chain
from theory_checks.claims.c18_composition import CLAIM
from theory_checks.evidence.finding import QUICK, Verdict
from theory_checks.subjects.known_bad import KNOWN_BAD
from theory_checks.subjects.subject import REFERENCE

pytestmark = pytest.mark.identity


@pytest.mark.parametrize("seed", range(3))
def test_the_library_holds(seed: int) -> None:
    finding = CLAIM.check(REFERENCE, QUICK, seed)
    assert finding.verdict is Verdict.HOLDS, finding.detail
    assert finding.worst > 1 - 1e-9, "no tight case was met"
    assert "by construction" in finding.detail


@pytest.mark.parametrize("name", CLAIM.rejects)
def test_known_bad_compositions_are_rejected(name: str) -> None:
    assert CLAIM.check(KNOWN_BAD[name], QUICK, 0).verdict is Verdict.FALSIFIED


@pytest.mark.parametrize("compose", [lambda delta, xi, eps: delta * torch.nan, lambda delta, xi, eps: [0.0] * 99])
def test_nonsense_is_falsified(compose: object) -> None:
    assert CLAIM.check(replace(REFERENCE, compose=compose), QUICK, 0).verdict is Verdict.FALSIFIED  # type: ignore[arg-type]  # wrong on purpose


def test_tight() -> None:
    assert CLAIM.check(replace(REFERENCE, shrink=0.99), QUICK, 1).verdict is Verdict.FALSIFIED


def test_cancellation_by_hand() -> None:
    layer = nn.Linear(2, 4)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, -1.0], [1.0, 1.0], [1.0, -0.5], [0.0, 0.0]]))
        layer.bias.copy_(torch.tensor([0.0, 2.0, -0.5, 0.0]))
    # |1| + |-1| over 0; 4 over 4; 1 + 0.5 + 0.5 over 0: infinite; nothing to add: 1.
    assert cancellation(layer, torch.ones(1, 2))[0, 0].tolist() == [np.inf, 1.0, np.inf, 1.0]
    assert cancellation(layer, torch.tensor([[3.0, -1.0]]))[0, 0].tolist() == [1.0, 6 / 4, 4 / 3, 1.0]


def test_distribution_against_numpy() -> None:
    values = 1 + np.random.default_rng(0).pareto(1.0, 20_000)
    found = Distribution.empty()
    for part in torch.from_numpy(values).split(999):
        found.add(part)
    for share in (0.1, 0.5, 0.9, 0.999):
        assert np.quantile(values, share) == pytest.approx(found.quantile(share), rel=0.03)
    assert found.largest == found.quantile(1) == values.max()
    found.add(torch.tensor([torch.inf], dtype=torch.float64))
    assert found.largest == np.inf


def test_folding_keeps_the_function() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm, self.fc = nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Linear(8, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            result: torch.Tensor = self.fc(self.norm(self.conv(x)).relu().flatten(1))
            return result

    model = Net().eval()
    nn.init.uniform_(model.norm.running_var, 0.5, 2)
    points = torch.randn(3, 1, 4, 4)
    other, complete = folded(model)
    assert complete
    assert torch.allclose(other(points), model(points), atol=1e-6)
    assert {name for name, module in other.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)} == {
        "conv",
        "fc",
    }
    alone = nn.Sequential(nn.ReLU(), nn.BatchNorm1d(3), nn.Linear(3, 2))
    assert folded(alone)[1] is False
    assert is_chain(nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.ReLU(), nn.Flatten())))
    assert not is_chain(model)
    assert not is_chain(nn.Sequential(nn.Linear(2, 2), nn.Tanh()))
