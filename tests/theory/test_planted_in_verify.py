"""One small bug for each claim that verify holds a network to, on a later layer only: falsified, and by that claim."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sipp_bench import bounds
from sipp_bench.methods.protocol import Selection
from sipp_bench.methods.sipp import SamplingMethod, SippMethod
from sipp_bench.methods.sipp_hybrid import SippHybrid
from sipp_bench.sensitivity.measure import LayerSensitivity, Sensitivity, measure_sensitivity
from theory_checks import verify
from theory_checks.certificate.certify import certify
from theory_checks.claims import Finding, Verdict
from theory_checks.evidence.finding import QUICK

EFFORT = replace(QUICK, cases=5, trials=400)
MEASURED = ("sipp_bench.methods.observers", "theory_checks.on_network.context", "theory_checks.on_network.identities")
Patch = pytest.MonkeyPatch


def network() -> nn.Sequential:
    """Three layers; blocks of both signs are about as large, so that the maximum in C4 is not the sum."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = nn.Linear(400, 40), nn.ReLU(), nn.Linear(40, 30), nn.ReLU(), nn.Linear(30, 6)
        return nn.Sequential(*layers).eval()


def check(claim: str, method: str, keep: float, count: int = 70, draws: int = 20) -> Finding:
    points, fresh = (torch.rand((n, 400), generator=torch.Generator().manual_seed(n)) for n in (count, 200))
    report = verify(network(), points, fresh, keep=keep, effort=EFFORT, draws=draws, claims=[claim], method=method)
    return report.findings[0]


def scaled_sensitivities(factor: float) -> Callable[[Patch], None]:
    """Those of the second layer, wherever they are measured."""

    def measure(*given: Any, **options: Any) -> Sensitivity:
        found = measure_sensitivity(*given, **options)
        other = replace(found.layers["2.weight"], values=(found.layers["2.weight"].values * factor).clamp(max=1))
        return replace(found, layers={**found.layers, "2.weight": other})

    def plant(patch: Patch) -> None:
        for place in MEASURED:
            patch.setattr(f"{place}.measure_sensitivity", measure)

    return plant


def parts_not_merged(patch: Patch) -> None:
    """Of the second layer the first part is taken for both."""
    sound = LayerSensitivity.merge

    def merge(self: LayerSensitivity, other: LayerSensitivity) -> LayerSensitivity:
        found = sound(self, other)
        return replace(found, values=self.values) if self.name == "2.weight" else found

    patch.setattr(LayerSensitivity, "merge", merge)


def last_point_lost(patch: Patch) -> None:
    """Where S is measured as a whole."""
    patch.setattr(
        "theory_checks.on_network.context.measure_sensitivity",
        lambda model, points, **options: measure_sensitivity(model, points[:-1], **options),
    )


def scaled_bounds(factor: float, cls: type[SippMethod], rows: int) -> Callable[[Patch], None]:
    """Epsilon of the layer with so many neurons."""
    sound = cls.epsilon

    def epsilon(self: Any, rest: Tensor, *given: Any) -> Tensor:
        found = sound(self, rest, *given)
        return found * factor if len(rest) == rows else found

    return lambda patch: patch.setattr(cls, "epsilon", epsilon)


def scaled_certificate(patch: Patch) -> None:
    def smaller(model: nn.Module, pruned: nn.Module, points: Any) -> Any:
        found = certify(model, pruned, points)
        return replace(found, error=found.error * 0.02)

    patch.setattr("theory_checks.on_network.identities.certify", smaller)


def plan_of_the_seed(patch: Patch) -> None:
    """Every second seed asks for 200 weights less."""
    sound = SippHybrid.select

    def select(self: Any, observation: Any, weights: Any, budget: int, rng: Any) -> Selection:
        return sound(self, observation, weights, max(budget - 200 * int(rng.integers(2)), 0), rng)

    patch.setattr(SippHybrid, "select", select)


def rank_too_low(patch: Patch) -> None:
    """A quantile for a larger alpha: of 100 fresh points about 55 are covered."""
    sound = bounds.conformal_quantile
    patch.setattr("theory_checks.on_network.fresh.bounds.conformal_quantile", lambda s, alpha: sound(s, 0.45))


PLANTED: dict[str, tuple[str, str, float, Callable[[Patch], None]]] = {
    "C1: parts not merged": ("C1", "sipp-det", 0.5, parts_not_merged),
    "C1: last point lost": ("C1", "sipp-det", 0.5, last_point_lost),
    "C2: bounds 2 % too small": ("C2", "sipp-det", 0.98, scaled_bounds(0.98, SippMethod, 30)),
    "C4: bounds 3 % too small": ("C4", "sipp-det", 0.98, scaled_bounds(0.97, SippMethod, 6)),
    "C7: a certificate that is too small": ("C7", "sipp-det", 0.9, scaled_certificate),
    "C8: sensitivities 5 % too large": ("C8", "sipp-det", 0.98, scaled_sensitivities(1.05)),
    "C10: bounds a fifth": ("C10", "sipp-rand", 0.5, scaled_bounds(0.2, SamplingMethod, 40)),
    "C11: bounds a fifth": ("C11", "sipp-rand", 0.8, scaled_bounds(0.2, SamplingMethod, 40)),
    "C12: a plan that knows the seed": ("C12", "sipp-hybrid", 0.3, plan_of_the_seed),
    "C17: a rank too low": ("C17", "sipp-det", 0.5, rank_too_low),
}


@pytest.mark.statistical
@pytest.mark.parametrize("name", PLANTED)
def test_a_small_bug_is_falsified(name: str, monkeypatch: Patch) -> None:
    claim, method, keep, plant = PLANTED[name]
    assert check(claim, method, keep).verdict is not Verdict.FALSIFIED
    plant(monkeypatch)
    found = check(claim, method, keep)
    assert found.verdict is Verdict.FALSIFIED, found.detail


@pytest.mark.statistical
def test_few_points_are_compared_with_the_whole_as_well(monkeypatch: Patch) -> None:
    assert check("C1", "sipp-det", 0.5, count=20).verdict is Verdict.HOLDS
    last_point_lost(monkeypatch)
    assert check("C1", "sipp-det", 0.5, count=20).verdict is Verdict.FALSIFIED
