"""Blocks, and the quadrant sums Z of THEORY section 1: what a block feeds to its neuron, by the activation's sign.

A block is one (neuron i, sign sigma of the weight). Z_i^{sigma,tau}(p) = sum over j with sign(w_ij) = sigma of
|w_ij| (a_j)_tau, for every patch p; the pre-activation is Z^{++} - Z^{-+} - Z^{+-} + Z^{--} (+ bias).
"""

import contextlib
import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.backends import nnpack

from sipp_bench.machine.parts import over_parts
from sipp_bench.network.patches import Windows


def block_magnitudes(weight: Tensor, groups: int) -> Tensor:
    """|w| split by sign: (groups, 2 * M, n), the M rows of positive weights first, then those of negative ones.

    weight: (groups * M, ...), any float dtype.
    """
    rows = weight.reshape(groups, weight.shape[0] // groups, -1)
    neurons = rows.shape[1]
    magnitudes = rows.new_empty(groups, 2 * neurons, rows.shape[2])
    torch.clamp(rows, min=0, out=magnitudes[:, :neurons])
    torch.neg(rows, out=magnitudes[:, neurons:]).clamp_(min=0)
    return magnitudes


def activation_signs(patches: Tensor) -> Iterator[Tensor]:
    """(a)_+ and (a)_- of (groups, P, n) patches; a sign that no activation has is left out: its Z are all 0."""
    lowest, highest = (float(end) for end in torch.aminmax(patches)) if patches.numel() else (0.0, 0.0)
    if highest > 0:
        yield patches.clamp(min=0) if lowest < 0 else patches
    if lowest < 0:
        yield (-patches).clamp(min=0)


def window_sums(windows: Windows, magnitudes: Tensor) -> Tensor:
    """Z of every patch of non-negative `windows`: (samples, groups, 2 * M, positions), samples * positions patches.

    magnitudes: (groups, 2 * M, n), of windows' dtype. On a CPU a convolution is computed as one, for both signs of
    the weights in one call; on a GPU as a product with the unfolded patches, since fast convolution algorithms there
    (Winograd, FFT) would leave rounding noise where Z is 0.
    """
    x, geometry = windows.x, windows.geometry
    groups = magnitudes.shape[0]
    if geometry is not None and x.device.type == "cpu" and x.dtype == torch.float32:
        z = geometry.convolve(x, magnitudes.reshape(-1, *windows.weight_shape[1:]))
        return z.reshape(x.shape[0], groups, magnitudes.shape[1], -1)
    columns = x if geometry is None else windows.unfold().transpose(1, 2)
    return torch.bmm(magnitudes, columns)[None]


def reciprocals(z: Tensor) -> Tensor:
    """1 / z, 0 where z is 0: from (samples, groups, 2 * M, positions) to (groups, patches, 2 * M)."""
    r = torch.where(z > 0, 1 / z, 0.0).clamp(max=torch.finfo(z.dtype).max)
    return r.permute(1, 0, 3, 2).reshape(z.shape[1], -1, z.shape[2])


def survey(z: Tensor, active: Tensor) -> tuple[float, float]:
    """Smallest positive and largest number of z (samples, groups, 2 * M, positions); the largest float without any.

    Adds to `active` (groups, 2 * M), int64, how many of a block's sums are positive.
    """
    live = z > 0
    active += live.sum((0, 3))
    return float(torch.where(live, z, torch.finfo(z.dtype).max).amin()), float(z.amax())


def quadrant_sums(a: Tensor, magnitudes: Tensor) -> Tensor:
    """Z of every block and patch, for one activation sign: (groups, P, 2 * M)."""
    return torch.bmm(a, magnitudes.transpose(1, 2))


@contextlib.contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Products of float32 in float32: neither TF32, nor bfloat16 passes, nor autocast, nor NNPACK's Winograd."""
    # By backend: torch.get_float32_matmul_precision refuses to answer where a user has set these by backend.
    mkldnn = torch.backends.mkldnn
    backends = (torch.backends.cuda.matmul, mkldnn.matmul, mkldnn.conv)  # type: ignore[attr-defined]  # added late
    before = [backend.fp32_precision for backend in backends]
    try:
        for backend in backends:
            backend.fp32_precision = "ieee"
        with torch.autocast(device.type, enabled=False), torch.no_grad(), nnpack.flags(enabled=False):
            yield
    finally:
        for backend, precision in zip(backends, before, strict=True):
            backend.fp32_precision = precision


def block_sums(values: Tensor, positive: Tensor, among: Tensor | None = None) -> Tensor:
    """Sums over blocks of numbers shaped like a weight: (neurons, 2) float64, positive weights first.

    among: marks the numbers that count; default all.
    """
    rows, signs = values.flatten(1), positive.flatten(1)
    counted = None if among is None else among.flatten(1)
    sums = torch.zeros(len(rows), 2, dtype=torch.float64, device=rows.device)

    def add(part: slice) -> None:
        numbers = rows[part].double()
        if counted is not None:
            numbers = numbers * counted[part].double()
        # Products with 0 and 1 are exact, and several times as fast as torch.where.
        plus = numbers * signs[part].double()
        sums[part, 0], sums[part, 1] = plus.sum(1), (numbers - plus).sum(1)

    over_parts(add, *rows.shape)
    return sums


def by_block(blocks: Tensor, positive: Tensor) -> Tensor:
    """Numbers of the blocks (neurons, 2) spread over their weights (neurons, n)."""
    if blocks.dtype == torch.bool:  # several times as fast as torch.where
        return (positive & blocks[:, :1]).logical_or_(blocks[:, 1:] > positive)
    return torch.where(positive, blocks[:, :1], blocks[:, 1:])


def columns(flat: Tensor, neurons: int) -> Tensor:
    """(groups, 2 * neurons), positive blocks first, as sums are computed, as (groups * neurons, 2), as in bounds."""
    return torch.stack([flat[:, :neurons].flatten(), flat[:, neurons:].flatten()], 1)


def by_group(blocks: Tensor, groups: int) -> Tensor:
    """The way back: (groups * neurons, 2) to (groups, 2 * neurons)."""
    return torch.cat([blocks[:, column].reshape(groups, -1) for column in (0, 1)], 1)


def median(values: Tensor) -> float:
    """The median of all values, float64: of an even number the mean of the two in the middle, NaN of none.

    torch's own is the lower of the two.
    """
    return float(np.median(values.double().numpy(force=True))) if values.numel() else math.nan
