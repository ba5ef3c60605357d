"""The running maximum behind a sensitivity: chunk by chunk, sign by sign, in the precision that the numbers need."""

from typing import TypeAlias

import torch
from torch import Tensor

from sipp_bench import maxtimes
from sipp_bench.errors import ModelError
from sipp_bench.network.blocks import block_magnitudes, full_precision, reciprocals, window_sums
from sipp_bench.network.patches import Windows, windows
from sipp_bench.network.points import all_finite
from sipp_bench.network.tracing import Call

# Sensitivities, w > 0, active counts and number of patches of one weight: the fields of a `LayerSensitivity`.
Result: TypeAlias = tuple[Tensor, Tensor, Tensor, int]

# Numbers in one chunk of patches and their sums: 64 MiB of float32, or 4 MiB where only the sums are ever stored, so
# that they stay in the cache.
_CHUNK, _CACHED_CHUNK = 1 << 24, 1 << 20
# Where float32 is safe: inside, no product that matters to a sum under- or overflows (see `_needs_double`).
_SMALLEST_SUM, _LARGEST_SUM, _SMALLEST_PRODUCT, _LARGEST_QUOTIENT = 1e-25, 1e25, 1e-37, 1e37


def _scale_(rows: Tensor) -> Tensor:
    """Each row of non-negative numbers (last dimension) times the power of two that brings its largest into [1, 2).

    In place, since memory that is touched for the first time costs more than the arithmetic. Returns the exponents
    of those powers, shape (..., 1).
    """
    largest = rows.amax(-1, keepdim=True)
    exponents = 1 - torch.frexp(largest)[1]
    # In two steps: 2**exponent alone can overflow for denormal numbers.
    halves = (exponents // 2, exponents - exponents // 2)
    for half in halves if bool((exponents.abs() > 100).any()) else (exponents,):
        rows.mul_(torch.ldexp(torch.ones_like(largest), half))
    return exponents


def _largest_mean(chunk: Windows, z: Tensor, samples: int, positive: Tensor) -> Tensor:
    """max over points of the mean over their patches of a / Z: (groups, M, n), as batched products."""
    a, r = chunk.unfold(), reciprocals(z)
    groups, _, n = a.shape
    a, r = (t.reshape(groups, samples, -1, t.shape[2]) for t in (a, r))
    best = torch.zeros_like(positive, dtype=a.dtype)
    size = max(1, _CHUNK // max(groups * r.shape[3] * n, 1))
    for k in range(0, samples, size):
        means = (r[:, k : k + size].transpose(2, 3) @ a[:, k : k + size]).amax(1) / a.shape[2]
        plus, minus = means.chunk(2, dim=1)
        torch.maximum(best, torch.where(positive, plus, minus), out=best)
    return best


def chunk_size(device: torch.device, backend: str | None) -> tuple[bool, int]:
    """Whether the max-times product unfolds patches, and the numbers in one chunk of them and their sums."""
    unfolded = maxtimes.choose(device, torch.float32, backend) in ("torch", "reference")
    return unfolded, _CHUNK if unfolded or device.type != "cpu" else _CACHED_CHUNK


class Accumulator:
    """Running maximum of g / |w| for one weight, over calls, chunks and activation signs.

    Each block's weights are scaled by a power of two: exact, since s does not change when a block is scaled (claim
    C1), and it keeps the sums of nearly dead neurons inside float32's range.
    """

    def __init__(self, name: str, weight: Tensor, groups: int, reduction: str, backend: str | None) -> None:
        self.name = name
        self.backend = backend
        self.unfolded, self.limit = chunk_size(weight.device, backend)
        self.shape = weight.shape
        self.reduction = reduction
        self.dtype = torch.float64 if weight.dtype == torch.float64 else torch.float32
        neurons = weight.shape[0] // groups
        self.positive = (weight > 0).reshape(groups, neurons, -1)
        self.magnitudes = block_magnitudes(weight.to(self.dtype), groups)
        self.exponents = _scale_(self.magnitudes)
        count = torch.zeros(self.magnitudes.shape[:2], dtype=torch.int64, device=weight.device)
        self.smallest_weight, _ = maxtimes.survey(self.magnitudes[None], count, backend)
        # A weight with a block that spans more than float32's normal range is measured in float64.
        normal = torch.finfo(torch.float32).tiny
        if self.smallest_weight < normal or int(count.sum()) < int(torch.count_nonzero(weight)):
            self.magnitudes = block_magnitudes(weight.double(), groups)
            _scale_(self.magnitudes)
            self.smallest_weight = 0.0
        self.quotients: Tensor | None = None
        self.best: Tensor | None = None
        self.active = torch.zeros(groups, 2 * neurons, dtype=torch.int64, device=weight.device)
        self.num_patches = 0

    def add(self, call: Call, derive: bool = False) -> Tensor | None:
        """Fold in one application of (some rows of) the weight.

        derive: return the layer's output without its bias, Z^{++} - Z^{-+} - Z^{+-} + Z^{--}, from the sums that are
        computed anyway; None where they were not all computed in float32 from the whole weight.
        """
        if not all_finite(call.input):
            raise ModelError(
                f"The input of layer {call.name!r} holds NaN or infinity on these points: look at the layers before it."
            )
        self.num_patches += call.count_patches()
        average = self.reduction == "mean" and call.geometry is not None
        # Rows of a part of the weight occur for Linear only, where there is one group.
        part = call.rows if self.positive.shape[0] == 1 else slice(None)
        with full_precision(call.input.device):
            x = call.input.to(self.dtype)
            derive = derive and call.input.dtype == torch.float32 and call.weight.shape == self.shape
            outputs: list[Tensor] = []
            for chunk in windows(x, call.weight, call.geometry, self.limit, unfolded=self.unfolded or average):
                samples = chunk.x.shape[0]
                sums = [(tau, self._fold(one_sign, samples, part, average)) for tau, one_sign in chunk.signs()]
                derive = derive and bool(sums) and all(z.dtype == torch.float32 for _, z in sums)
                if derive:
                    outputs.append(self._difference(sums))
        return call.shaped(torch.cat(outputs)) if derive and outputs else None

    def _difference(self, sums: list[tuple[int, Tensor]]) -> Tensor:
        """Z^{++} - Z^{-+} - Z^{+-} + Z^{--} in the weight's own scale: (samples, neurons, positions)."""
        scales = torch.ldexp(torch.ones_like(self.exponents, dtype=torch.float32), -self.exponents)
        total: Tensor | float = 0.0
        for tau, z in sums:
            plus, minus = (z * scales).chunk(2, dim=2)
            total = total + tau * (plus - minus)
        assert isinstance(total, Tensor)
        return total.flatten(1, 2)

    def _fold(self, chunk: Windows, samples: int, part: slice, average: bool) -> Tensor:
        """Fold in patches of one activation sign; returns their sums Z, of scaled weights (in float64: and patches)."""
        neurons = self.positive.shape[1]
        magnitudes, positive = self.magnitudes, self.positive[:, part]
        if positive.shape[1] < neurons:
            magnitudes = torch.cat([magnitudes[:, :neurons][:, part], magnitudes[:, neurons:][:, part]], 1)
        active = torch.zeros(magnitudes.shape[:2], dtype=torch.int64, device=magnitudes.device)
        double = magnitudes.dtype == torch.float64
        if not double:
            z = window_sums(chunk, magnitudes)
            smallest, largest = maxtimes.survey(z, active, self.backend)
            double = self._needs_double(chunk.x, smallest, largest, int(active.sum()) == z.numel())
        if double:
            # Neither does s change when a patch is scaled, so that float64's own denormals are no trouble.
            # A copy, since patches may be a view of the network's own activations.
            patches = chunk.unfold().to(torch.float64, copy=True)
            _scale_(patches)
            chunk = Windows(patches.transpose(1, 2).contiguous())
            z = window_sums(chunk, magnitudes.double())
            maxtimes.survey(z, active.zero_(), self.backend)
        half = positive.shape[1]
        self.active[:, :neurons][:, part] += active[:, :half]
        self.active[:, neurons:][:, part] += active[:, half:]
        if average:
            found = _largest_mean(chunk, z, samples, positive)
        elif double:
            found = torch.zeros_like(positive, dtype=torch.float64)
            maxtimes.max_product(chunk, z, positive, found, self.backend)
        else:
            maxtimes.max_product(chunk, z, positive, self._quotients()[:, part], self.backend)
            return z
        if double:
            # Multiplied while still in the wider dtype: a / Z alone may be outside float32's range.
            signed = torch.where(positive, magnitudes[:, :half], magnitudes[:, half:])
            found, best = (found * signed).to(self.dtype), self._best()[:, part]
        else:
            best = self._quotients()[:, part]
        torch.maximum(best, found, out=best)
        return z

    def _quotients(self) -> Tensor:
        """Running maximum of a / Z, from chunks whose numbers float32 holds."""
        if self.quotients is None:
            self.quotients = torch.zeros_like(self.positive, dtype=self.dtype)
        return self.quotients

    def _best(self) -> Tensor:
        """Running maximum of |w| a / Z, from the other chunks."""
        if self.best is None:
            self.best = torch.zeros_like(self.positive, dtype=self.dtype)
        return self.best

    def _needs_double(self, x: Tensor, smallest: float, largest: float, all_live: bool) -> bool:
        """Whether float32 could under- or overflow in this chunk, with sums between these.

        Sums within [1e-25, 1e25] are safe, since each block's largest weight is about 1. A sum of 0 is exact unless
        the smallest weight times the smallest activation is too small for float32.
        """
        if smallest < _SMALLEST_SUM or not largest < _LARGEST_SUM:
            return True
        if largest > 0 and float(x.amax()) / smallest > _LARGEST_QUOTIENT:
            return True
        if all_live:
            return False
        return self.smallest_weight * float(torch.where(x > 0, x, 1.0).amin()) < _SMALLEST_PRODUCT

    @property
    def nbytes(self) -> int:
        """Bytes of all that is kept from one call to the next."""
        kept = (self.positive, self.magnitudes, self.exponents, self.active, self.quotients, self.best)
        return sum(tensor.nbytes for tensor in kept if tensor is not None)

    def result(self) -> Result:
        """Sensitivities in the shape of the weight; rounding above 1 is cut off (claim C1). Ends the accumulation."""
        neurons = self.positive.shape[1]
        active = torch.stack([self.active[:, :neurons].flatten(), self.active[:, neurons:].flatten()], 1)
        values = self.best
        if self.quotients is not None:
            # One of the two is 0, so that their sum is |w|. In place: nothing of this is needed again.
            found = self.quotients.mul_(self.magnitudes[:, :neurons].add_(self.magnitudes[:, neurons:]))
            values = found if values is None else torch.maximum(values, found)
        if values is None:  # no activation was ever different from 0
            values = torch.zeros_like(self.positive, dtype=self.dtype)
        # Adding 0 turns the -0.0 of inputs that are -0.0 into 0.0, by which people divide.
        values = values.clamp_(max=1).add_(0.0).reshape(self.shape)
        return values, self.positive.reshape(self.shape), active, self.num_patches
