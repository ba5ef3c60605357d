"""Claim C14, and the families of layers on which the fresh-point claims are tried."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from sipp_bench.sensitivity.measure import Sensitivity, measure_sensitivity
from theory_checks.cases import families, oracle
from theory_checks.claims.c14_fresh_points import CLAIM
from theory_checks.evidence.finding import QUICK, Verdict
from theory_checks.subjects.known_bad import KNOWN_BAD
from theory_checks.subjects.subject import REFERENCE

pytestmark = pytest.mark.statistical


@pytest.mark.parametrize("seed", range(3))
def test_the_library_is_not_falsified(seed: int) -> None:
    finding = CLAIM.check(REFERENCE, QUICK, seed)
    assert finding.verdict is Verdict.NOT_FALSIFIED, finding.detail
    assert finding.trials >= QUICK.trials
    assert 0 < finding.worst <= 1
    assert finding.interval is not None
    assert finding.interval.low < finding.interval.high < 1


@pytest.mark.parametrize("name", CLAIM.rejects)
def test_known_bad_subjects_are_rejected(name: str) -> None:
    finding = CLAIM.check(KNOWN_BAD[name], QUICK, 0)
    assert finding.verdict is Verdict.FALSIFIED
    assert finding.worst > 1


@pytest.mark.parametrize("shrink", [0.99, 0.9])
def test_tight(shrink: float) -> None:
    assert CLAIM.check(replace(REFERENCE, shrink=shrink), QUICK, 3).verdict is Verdict.FALSIFIED


def test_sample_used_again_is_seen_by_too_few_exceedances() -> None:
    decisions = CLAIM.check(KNOWN_BAD["S reused as fresh"], QUICK, 1).data["decisions"]
    counts = [d["count"] for d in decisions[: len(families.FAMILIES)]]
    assert counts == [0, 0, 0]


def test_a_subject_that_raises_or_gives_nan_is_falsified() -> None:
    def raising(model: nn.Module, points: Tensor) -> Sensitivity:
        raise RuntimeError("broken")

    def nan(model: nn.Module, points: Tensor) -> Sensitivity:
        found = measure_sensitivity(model, points)
        entry = found["weight"]
        return replace(found, layers={"weight": replace(entry, values=torch.full_like(entry.values, torch.nan))})

    for wrong in (raising, nan):
        assert CLAIM.check(replace(REFERENCE, sensitivity=wrong), QUICK, 0).verdict is Verdict.FALSIFIED


@pytest.mark.parametrize("family", [*families.FAMILIES, families.DEAD], ids=lambda family: family.name)
def test_contributions_and_errors_are_the_oracles(family: families.Family) -> None:
    rng = np.random.default_rng(5)
    layer = family.layer(12, rng)
    x = family.points(4, layer, rng)
    torch.testing.assert_close(families.contributions(layer, x), oracle.contributions(layer, x).amax((1, 4)))
    dropped = families.one_of_each_block(layer, rng)
    weight = layer.weight.detach()[:, 0]
    assert bool(((dropped & (weight > 0)).sum(1) == 1).all())
    assert bool(((dropped & (weight < 0)).sum(1) == 1).all())
    pruned = layer.weight.detach().masked_fill(dropped[:, None], 0)
    expected = oracle.relative_errors(layer, x, pruned).amax((1, 4))
    torch.testing.assert_close(families.relative_errors(layer, x, dropped), expected)


def test_contributions_of_the_gamma_family_are_beta() -> None:
    rng = np.random.default_rng(2)
    layer = families.SMOOTH.layer(3, rng)
    g = families.contributions(layer, families.SMOOTH.points(4000, layer, rng)).numpy()
    first, second = families.beta_parameters(layer)
    for i, j in np.ndindex(first.shape):
        assert stats.kstest(g[:, i, j], stats.beta(first[i, j], second[i, j]).cdf).pvalue > 1e-6


def test_no_ties_where_rates_are_equalities() -> None:
    for family in families.FAMILIES:
        rng = np.random.default_rng(3)
        layer = family.layer(50, rng)
        g: Any = families.contributions(layer, family.points(40, layer, rng))
        assert float(g.max()) < 1
        assert bool((g.sort(0).values.diff(dim=0) > 0).all())
