"""Claim C16: coverage of the conformal factor, and what follows on covered points."""

from dataclasses import replace

import pytest

from theory_checks.claims.c16_conformal_k import CLAIM, COVERAGE
from theory_checks.evidence.finding import QUICK, Verdict
from theory_checks.subjects.known_bad import KNOWN_BAD
from theory_checks.subjects.subject import REFERENCE

pytestmark = pytest.mark.statistical


@pytest.mark.parametrize("seed", range(3))
def test_the_library_is_not_falsified(seed: int) -> None:
    finding = CLAIM.check(REFERENCE, QUICK, seed)
    assert finding.verdict is Verdict.NOT_FALSIFIED, finding.detail
    assert 0 < finding.worst <= 1
    assert finding.data["infinite"]["inputs that are often 0"] > 0, "no case with s = 0 < g was met"


@pytest.mark.parametrize("name", CLAIM.rejects)
def test_known_bad_subjects_are_rejected(name: str) -> None:
    assert CLAIM.check(KNOWN_BAD[name], QUICK, 0).verdict is Verdict.FALSIFIED


@pytest.mark.parametrize("shrink", [0.99, 0.9, 0.5])
def test_tight(shrink: float) -> None:
    assert CLAIM.check(replace(REFERENCE, shrink=shrink), QUICK, 1).verdict is Verdict.FALSIFIED


def test_wrong_sensitivities_do_not_break_it() -> None:
    """K-hat makes up for them: the claim holds for any s chosen before the calibration points."""
    finding = CLAIM.check(KNOWN_BAD["sensitivities halved"], QUICK, 0)
    assert finding.verdict is Verdict.NOT_FALSIFIED
    assert finding.data["decisions"][0]["claimed"] == COVERAGE
