"""The max-times product with torch operations, in tiles that stay in the cache; any device, any float dtype."""

import torch
from torch import Tensor

from sipp_bench.network.blocks import reciprocals
from sipp_bench.network.patches import Windows

# Numbers in one accumulator. On a CPU the accumulator and its buffer must fit the second-level cache, and be large
# enough to hide the cost of a call; on a GPU only the latter counts.
_TILE = {"cpu": 1 << 17, "cuda": 1 << 24}


def unavailable(device: torch.device, dtype: torch.dtype) -> str | None:
    """Always there."""
    return None


def max_product(windows: Windows, z: Tensor, positive: Tensor, out: Tensor) -> None:
    """See `sipp_bench.maxtimes`. Extra memory: the unfolded patches, 1 / z and three tiles.

    Both signs are computed and blended once at the end: a `where` in the inner loop costs more than it saves. Patches
    are folded side by side into `depth` accumulators, so that a small weight fills a tile too.
    """
    a, r = windows.unfold(), reciprocals(z)
    r_plus, r_minus = r.chunk(2, dim=2)
    groups, num_patches, n = a.shape
    tile = _TILE.get(a.device.type, 1 << 20)
    rows = max(1, min(out.shape[1], tile // max(groups * n, 1)))
    depth = max(1, min(num_patches, tile // max(groups * rows * n, 1)))
    for i in range(0, out.shape[1], rows):
        part = out[:, i : i + rows]
        plus, minus = (_one_sign(a, r[:, :, i : i + rows], depth) for r in (r_plus, r_minus))
        torch.maximum(part, torch.where(positive[:, i : i + rows], plus, minus), out=part)


def _one_sign(a: Tensor, r: Tensor, depth: int) -> Tensor:
    """max over p of a[g, p, j] r[g, p, i]: (groups, rows, n)."""
    groups, num_patches, n = a.shape
    best = a.new_zeros(groups, depth, r.shape[2], n)
    buffer = torch.empty_like(best)
    for p in range(0, num_patches, depth):
        size = min(depth, num_patches - p)
        product, target = buffer[:, :size], best[:, :size]
        torch.mul(r[:, p : p + size, :, None], a[:, p : p + size, None, :], out=product)
        torch.maximum(target, product, out=target)
    return best.amax(1)
