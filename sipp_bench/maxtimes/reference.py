"""The max-times product as its definition says it: all products at once, for small inputs and as a test oracle."""

import torch
from torch import Tensor

from sipp_bench.network.blocks import reciprocals
from sipp_bench.network.patches import Windows


def unavailable(device: torch.device, dtype: torch.dtype) -> str | None:
    """Always there."""
    return None


def max_product(windows: Windows, z: Tensor, positive: Tensor, out: Tensor) -> None:
    """See `sipp_bench.maxtimes`. Any device and dtype. Memory: groups * P * M * n numbers."""
    a, r = windows.unfold(), reciprocals(z)
    plus, minus = r.chunk(2, dim=2)
    chosen = torch.where(positive[:, None], plus[..., None], minus[..., None])
    torch.maximum(out, (a[:, :, None, :] * chosen).amax(1), out=out)
