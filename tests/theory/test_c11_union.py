"""Claim C11: the bounds of many blocks and points, all at once."""

import pytest
from sampling_claims import SMALL, rejects, shrunk

from theory_checks.claims import QUICK, Effort, Verdict, claims
from theory_checks.subjects.known_bad import KNOWN_BAD
from theory_checks.subjects.subject import REFERENCE

CLAIM = claims()["C11"]
pytestmark = pytest.mark.statistical


@pytest.mark.parametrize(("seed", "effort"), [(0, QUICK), (1, SMALL)])
def test_the_reference_is_not_falsified(seed: int, effort: Effort) -> None:
    finding = CLAIM.check(REFERENCE, effort, seed)
    assert finding.verdict is Verdict.NOT_FALSIFIED, finding.detail
    assert finding.data["events"] == 500


@pytest.mark.parametrize("name", CLAIM.rejects)
def test_known_bad_subjects_are_rejected(name: str) -> None:
    assert rejects(CLAIM, name)


def test_the_rate_alone_shows_that_delta_is_not_split() -> None:
    finding = CLAIM.check(KNOWN_BAD["delta not split"], SMALL, 2)
    (decision,) = finding.data["decisions"]
    assert decision["p_value"] < 1e-9
    assert decision["low"] > decision["claimed"]


def test_bounds_that_say_nothing_are_no_passes() -> None:
    assert shrunk(CLAIM, 1e3).verdict is Verdict.CANNOT_FAIL
