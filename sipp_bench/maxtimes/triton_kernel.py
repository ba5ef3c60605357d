"""The max-times product as a Triton kernel, for CUDA devices; float32.

A program folds one tile of neurons by columns over one part of the patches, which it reads where they lie (implicit
im2col), inverts the sums as it reads them, and merges its maxima with those of other parts by an atomic maximum of bit
patterns: those of non-negative floats are ordered as integers. With TRITON_INTERPRET=1 it runs on a CPU, slowly.
"""

import functools
import importlib.util
import os
from typing import Any

import torch
from torch import Tensor

from sipp_bench.network.patches import Windows

_NEURONS, _COLUMNS = 32, 64  # of a tile
_PATCHES = 256  # of a part, at least: below, programs are too short to be worth their start
_PROGRAMS = 1024  # enough to fill a large GPU several times


def unavailable(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why it can't be used, or None."""
    if device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        return "it computes on CUDA devices only (or anywhere, for tests, with TRITON_INTERPRET=1)."
    if not _installed():
        return "the package triton is not installed."
    return None if dtype == torch.float32 else "it computes in float32 only."


@functools.cache
def _installed() -> bool:
    return importlib.util.find_spec("triton") is not None


def max_product(windows: Windows, z: Tensor, positive: Tensor, out: Tensor) -> None:
    """See `sipp_bench.maxtimes`. float32; extra memory: one offset a patch."""
    layout = windows.layout()
    groups, neurons, n = out.shape
    patches = (layout.starts[:, None] + torch.arange(layout.length) * layout.step).flatten().to(z.device)
    columns = layout.columns.to(z.device)
    target = out if out.is_contiguous() else out.contiguous()
    signs = positive.contiguous().view(torch.uint8)
    tiles = -(-neurons // _NEURONS) * -(-n // _COLUMNS) * groups
    parts = max(1, min(-(-patches.numel() // _PATCHES), _PROGRAMS // tiles))
    size = -(-patches.numel() // parts)
    grid = (-(-neurons // _NEURONS), -(-n // _COLUMNS), groups * parts)
    _kernel()[grid](
        windows.x, patches, columns, z, signs, target.view(torch.int32),
        patches.numel(), size, parts, neurons, n, layout.group_stride,
        z.shape[3], z.stride(0), z.stride(1), z.stride(2), z.stride(3),
        NEURONS=_NEURONS, COLUMNS=_COLUMNS,
    )  # fmt: skip
    if target is not out:
        out.copy_(target)


@functools.cache
def _kernel() -> Any:
    import triton
    import triton.language as tl

    @triton.jit  # type: ignore[untyped-decorator]
    def fold(  # type: ignore[no-untyped-def]  # Triton gives annotations a meaning of its own
        x, patches, columns, z, positive, out,
        num_patches, size, parts, neurons, n, group_stride,
        spatial, sample_stride, z_group_stride, channel_stride, position_stride,
        NEURONS: tl.constexpr, COLUMNS: tl.constexpr,
    ):  # fmt: skip
        group, part = tl.program_id(2) // parts, tl.program_id(2) % parts
        i = tl.program_id(0) * NEURONS + tl.arange(0, NEURONS)
        j = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
        inside = (i < neurons)[:, None] & (j < n)[None, :]
        places = (group.to(tl.int64) * neurons + i)[:, None] * n + j[None, :]
        sign = tl.load(positive + places, mask=inside, other=0) != 0
        column = tl.load(columns + j, mask=j < n, other=0) + group.to(tl.int64) * group_stride
        plus = z + group.to(tl.int64) * z_group_stride + i.to(tl.int64) * channel_stride
        minus = plus + neurons.to(tl.int64) * channel_stride
        best = tl.zeros((NEURONS, COLUMNS), dtype=tl.float32)
        for p in range(part * size, min((part + 1) * size, num_patches)):
            a = tl.load(x + tl.load(patches + p) + column, mask=j < n, other=0.0)
            at = (p // spatial).to(tl.int64) * sample_stride + (p % spatial) * position_stride
            z_plus = tl.load(plus + at, mask=i < neurons, other=0.0)
            z_minus = tl.load(minus + at, mask=i < neurons, other=0.0)
            # 1 / infinity is the 0 that a sum of 0 counts for.
            r_plus = 1.0 / tl.where(z_plus > 0, z_plus, float("inf"))
            r_minus = 1.0 / tl.where(z_minus > 0, z_minus, float("inf"))
            best = tl.maximum(best, a[None, :] * tl.where(sign, r_plus[:, None], r_minus[:, None]))
        tl.atomic_max(out + places, best.to(tl.int32, bitcast=True), mask=inside)

    return fold
