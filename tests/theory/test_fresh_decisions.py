"""What verify decides about fresh points (C14, C16, C17), count by count, against exact laws in fractions."""

import math
from fractions import Fraction
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from theory_checks.claims import QUICK, Finding, Verdict
from theory_checks.on_network import fresh as network_fresh


def fresh_rates(n: int, counts: Tensor, fresh: int) -> Finding:
    """C14's decision for these numbers of exceedances, by weight."""
    at_one = SimpleNamespace(per_weight=float(counts.double().mean()) / fresh)
    audit = SimpleNamespace(exceedances=[at_one], expected=1 / (n + 1))
    look = SimpleNamespace(counts={"a": counts[:1], "b": counts[1:]}, audit=audit)
    context: Any = SimpleNamespace(look=look, points=torch.zeros(n), fresh=torch.zeros(fresh), effort=QUICK)
    return network_fresh.check_fresh_rates(context)


@pytest.mark.identity
@pytest.mark.parametrize(("n", "fresh"), [(150, 1400), (152, 5000), (40, 120)])
def test_one_weight_just_too_often_above_its_sensitivity(n: int, fresh: int) -> None:
    """With more points a smaller rate is seen, also where the level is below what 1 - cdf can say."""
    weights, chance, least = 1000, Fraction(1), 0
    while chance > Fraction(QUICK.level) / weights:
        chance *= Fraction(fresh - least, n + fresh - least)
        least += 1
    counts = torch.zeros(weights, dtype=torch.int64)
    counts[-1] = least
    assert fresh_rates(n, counts, fresh).verdict is Verdict.FALSIFIED
    counts[-1] = least - 1
    assert fresh_rates(n, counts, fresh).verdict is Verdict.NOT_FALSIFIED
    assert least / fresh < 0.6


@pytest.mark.identity
def test_points_too_few_to_show_anything() -> None:
    assert fresh_rates(150, torch.full((9,), 3), 3).verdict is Verdict.CANNOT_FAIL


@pytest.mark.identity
def test_coverage_just_too_seldom() -> None:
    """Of 200 test points the k-th of 200 calibration scores covers at least so many, but for the level: exactly."""
    half, alpha = 200, 0.05
    rank = math.ceil((half + 1) * (1 - Fraction("0.05")))
    whole = math.comb(2 * half, half)
    chance, most = Fraction(0), -1  # the largest number covered that falsifies
    while True:
        # The k-th calibration score comes after exactly `most + 1` test points.
        count = most + 1
        orders = math.comb(count + rank - 1, count) * math.comb(half - count + half - rank, half - count)
        chance += Fraction(orders, whole)
        if chance > Fraction(QUICK.level):
            break
        most = count
    context: Any = SimpleNamespace(effort=QUICK, alpha=alpha)
    indices = torch.arange(half)

    def decide(covered: int) -> Finding:
        return network_fresh._coverage("C17", context, indices, indices, covered, "", {}, None)

    assert decide(most).verdict is Verdict.FALSIFIED
    assert decide(most + 1).verdict is Verdict.NOT_FALSIFIED
    assert 0.7 < most / half < 0.85
    assert decide(most).interval is not None


@pytest.mark.identity
@pytest.mark.parametrize("count", [2, 9, 100])
def test_no_point_both_calibrates_and_tests(count: int) -> None:
    context: Any = SimpleNamespace(fresh=torch.zeros(count), seed=3)
    calibration, test = network_fresh._halves(context)
    assert sorted([*calibration.tolist(), *test.tolist()]) == list(range(count))
    assert len(calibration) == count // 2
    if count == 100:  # at random: data that is sorted by class must not be split by class
        assert 30 < calibration.double().mean() < 70
        assert sorted(calibration.tolist()) != list(range(50))


def split(seed: int) -> tuple[Any, Tensor, Tensor]:
    context: Any = SimpleNamespace(fresh=torch.zeros(100), seed=seed, alpha=0.05, effort=QUICK)
    calibration, test = network_fresh._halves(context)
    return context, calibration, test


@pytest.mark.identity
def test_split_conformal_counts_the_other_half() -> None:
    """Scores of the testing half twice as large as those that calibrate: none of them is covered."""
    context, calibration, test = split(0)
    scores = torch.zeros(100, 2)
    scores[calibration] = 1.0
    scores[test] = 2.0
    context.dense_outputs, context.pruned_outputs = torch.tensor([[0.0, 9.0]]).repeat(100, 1), None
    context.pruned_outputs = lambda keep: context.dense_outputs + scores
    cell: Any = SimpleNamespace(context=context, keep=0.5)
    finding = network_fresh.check_split_conformal(cell)
    assert finding.data["quantile"] == 1
    assert finding.violations == len(test)
    assert finding.verdict is Verdict.FALSIFIED


@pytest.mark.identity
def test_conformal_factor_counts_the_other_half() -> None:
    context, calibration, test = split(1)
    ratios = torch.zeros(100, dtype=torch.float64)
    ratios[calibration], ratios[test] = 1.5, 1.6
    context.look = SimpleNamespace(audit=SimpleNamespace(ratios=ratios))
    blocks = SimpleNamespace(
        concerned=torch.tensor([True]), drawn=torch.tensor([False]), lost=torch.tensor([0.1], dtype=torch.float64)
    )
    cell: Any = SimpleNamespace(context=context, keep=0.5, blocks=lambda: {"w": blocks})
    finding = network_fresh.check_conformal_factor(cell)
    assert finding.data["K_hat"] == 1.5
    assert finding.data["telling"] == 1
    assert finding.violations == len(test)
    assert finding.verdict is Verdict.FALSIFIED
