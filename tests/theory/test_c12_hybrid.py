"""Claim C12: in each block the better of dropping and drawing."""

import dataclasses
from typing import Any

import pytest
from sampling_claims import SMALL, rejects
from torch import Tensor, nn

import sipp_bench
from theory_checks.claims import QUICK, Effort, Verdict, claims
from theory_checks.subjects.subject import REFERENCE

CLAIM = claims()["C12"]
pytestmark = pytest.mark.statistical


@pytest.mark.parametrize(("seed", "effort"), [(0, QUICK), (1, SMALL)])
def test_the_reference_is_not_falsified(seed: int, effort: Effort) -> None:
    finding = CLAIM.check(REFERENCE, effort, seed)
    assert finding.verdict is Verdict.NOT_FALSIFIED, finding.detail
    assert min(finding.data["branches"].values()) > 0


@pytest.mark.parametrize("name", CLAIM.rejects)
def test_known_bad_subjects_are_rejected(name: str) -> None:
    assert rejects(CLAIM, name)


@pytest.mark.parametrize("method", ["sipp-det", "sipp-rand"])
def test_one_branch_for_all_blocks_is_no_hybrid(method: str) -> None:
    def fit(model: nn.Module, points: Tensor, **options: Any) -> Any:
        del options["method"]
        return sipp_bench.fit(model, points, method=method, **({} if method == "sipp-det" else options))

    finding = CLAIM.check(dataclasses.replace(REFERENCE, fit=fit), SMALL, 0)
    assert finding.verdict is Verdict.FALSIFIED
