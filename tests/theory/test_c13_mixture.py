"""Claim C13: keep the largest sensitivities, draw from the rest or drop it."""

from fractions import Fraction

import numpy as np
import pytest
from sampling_claims import SMALL, rejects, shrunk

from theory_checks.cases import hard_cases
from theory_checks.claims import QUICK, Effort, Verdict, claims
from theory_checks.evidence import drawn
from theory_checks.subjects.subject import REFERENCE

CLAIM = claims()["C13"]


@pytest.mark.statistical
@pytest.mark.parametrize(("seed", "effort"), [(0, QUICK), (1, SMALL)])
def test_the_reference_is_not_falsified(seed: int, effort: Effort) -> None:
    finding = CLAIM.check(REFERENCE, effort, seed)
    assert finding.verdict is Verdict.NOT_FALSIFIED, finding.detail


@pytest.mark.statistical
@pytest.mark.parametrize("name", CLAIM.rejects)
def test_known_bad_subjects_are_rejected(name: str) -> None:
    assert rejects(CLAIM, name)


@pytest.mark.statistical
def test_simulation_alone_rejects_a_halved_bound() -> None:
    finding = shrunk(CLAIM, 0.5)
    hardest = [row for row in finding.data["decisions"] if row["name"].startswith("hardest")]
    assert len(hardest) == 2
    assert all(row["p_value"] < 1e-9 for row in hardest)


@pytest.mark.identity
@pytest.mark.parametrize(
    "total", [Fraction(1, 5), Fraction(1), Fraction(3, 2), Fraction(2), Fraction(9, 4), Fraction(40)]
)
def test_v_is_the_largest_variance_that_a_rest_can_have(total: Fraction) -> None:
    # T rho - rho^2 over rho in [0, min(1, T)], by a grid in fractions that has the maximum on it.
    top = min(Fraction(1), total)
    grid = [top * k / 360 for k in range(361)] + [min(total / 2, top)]
    largest = float(max(total * rho - rho**2 for rho in grid))
    assert drawn.mixture_variance(float(total)) == pytest.approx(largest, rel=1e-15)


@pytest.mark.identity
@pytest.mark.parametrize("kept", [0, 2])
def test_the_family_for_a_rest_is_what_it_says(kept: int) -> None:
    block = hard_cases.kept_and_windows(kept, 4, 2, 1.0 if kept == 0 else 0.5, np.random.default_rng(0))
    rho = 1.0 if kept == 0 else 0.5
    assert block.rows[:4, kept:].sum(1) == pytest.approx(rho)
    assert block.s[kept:] == pytest.approx(rho / 2)
    assert block.s[:kept] == pytest.approx(1)
    assert block.s[kept:].sum() == pytest.approx(rho * 4 / 2)
