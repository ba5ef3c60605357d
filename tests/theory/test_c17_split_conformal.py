"""Claim C17: coverage against its exact laws."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from theory_checks.claims.c17_split_conformal import CLAIM
from theory_checks.evidence.finding import QUICK, Verdict
from theory_checks.subjects.known_bad import KNOWN_BAD
from theory_checks.subjects.subject import REFERENCE

pytestmark = pytest.mark.statistical


@pytest.mark.parametrize("seed", range(3))
def test_the_library_is_not_falsified(seed: int) -> None:
    finding = CLAIM.check(REFERENCE, QUICK, seed)
    assert finding.verdict is Verdict.NOT_FALSIFIED, finding.detail
    assert 0 < finding.worst <= 1


@pytest.mark.parametrize("name", CLAIM.rejects)
def test_known_bad_subjects_are_rejected(name: str) -> None:
    assert CLAIM.check(KNOWN_BAD[name], QUICK, 0).verdict is Verdict.FALSIFIED


@pytest.mark.parametrize("shrink", [0.99, 0.9, 0.5])
def test_tight(shrink: float) -> None:
    assert CLAIM.check(replace(REFERENCE, shrink=shrink), QUICK, 1).verdict is Verdict.FALSIFIED


def test_rates_alone_reject_a_rank_too_low() -> None:
    """Not only the comparison of quantiles: the coverage itself."""
    finding = CLAIM.check(KNOWN_BAD["conformal rank too low"], QUICK, 2)
    assert finding.worst > 1
    assert min(finding.data["p_values"].values()) < 1e-20


def test_a_rank_too_high_is_not_exact() -> None:
    def careful(scores: Any, alpha: float) -> float:
        ordered = np.append(np.sort(np.asarray(scores)), np.inf)
        return float(ordered[min(int(np.searchsorted(ordered, REFERENCE.conformal(scores, alpha))) + 1, len(scores))])

    assert CLAIM.check(replace(REFERENCE, conformal=careful), QUICK, 0).verdict is Verdict.FALSIFIED
