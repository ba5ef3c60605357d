"""Whether a network is right as often as it says."""

import torch
from torch import Tensor

from sipp_bench.errors import OptionError
from sipp_bench.measures.predictions import check


def calibration_error(logits: Tensor, labels: Tensor, bins: int = 15) -> float:
    """Expected calibration error, from 0 to 1: sum_m |B_m| / n * |accuracy(B_m) - confidence(B_m)|.

    B_m: the points whose confidence, the largest softmax probability, lies in ((m - 1) / bins, m / bins]; accuracy and
    confidence of a bin are its means. Guo et al. 2017, "On calibration of modern neural networks" (arXiv:1706.04599),
    with 15 bins. logits: (n, classes). NaN where a logit is NaN.
    """
    check(logits, labels)
    if bins < 1:
        raise OptionError(f"bins is at least 1, not {bins}.")
    confidence, predicted = logits.double().softmax(1).max(1)
    # Right ends belong to their bins, as bucketize has it.
    bin_of = torch.bucketize(confidence, torch.linspace(0, 1, bins + 1, dtype=torch.float64)[1:-1])
    excess = (predicted == labels).double() - confidence
    return float(torch.zeros(bins, dtype=torch.float64).index_add_(0, bin_of, excess).abs().sum()) / len(labels)
