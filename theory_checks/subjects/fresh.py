"""What is said of fresh points, wrong on purpose: pieces for `known_bad`, beside those of its own."""

import math
from typing import Any

import numpy as np

from sipp_bench import bounds


def _numbers(scores: Any) -> "np.typing.NDArray[np.float64]":
    """Scores with NaN as infinity, sorted."""
    values = np.asarray(list(scores), dtype=np.float64)
    return np.sort(np.where(np.isnan(values), np.inf, values))


def _rank_too_low(scores: Any, alpha: float) -> float:
    values = _numbers(scores)
    return float(values[max(math.ceil(len(values) * (1 - alpha)) - 2, 0)])


def _rank_in_floats(scores: Any, alpha: float) -> float:
    values = np.append(_numbers(scores), np.inf)
    return float(values[math.ceil(len(values) * (1 - alpha)) - 1])


def _largest_beyond(scores: Any, alpha: float) -> float:
    """Rank k > n taken for n: a finite promise that these scores can't support."""
    return float(min(bounds.conformal_quantile(scores, alpha), _numbers(scores)[-1]))


def _interpolated(scores: Any, alpha: float) -> float:
    values = _numbers(scores)
    place = (len(values) - 1) * (1 - alpha)  # as numpy.quantile does, which has no answer among infinities
    low, high = values[math.floor(place)], values[math.ceil(place)]
    return float(low + (high - low) * (place % 1) if np.isfinite(high) else high)


def _nan_left_out(scores: Any, alpha: float) -> float:
    values = np.asarray(list(scores), dtype=np.float64)
    return float(bounds.conformal_quantile(values[~np.isnan(values)], alpha))


FRESH_POINTS: dict[str, dict[str, Any]] = {
    "S reused as fresh": {"fresh": lambda sample, fresh: sample},
    "conformal rank too low": {"conformal": _rank_too_low},
    "conformal rank in floats": {"conformal": _rank_in_floats},
    "largest score where none is large enough": {"conformal": _largest_beyond},
    "interpolated quantile": {"conformal": _interpolated},
    "NaN scores left out": {"conformal": _nan_left_out},
    "Wilks for one point more": {"wilks": lambda n, delta: bounds.wilks_rate(n + 1, delta)},
    "Wilks with the confidence for delta": {"wilks": lambda n, delta: bounds.wilks_rate(n, 1 - delta)},
}
