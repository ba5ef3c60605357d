"""Calibration by hand and against a plain sum over bins with scikit-learn's curve."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.calibration import calibration_curve
from torch import Tensor

from sipp_bench.errors import OptionError
from sipp_bench.measures.calibration import calibration_error


def two_class(confidence: list[float]) -> Tensor:
    """Logits that give class 0 these probabilities."""
    p = torch.tensor(confidence, dtype=torch.float64)
    return torch.stack([p.log(), (1 - p).log()], 1)


def test_by_hand() -> None:
    logits = two_class([0.9, 0.9, 0.9, 0.9, 0.65, 0.65])
    labels = torch.tensor([0, 0, 0, 1, 0, 1])
    # |3/4 - .9| for 4 points, |1/2 - .65| for 2.
    assert calibration_error(logits, labels) == pytest.approx((4 * 0.15 + 2 * 0.15) / 6)
    # In one bin the means are over all: 4/6 right, confidence .8167.
    assert calibration_error(logits, labels, bins=1) == pytest.approx(abs(4 / 6 - (4 * 0.9 + 2 * 0.65) / 6))


def test_right_ends_belong_to_their_bins() -> None:
    # Softmax of equal logits is 1/2 exactly, the right end of the first of two bins; the other point is above it.
    logits, labels = torch.tensor([[0.0, 0.0], [0.4, 0.0]]), torch.tensor([1, 0])
    p = 1 / (1 + math.exp(-float(torch.tensor(0.4))))
    assert calibration_error(logits, labels, bins=2) == pytest.approx((0.5 + (1 - p)) / 2)


@given(st.integers(1, 80), st.integers(2, 6), st.integers(1, 20), st.integers(0, 99))
def test_against_scikit_learns_bins(n: int, classes: int, bins: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(n, classes, generator=generator)
    labels = torch.randint(classes, (n,), generator=generator)
    probabilities = logits.double().softmax(1).numpy()
    confidence, right = probabilities.max(1), probabilities.argmax(1) == labels.numpy()
    accuracies, confidences = calibration_curve(right, confidence, n_bins=bins, strategy="uniform")
    edges = np.linspace(0, 1, bins + 1)
    sizes, _ = np.histogram(confidence, edges)
    expected = (sizes[sizes > 0] / n * np.abs(accuracies - confidences)).sum()
    found = calibration_error(logits, labels, bins)
    assert found == pytest.approx(expected, abs=1e-12)
    assert found >= abs(right.mean() - confidence.mean()) - 1e-12, "bins can only add to one bin's error"


def test_overconfidence_is_seen() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4000, 3, generator=generator)
    labels = torch.multinomial(logits.softmax(1), 1, generator=generator).flatten()
    # Labels drawn from the network's own probabilities: its error is that of 15 bins' means of 4,000 draws.
    assert calibration_error(logits, labels) < 0.03
    assert calibration_error(4 * logits, labels) > 0.2


def test_certain_and_wrong_is_1_and_nan_is_nan() -> None:
    logits = torch.tensor([[1e4, 0.0]])
    assert calibration_error(logits, torch.tensor([1])) == 1
    assert calibration_error(logits, torch.tensor([0])) == 0
    assert math.isnan(calibration_error(logits * math.nan, torch.tensor([0])))
    with pytest.raises(OptionError, match="bins"):
        calibration_error(logits, torch.tensor([0]), bins=0)
