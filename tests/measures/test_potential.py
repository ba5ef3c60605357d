"""Prune potential by hand, and against its definition spelled out."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sipp_bench.errors import OptionError
from sipp_bench.measures.potential import PrunePotential, prune_potential


def test_first_failure_and_last_pass_differ_where_the_error_comes_back() -> None:
    curve = [(0.05, 0.3), (1.0, 0.05), (0.5, 0.055), (0.25, 0.07), (0.125, 0.06)]
    found = prune_potential(curve, dense_error=0.05, margin=0.01)
    assert found == PrunePotential(first_failure=0.5, last_pass=0.875)
    assert prune_potential(curve, 0.05, 0.02) == PrunePotential(0.875, 0.875)
    assert prune_potential(curve, 0.05, 0) == PrunePotential(0.0, 0.0)


def test_none_where_no_ratio_passes() -> None:
    assert prune_potential([(0.5, 0.2), (0.1, 0.9)], 0.05, 0.01) == PrunePotential(None, None)
    assert prune_potential([], 0.05, 0.01) == PrunePotential(None, None)
    # The smallest ratio fails: nothing is up to the first failure.
    assert prune_potential([(0.5, 0.2), (0.25, 0.05)], 0.05, 0.01) == PrunePotential(None, 0.75)


def test_the_margin_itself_is_within() -> None:
    # 0.065 - 0.06 is above 0.005 in floating point.
    assert 0.065 - 0.06 > 0.005
    assert prune_potential([(0.5, 0.065)], 0.06, 0.005).last_pass == 0.5
    assert prune_potential([(0.5, 0.0651)], 0.06, 0.005).last_pass is None


@given(st.dictionaries(st.integers(0, 20), st.integers(0, 20)), st.integers(0, 20), st.integers(0, 20))
def test_the_definitions(curve: dict[int, int], dense: int, margin: int) -> None:
    found = prune_potential([(k / 20, e / 20) for k, e in curve.items()], dense / 20, margin / 20)
    passing = [k for k, e in curve.items() if e - dense <= margin]
    unbroken = [k for k in passing if all(other in passing for other in curve if other >= k)]
    expected = [1 - min(keeps) / 20 if keeps else None for keeps in (unbroken, passing)]
    assert [found.first_failure, found.last_pass] == expected


@pytest.mark.parametrize(
    ("curve", "dense", "margin"),
    [
        ([(0.5, 0.1), (0.5, 0.2)], 0.1, 0.1),
        ([(50, 0.1)], 0.1, 0.1),
        ([(0.5, 10)], 0.1, 0.1),
        ([(0.5, float("nan"))], 0.1, 0.1),
        ([], 10, 0.1),
        ([], 0.1, -1),
    ],
)
def test_percentages_repeated_keeps_and_negative_margins_are_refused(
    curve: list[tuple[float, float]], dense: float, margin: float
) -> None:
    with pytest.raises(OptionError):
        prune_potential(curve, dense, margin)
