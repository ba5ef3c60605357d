"""Forward error bounds: how far rounding alone can move what the identities compare.

Everything that is summed here is non-negative, so that a sum of n products computed in any order is within gamma_n
relative of the exact one (Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed., lemma 3.1 and section 3.1).
"""

import torch


def unit(dtype: torch.dtype = torch.float64) -> float:
    """u, half the distance from 1 to the next number."""
    return torch.finfo(dtype).eps / 2


def gamma(n: int, dtype: torch.dtype = torch.float64) -> float:
    """gamma_n = n u / (1 - n u): n roundings in a row are within this, relatively."""
    return n * unit(dtype) / (1 - n * unit(dtype))


def sensitivity_rounding(n: int, dtype: torch.dtype) -> float:
    """Relative distance of a sensitivity over n weights, computed in `dtype`, from the float64 oracle's.

    Each: n for Z, and one each for 1 / Z, two products and storing.
    """
    return gamma(n + 4, dtype) + gamma(n + 4)


def sensitivity_underflow(dtype: torch.dtype) -> float:
    """Absolute rounding of a sensitivity: below the smallest normal number a product may lose all its digits.

    |w| < 2 after scaling, so that a lost a / Z of at most that number loses at most twice as much in s; the result
    and the oracle's own may be flushed as well.
    """
    return 4 * torch.finfo(dtype).tiny


def error_rounding(n: int) -> float:
    """Absolute rounding of a relative error |Zhat - Z| / Z <= 1 in float64: both sums, the difference, the quotient."""
    return 2 * gamma(n + 2)
