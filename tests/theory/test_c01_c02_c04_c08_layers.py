"""Claims C1, C2, C4 and C8 as properties of whatever layers and networks Hypothesis comes up with."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings, target
from hypothesis import strategies as st
from theory.identities import PROPERTY, assert_holds

from sipp_bench.compression.rounding import error_rounding, sensitivity_rounding, sensitivity_underflow
from theory_checks.cases import oracle
from theory_checks.cases.strategies import KINDS, LayerCase, NetworkCase, layer_cases, network_cases
from theory_checks.claims import (
    c01_sensitivity_laws,
    c02_deterministic_error,
    c04_recombination,
    c08_attainment,
)
from theory_checks.claims.c02_deterministic_error import block_signs, drop, drop_epsilons
from theory_checks.subjects.subject import REFERENCE

pytestmark = pytest.mark.identity

FEWER = settings(PROPERTY, max_examples=10)


@pytest.mark.parametrize("kind", KINDS)
def test_sensitivity_laws(kind: str) -> None:
    @FEWER
    @given(layer_cases(kind))
    def laws(case: LayerCase) -> None:
        comparisons = list(c01_sensitivity_laws.CLAIM.compare(REFERENCE, case))
        assert_holds(comparisons, case)
        # Rounding against its bound: the equalities hold with nothing to spare only if this comes near 1.
        target(next(c.worst for c in comparisons if c.law == "equals the oracle"))

    laws()


@FEWER
@given(network_cases())
def test_sensitivities_and_errors_in_whole_networks(case: NetworkCase) -> None:
    assert_holds(list(c01_sensitivity_laws.CLAIM.compare(REFERENCE, case)), case)
    assert_holds(list(c02_deterministic_error.CLAIM.compare(REFERENCE, case)), case)


@PROPERTY
@given(layer_cases())
def test_deterministic_error_recombined_and_attained(case: LayerCase) -> None:
    for claim in (c02_deterministic_error.CLAIM, c04_recombination.CLAIM, c08_attainment.CLAIM):
        assert_holds(list(claim.compare(REFERENCE, case)), case)


@settings(PROPERTY, max_examples=60)
@given(layer_cases(), st.data())
def test_no_dropped_set_exceeds_its_bound(case: LayerCase, data: st.DataObject) -> None:
    # Hypothesis chooses the block and the set itself, and climbs towards the bound.
    exact = case.in_float64()
    rows, n = exact.layer.weight.flatten(1).shape
    row = data.draw(st.integers(0, rows - 1))
    chosen = data.draw(st.lists(st.booleans(), min_size=n, max_size=n))
    dropped = torch.zeros(rows, n, dtype=torch.bool)
    dropped[row] = torch.tensor(chosen)
    s = REFERENCE.sensitivity(case.layer, case.points)["weight"].values.flatten(1).double()
    r = oracle.relative_errors(exact.layer, exact.points, drop(exact.layer, dropped)).amax((0, 1, 4))[row]
    epsilon = drop_epsilons(REFERENCE, exact.layer, s, dropped)[row]
    dtype = case.layer.weight.dtype
    slack = epsilon * sensitivity_rounding(n, dtype) + error_rounding(n) + n * sensitivity_underflow(dtype)
    assert bool((r <= epsilon + slack).all())
    gone = torch.where(dropped & block_signs(exact.layer), s, 0.0)[:, row]
    assert bool((gone.amax(1) <= r + slack).all())
    # A single weight attains it: sets of several are what there is to climb.
    several = (gone > 0).sum(1) > 1
    target(float((r / (epsilon + slack))[several].max()) if bool(several.any()) else 0.0)


def test_hard_cases_attain_the_bound() -> None:
    # One point: s = g, and every set attains its bound, not only single weights.
    rng = np.random.default_rng(5)
    layer = torch.nn.Linear(6, 3, dtype=torch.float64)
    x = torch.from_numpy(rng.standard_normal((1, 6))).abs()
    s = REFERENCE.sensitivity(layer, x)["weight"].values
    for _ in range(10):
        dropped = torch.from_numpy(rng.random((3, 6)) < 0.5)
        r = oracle.relative_errors(layer, x, drop(layer, dropped)).amax((0, 1, 4))
        epsilon = drop_epsilons(REFERENCE, layer, s, dropped)
        assert bool(((r - epsilon).abs() <= error_rounding(6) + epsilon * sensitivity_rounding(6, s.dtype)).all())
