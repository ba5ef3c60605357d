"""Power curves and the matrix of claims against known-bad subjects."""

import itertools

import pytest
from sampling_claims import SMALL

from theory_checks.claims import Verdict, claims
from theory_checks.published import power
from theory_checks.subjects.known_bad import KNOWN_BAD

pytestmark = pytest.mark.statistical


def test_power_curve() -> None:
    rows = power.power_curve(claims()["C13"], (0.99, 0.5), repeats=2, effort=SMALL, seed=1)
    assert [(row.claim, row.shrink, row.rejected, row.repeats) for row in rows] == [
        ("C13", 0.99, 0, 2),
        ("C13", 0.5, 2, 2),
    ]
    assert rows[0].interval.low == 0
    assert rows[1].interval.high == 1


def test_detection_matrix_is_what_the_checks_say() -> None:
    names = ["delta not split", "NaN scores left out"]
    rows = power.detection_matrix(SMALL, repeats=1, seed=2, numbers=["C11", "C12"], known_bads=names)
    assert {(row.claim, row.known_bad) for row in rows} == set(itertools.product(("C11", "C12"), names))
    (seed,) = power.independent_seeds(1, 2)
    for row in rows:
        # Also what the matrix did not run, since the claim does not read the piece that is wrong.
        verdict = claims()[row.claim].check(KNOWN_BAD[row.known_bad], SMALL, seed).verdict
        assert row.rejected == (verdict is Verdict.FALSIFIED), row
        assert row.required == (row.known_bad in claims()[row.claim].rejects)
    assert power.undetected([row for row in rows if row.claim == "C11" and row.known_bad == "delta not split"]) == []
    assert "C12 rejected nothing every time" in power.undetected(rows)
    assert "no claim rejected 'NaN scores left out' every time" in power.undetected(rows)


def test_missing_detections_are_named() -> None:
    row = power.DetectionRow("C9", "no reweighting", 1, 2, required=True)
    assert power.undetected([row]) == [
        "C9 rejected 'no reweighting' 1 of 2 times",
        "no claim rejected 'no reweighting' every time",
        "C9 rejected nothing every time",
    ]


def test_processes_do_not_change_the_matrix() -> None:
    given = {"effort": SMALL, "repeats": 1, "seed": 3, "numbers": ["C12"], "known_bads": ["bound halved"]}
    assert power.detection_matrix(**given, processes=2) == power.detection_matrix(**given)


def test_seeds_are_different() -> None:
    seeds = power.independent_seeds(1000, 0)
    assert len(set(seeds)) == 1000
    assert seeds[:10] == power.independent_seeds(10, 0)
    assert not set(seeds) & set(power.independent_seeds(1000, 1))


def test_pieces_read() -> None:
    assert power.pieces_read(claims()["C12"], SMALL, 0) == {"fit", "shrink"}
