"""Every identity claim: the library holds, known-bad subjects are rejected by their numbers, a crash is no pass."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from theory.identities import FEW, first_violation

from theory_checks.claims import (
    c01_sensitivity_laws,
    c02_deterministic_error,
    c03_top_m,
    c04_recombination,
    c05_allocation,
    c06_inversions,
    c08_attainment,
)
from theory_checks.evidence.finding import QUICK, Kind, Verdict
from theory_checks.evidence.identity import Comparison, IdentityClaim, close
from theory_checks.subjects.known_bad import KNOWN_BAD
from theory_checks.subjects.subject import REFERENCE

pytestmark = pytest.mark.identity

CLAIMS: dict[str, IdentityClaim[Any]] = {
    module.CLAIM.number: module.CLAIM
    for module in (
        c01_sensitivity_laws, c02_deterministic_error, c03_top_m, c04_recombination, c05_allocation, c06_inversions,
        c08_attainment,
    )
}  # fmt: skip
REJECTED = [(number, name) for number, claim in CLAIMS.items() for name in claim.rejects]


@pytest.mark.parametrize("number", CLAIMS)
def test_the_library_holds(number: str) -> None:
    finding = CLAIMS[number].check(REFERENCE, QUICK, 1)
    assert finding.verdict is Verdict.HOLDS, finding.detail
    assert finding.trials >= QUICK.cases
    assert finding.violations == 0
    assert 0.99 < finding.worst <= 1, "no case came near its bound"
    assert CLAIMS[number].kind is Kind.IDENTITY


@pytest.mark.parametrize(("number", "name"), REJECTED)
def test_known_bad_subjects_are_rejected(number: str, name: str) -> None:
    assert first_violation(CLAIMS[number], KNOWN_BAD[name]) is not None


@pytest.mark.parametrize("shrink", [0.99, 0.9])
@pytest.mark.parametrize("number", ["C2", "C3", "C4", "C8"])
def test_tight_claims_reject_a_bound_shrunk_a_little(number: str, shrink: float) -> None:
    assert first_violation(CLAIMS[number], replace(REFERENCE, shrink=shrink), 7) is not None


@pytest.mark.parametrize("name", ["stride ignored", "sensitivities of 1"])
def test_what_claim_2_cannot_see(name: str) -> None:
    # Sensitivities that are too large keep every bound true: only the two-sided claims C1 and C8 reject them.
    assert CLAIMS["C2"].check(KNOWN_BAD[name], FEW, 0).verdict is Verdict.HOLDS


@pytest.mark.parametrize(
    ("number", "pieces"),
    [
        ("C1", {"sensitivity": lambda model, points: 1 / 0}),
        ("C2", {"drop_epsilon": lambda s: float("nan")}),
        ("C3", {"fit": lambda *given, **options: None}),
        ("C4", {"recombine": lambda eps, plus, minus: plus * torch.nan}),
        ("C5", {"allocate": lambda totals, caps, budget, **options: np.full(len(caps), np.nan)}),
        ("C6", {"draw_epsilon": lambda total, draws, delta: float("nan")}),
        ("C8", {"drop_epsilon": lambda s: None}),
    ],
)
def test_raising_or_nan_is_a_violation(number: str, pieces: dict[str, Any]) -> None:
    finding = CLAIMS[number].check(replace(REFERENCE, **pieces), FEW, 0)
    assert finding.verdict is Verdict.FALSIFIED
    assert finding.violations > 0
    assert finding.worst > 1
    assert finding.detail


def test_a_finding_is_determined_by_its_seed() -> None:
    claim, bad = CLAIMS["C8"], KNOWN_BAD["mean over points"]
    one, again, other = (claim.check(bad, FEW, seed) for seed in (3, 3, 4))
    assert one == again
    assert one != other


def test_comparisons_by_hand() -> None:
    assert Comparison("", [0.5, 1.0], 1.0).holds
    assert Comparison("", [0.5, 1.0], 1.0).worst == 1
    assert Comparison("", 1.05, 1.0, 0.1).worst == pytest.approx(1.05 / 1.1)
    assert Comparison("", 3.0, 1.0, 0.5).worst == 2
    assert not Comparison("", 3.0, 1.0, 0.5).holds
    assert Comparison("", 0.0, 0.0).worst == 0
    assert Comparison("", torch.zeros(0), 1.0).holds
    for impossible in (Comparison("", float("nan"), 1.0), Comparison("", 1.0, float("nan")), Comparison("", 1.0, 0.0)):
        assert not impossible.holds
        assert impossible.worst == float("inf")
    assert close("", 2.0, 2.5, 0.5).holds
    assert not close("", 2.0, 2.6, 0.5).holds
