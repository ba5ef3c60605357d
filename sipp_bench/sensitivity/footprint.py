"""How much memory measuring one weight takes: what is held throughout, and for a moment."""

import torch
from torch import Tensor

from sipp_bench.network.tracing import Call


def held_bytes(weight: Tensor) -> int:
    """What the running maximum of one weight holds: 13 bytes a weight of a float32 network, 25 of a float64 one.

    The magnitudes of the positive and of the negative weights (each of the weight's shape), the largest quotient
    so far, and a byte for the sign; and for each block a count (int64) and a scale (int32). Quotients, signs and counts
    stay as the result.
    """
    size = 8 if weight.dtype == torch.float64 else 4
    return weight.numel() * (3 * size + 1) + 24 * weight.shape[0]


def workspace_bytes(call: Call, weight: Tensor, limit: int, unfolded: bool, average: bool) -> int:
    """An upper estimate of what folding in one call takes for a moment, from the sizes of that call.

    In one chunk (see `sipp_bench.network.patches.windows`): the input, its positive and its negative part; for both
    activation signs the sums of both weight signs, for one of them their reciprocals or marks; for torch's own
    operations the unfolded patches, and 10 bytes a weight when its magnitudes are looked through; for a convolution the
    weights in the order that its library wants. A chunk that float32 can't hold is computed in float64, which takes up
    to 36 bytes a weight and twice the rest, and 4 bytes a weight for good; that is not counted.
    """
    size = 8 if weight.dtype == torch.float64 else 4
    weights, neurons = weight.numel(), weight.shape[0]
    n = weight[0].numel() * call.groups
    per_patch = 2 * neurons + (n if unfolded else 0)
    patches = call.count_patches()
    if call.geometry is None:
        chunk = min(patches, max(512, limit // per_patch))
        inputs = chunk * n
    else:
        points = max(1, call.input.shape[0])
        per_point = max(1, patches // points)
        taken = min(points, max(1, limit // max(1, per_point * per_patch)))
        # Padding adds less than the kernel's size along each dimension, rarely more than half of the input.
        chunk, inputs = taken * per_point, 2 * taken * call.input[0].numel()
    numbers = 4 * inputs + 12 * neurons * chunk
    if unfolded or size == 8:
        numbers += 3 * n * chunk
    if call.geometry is not None:
        numbers += 2 * weights
    if average:
        numbers += 2 * max(limit, 2 * weights) + 2 * weights
    if size == 8:
        numbers += 3 * weights
    if call.weight.shape != weight.shape:  # a part of attention's packed weight, whose magnitudes are copied
        numbers += 2 * call.weight.numel()
    beginning = weights * ((2 + 2 * size if unfolded else 0) + (size if weight.itemsize < size else 0))
    return max(numbers * size, beginning) + (1 << 20)
