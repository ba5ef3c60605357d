"""The audit of fresh points, the bound on differing predictions, and the numbers in their sentences."""

import itertools
import math
from dataclasses import replace

import pytest
import torch
from samples import build, linear, small_network
from scipy import stats
from torch import nn

import sipp_bench as sb
from sipp_bench.errors import ModelError, PointsError
from theory_checks.cases import oracle
from theory_checks.evidence import statistics
from theory_checks.evidence.wording import percent_up
from theory_checks.on_network.audit import audit, mean_interval
from theory_checks.on_network.disagreement import prediction_disagreement
from theory_checks.subjects.known_bad import KNOWN_BAD
from theory_checks.subjects.subject import REFERENCE

pytestmark = pytest.mark.statistical


def positive(*shape: int, seed: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_counts_are_the_oracles() -> None:
    layer = linear([[1.0, 2.0, -3.0, -0.5], [0.2, -1.0, 4.0, 1.0]], torch.float64)
    points, fresh = positive(6, 4, seed=0), positive(300, 4, seed=1)
    found = audit(layer, points, fresh)
    ratio = oracle.contributions(layer, fresh).amax((1, 4)) / oracle.sensitivities(layer, points)
    for exceedance in found.exceedances:
        above = ratio > exceedance.factor * (1 + 1e-9)
        assert exceedance.any_weight == int(above.any(2).any(1).sum())
        assert exceedance.by_layer == {"weight": exceedance.any_weight}
        assert exceedance.per_weight == pytest.approx(float(above.double().mean()))
        assert exceedance.at_most == statistics.upper_bound(exceedance.any_weight, 300)
        assert exceedance.at_most >= exceedance.supported_delta
    torch.testing.assert_close(found.ratios, ratio.amax((1, 2)))
    assert found.exceedances[0].any_weight > found.exceedances[1].any_weight > 0
    assert found.k_hat[0.1] == pytest.approx(sb.bounds.conformal_quantile(ratio.amax((1, 2)), 0.1))
    assert found.expected == 1 / 7


def test_weights_of_sensitivity_zero_make_k_infinite() -> None:
    layer = linear([[1.0, 1.0, 1.0]])
    points, fresh = positive(20, 3, seed=2).float(), positive(40, 3, seed=3).float()
    points[:, 0] = 0
    fresh[10:, 0] = 0
    found = audit(layer, points, fresh)
    assert int(found.ratios.isinf().sum()) == 10
    assert found.inactive == pytest.approx(1 / 3)
    assert found.exceedances[-1].never == pytest.approx(10 / 120)
    assert found.k_hat[0.1] == math.inf
    assert "At 10 of 40 fresh points" in found.statement()
    assert "K-hat = infinite" in found.statement()


def test_clean_points_support_no_smaller_delta_than_they_can() -> None:
    layer = linear([[1.0, 1.0]])
    spread = torch.tensor([[0.0, 1.0], [1.0, 0.0]])  # both sensitivities are 1, which nothing exceeds
    found = audit(layer, spread, positive(100, 2, seed=4).float())
    first = found.exceedances[0]
    assert first.any_weight == 0
    assert first.at_most == first.supported_delta == pytest.approx(1 - 0.05**0.01)
    assert found.holds_for == 1
    assert "can't support a failure rate below 3.0 %" in str(first)


def test_sample_used_again_as_fresh_is_seen() -> None:
    layer, points = linear([[1.0, 2.0, 0.5]]), positive(30, 3, seed=5).float()
    with pytest.raises(PointsError, match="in S as well"):
        audit(layer, points, points[:10])
    mixed = torch.cat([points[:5], positive(5, 3, seed=6).float()])
    assert audit(layer, points, mixed).shared == 5
    assert "Warning: 5" in audit(layer, points, mixed).statement()
    with pytest.raises(PointsError, match="at least one"):
        audit(layer, points, points[:0])


def test_a_whole_network_and_another_subject() -> None:
    network = build(small_network)
    draw = torch.Generator().manual_seed(0)
    points, fresh = torch.randn(30, 2, 6, 6, generator=draw), torch.randn(25, 2, 6, 6, generator=draw)
    honest = audit(network, points, fresh)
    assert set(honest.exceedances[0].by_layer) == {"0.weight", "2.weight", "6.weight", "8.weight"}
    for exceedance in honest.exceedances:
        assert max(exceedance.by_layer.values()) <= exceedance.any_weight <= 25
        assert exceedance.any_interval.low <= exceedance.any_weight / 25 <= exceedance.any_interval.high
        assert exceedance.per_weight_interval.low <= exceedance.per_weight <= exceedance.per_weight_interval.high
    short = replace(REFERENCE, conformal=KNOWN_BAD["conformal rank too low"].conformal)
    assert audit(network, points, fresh, subject=short).k_hat[0.1] < honest.k_hat[0.1]


@pytest.mark.parametrize(("mean", "count"), [(0.0, 50), (0.01, 300), (0.5, 20), (1.0, 7)])
def test_mean_interval_is_valid_and_wider_than_clopper_pearson(mean: float, count: int) -> None:
    wide = mean_interval(mean, count)
    exact = statistics.clopper_pearson(round(mean * count), count)
    ordered = [0, wide.low, exact.low, mean, exact.high, wide.high, 1]
    assert all(a <= b * (1 + 1e-9) for a, b in itertools.pairwise(ordered))
    if 0 < mean < 1:
        for end in (wide.low, wide.high):
            divergence = mean * math.log(mean / end) + (1 - mean) * math.log((1 - mean) / (1 - end))
            assert divergence * count == pytest.approx(math.log(2 / 0.05), rel=1e-6)


def test_prediction_disagreement() -> None:
    dense, other = linear([[1.0, 0.0], [0.0, 1.0]]), linear([[1.0, 0.0], [0.0, 0.5]])
    dense.train()
    fresh = torch.tensor([[1.0, 0.9], [1.0, 1.5], [1.0, 3.0], [0.0, 1.0]]).repeat(250, 1)
    found = prediction_disagreement(dense, other, fresh, batch_size=64)
    assert found.count == 250
    assert dense.training
    assert found.at_most == pytest.approx(float(stats.beta.ppf(0.95, 251, 750)))
    few = prediction_disagreement(dense, other, fresh[[0, 2, 3]].repeat(300, 1))
    assert few.count == 0
    assert few.at_most == few.supported
    assert few.statement(0.1) == "at keep 0.1: at most 0.34 % of inputs, 95 % confidence (0 of 900 fresh points differ)"


def test_predictions_that_cannot_be_compared() -> None:
    broken = linear([[1.0], [torch.nan]])
    x = torch.ones(5, 1)
    assert prediction_disagreement(broken, broken, x).count == 5
    with pytest.raises(ModelError, match="logits"):
        prediction_disagreement(nn.Linear(1, 1), nn.Linear(1, 1), x)
    with pytest.raises(PointsError, match="at least one"):
        prediction_disagreement(broken, broken, x[:0])


@pytest.mark.parametrize(
    ("rate", "text"),
    [(0.01231, "1.3 %"), (0.013, "1.3 %"), (0.0130001, "1.4 %"), (1.0, "100 %"), (0.9961, "100 %"), (0.385, "39 %"),
     (0.0999, "10 %"), (0.000601, "0.061 %"), (0.0, "0 %"), (1e-16, "0.00000000000001 %")],
)  # fmt: skip
def test_upper_bounds_are_rounded_up(rate: float, text: str) -> None:
    shown = percent_up(rate)
    assert float(shown[:-2]) / 100 >= rate * (1 - 1e-12)
    assert float(shown[:-2]) == pytest.approx(float(text[:-2]))
