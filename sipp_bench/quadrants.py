"""The quadrant sums Z of THEORY section 1: what a block feeds to its neuron, split by the sign of the activation.

A block is one (neuron i, sign sigma of the weight). Z_i^{sigma,tau}(p) = sum over j with sign(w_ij) = sigma of
|w_ij| (a_j)_tau, for every patch p; the pre-activation is Z^{++} - Z^{-+} - Z^{+-} + Z^{--} (+ bias).
"""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor


def block_magnitudes(weight: Tensor, groups: int) -> Tensor:
    """|w| split by sign: (groups, 2 * M, n), the M rows of positive weights first, then those of negative ones.

    weight: (groups * M, ...), any float dtype.
    """
    rows = weight.reshape(groups, weight.shape[0] // groups, -1)
    return torch.cat([rows.clamp(min=0), (-rows).clamp(min=0)], 1)


def activation_signs(patches: Tensor) -> Iterator[Tensor]:
    """(a)_+ and (a)_- of (groups, P, n) patches; a sign that no activation has is left out: its Z are all 0."""
    lowest, highest = (float(end) for end in torch.aminmax(patches)) if patches.numel() else (0.0, 0.0)
    if highest > 0:
        yield patches.clamp(min=0) if lowest < 0 else patches
    if lowest < 0:
        yield (-patches).clamp(min=0)


def quadrant_sums(a: Tensor, magnitudes: Tensor) -> Tensor:
    """Z of every block and patch, for one activation sign: (groups, P, 2 * M)."""
    return torch.bmm(a, magnitudes.transpose(1, 2))


@contextlib.contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Matrix products of float32 in float32: neither TF32, nor bfloat16 passes, nor autocast."""
    # By backend: torch.get_float32_matmul_precision refuses to answer where a user has set these by backend.
    mkldnn = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]  # torch adds it at run time
    backends = (torch.backends.cuda.matmul, mkldnn)
    before = [backend.fp32_precision for backend in backends]
    try:
        for backend in backends:
            backend.fp32_precision = "ieee"
        with torch.autocast(device.type, enabled=False), torch.no_grad():
            yield
    finally:
        for backend, precision in zip(backends, before, strict=True):
            backend.fp32_precision = precision
