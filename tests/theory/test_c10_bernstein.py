"""Claim C10: how far one draw set can be off, and the hardest cases known."""

import json
import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from sampling_claims import SMALL, rejects, shrunk

from theory_checks.cases import hard_cases
from theory_checks.claims import QUICK, Effort, Verdict, claims
from theory_checks.evidence import drawn, statistics
from theory_checks.subjects.subject import REFERENCE

CLAIM = claims()["C10"]


@pytest.mark.statistical
@pytest.mark.parametrize(("seed", "effort"), [(0, QUICK), (1, SMALL)])
def test_the_reference_is_not_falsified(seed: int, effort: Effort) -> None:
    finding = CLAIM.check(REFERENCE, effort, seed)
    assert finding.verdict is Verdict.NOT_FALSIFIED, finding.detail
    assert {row["verdict"] for row in finding.data["cases"]} == {"not falsified", "useless", "cannot fail"}
    assert finding.detectable is not None
    assert finding.detectable < 0.22  # half the bound fails with 0.22 at delta = 0.1
    json.dumps(finding.data)


@pytest.mark.statistical
@pytest.mark.parametrize("name", CLAIM.rejects)
def test_known_bad_subjects_are_rejected(name: str) -> None:
    assert rejects(CLAIM, name)


@pytest.mark.statistical
@pytest.mark.parametrize(("factor", "false"), [(0.9, False), (0.8, True)])
def test_power_where_a_shrunk_bound_is_really_false(factor: float, false: bool) -> None:
    finding = shrunk(CLAIM, factor)
    assert (finding.verdict is Verdict.FALSIFIED) == false
    assert any(row["false"] for row in finding.data["exact"]) == false


@pytest.mark.identity
@pytest.mark.parametrize(("delta", "true", "false"), [(0.1, 0.68, 0.67), (0.01, 0.79, 0.78), (1e-4, 0.88, 0.87)])
def test_where_shrunk_bounds_become_false(delta: float, true: float, false: float) -> None:
    def at(factor: float) -> float:
        return hard_cases.hardest(lambda t, m, d: factor * REFERENCE.draw_epsilon(t, m, d), delta).ratio

    assert at(true) < 1 < at(false)
    assert at(0.9) < at(true)


@pytest.mark.statistical
def test_simulation_alone_rejects_a_halved_bound() -> None:
    finding = shrunk(CLAIM, 0.5)
    hardest = [row for row in finding.data["decisions"] if row["name"].startswith("hardest")]
    assert len(hardest) == 3
    assert all(row["p_value"] < 1e-9 for row in hardest)


@pytest.mark.statistical
def test_bounds_that_say_nothing_are_no_passes() -> None:
    assert shrunk(CLAIM, 1e4).verdict is Verdict.CANNOT_FAIL
    assert drawn.case("", 3.0, 5, 0.1, 2.0, 2.0)["verdict"] == "cannot fail"
    assert drawn.case("", 3.0, 5, 0.1, 1.0, 2.0)["verdict"] == "useless"
    assert drawn.case("", 1.2, 5, 0.1, 1.0, 1.0)["verdict"] == "cannot fail"
    assert drawn.case("", 3.0, 5, 0.1, 0.99, 2.0)["verdict"] == "not falsified"


@pytest.mark.identity
@pytest.mark.parametrize(("weights", "active", "rho"), [(3, 1, 1), (5, 2, 1), (4, 1, Fraction(1, 4))])
@pytest.mark.parametrize("draws", [1, 7, 40])
def test_failure_probabilities_against_sums_of_fractions(
    weights: int, active: int, rho: Fraction | int, draws: int
) -> None:
    q = Fraction(active, weights)
    for epsilon in (Fraction(1, 10), Fraction(1, 3), Fraction(1, 2), Fraction(9, 10), Fraction(2)):
        exact = sum(
            math.comb(draws, n) * q**n * (1 - q) ** (draws - n)
            for n in range(draws + 1)
            if abs(rho * (Fraction(n, draws) / q - 1)) > epsilon
        )
        found = hard_cases.violation_probability(draws, float(epsilon), weights, active, float(rho))
        assert found == pytest.approx(float(exact), rel=1e-9, abs=1e-15), epsilon


@pytest.mark.statistical
def test_draws_fail_as_often_as_the_family_says() -> None:
    # Two-sided at 1e-9: the simulation and the binomial sum speak of the same event.
    rng = np.random.default_rng(5)
    block, draws, epsilon, trials = hard_cases.windows(20, 1, rng), 300, 0.3, 3000
    s, _ = block.measured(REFERENCE)
    factors = hard_cases.draw_sets(REFERENCE, s, block.weight, draws, trials, rng)
    p = float(hard_cases.violation_probability(draws, epsilon, 20, 1))
    assert 0.1 < p < 0.5
    count = hard_cases.failures(factors, block.rows[3], epsilon)
    assert min(statistics.p_value(count, trials, p), statistics.p_value(trials - count, trials, 1 - p)) > 5e-10
    assert hard_cases.failures(np.full((2, 20), np.nan), block.rows[3], epsilon) == 2


@pytest.mark.statistical
def test_the_search_finds_the_hard_case() -> None:
    rng = np.random.default_rng(1)
    easy = hard_cases.linear(np.ones(30), rng.uniform(0.9, 1.1, (2, 30)), "easy")
    hard = hard_cases.windows(30, 1, rng)

    def bound(total: float, draws: Any, delta: float) -> Any:
        return REFERENCE.draw_epsilon(total, draws, delta) / 2

    found = hard_cases.search([easy, hard], bound, 0.05, 2, rng)
    assert [suspect.block for suspect in found] == [hard, hard]
    assert found[0].score > 1
    assert all(block.rows.sum(1) == pytest.approx(1) for block in hard_cases.random_blocks(8, rng))


@pytest.mark.identity
def test_independent_arithmetic_sees_a_bound_that_is_off_by_little() -> None:
    epsilon = REFERENCE.draw_epsilon(7.0, 200, 0.01)
    assert drawn.inverts(epsilon, 200, 7.0, 7.0, 0.01)
    assert not drawn.inverts(epsilon * (1 - 1e-12), 200, 7.0, 7.0, 0.01)
    assert not drawn.inverts(math.nan, 200, 7.0, 7.0, 0.01)
    assert drawn.root(200, 7.0, 7.0, 0.01) == pytest.approx(epsilon, rel=1e-14)
