"""The max-times product as its definition says it: all products at once, for small inputs and as a test oracle."""

import torch
from torch import Tensor


def max_product(a: Tensor, r_plus: Tensor, r_minus: Tensor, positive: Tensor, out: Tensor) -> None:
    """See `sipp_bench.maxtimes`. Memory: groups * P * M * n numbers."""
    r = torch.where(positive[:, None], r_plus[..., None], r_minus[..., None])
    torch.maximum(out, (a[:, :, None, :] * r).amax(1), out=out)
