"""The geometry of convolutions: a convolution is the linear map over its unfolded patches (claim C1)."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class ConvGeometry:
    """Stride, padding, dilation and groups of a 1-, 2- or 3-dimensional convolution, one number a dimension.

    padding: numbers, or "same" / "valid" as in torch.nn.functional. Zero padding only: torch's modules apply the
    other padding modes to the input before the convolution, where a trace sees the padded input.
    """

    dimensions: int
    stride: tuple[int, ...]
    padding: tuple[int, ...] | str
    dilation: tuple[int, ...]
    groups: int

    @classmethod
    def from_arguments(cls, dimensions: int, arguments: Mapping[str, Any]) -> "ConvGeometry":
        """From the arguments of a call of F.conv1d, F.conv2d or F.conv3d."""

        def numbers(name: str, default: int) -> tuple[int, ...]:
            value = arguments.get(name, default)
            values = (value,) if isinstance(value, int) else tuple(value)
            return values * dimensions if len(values) == 1 else values

        padding = arguments.get("padding", 0)
        return cls(
            dimensions,
            numbers("stride", 1),
            padding if isinstance(padding, str) else numbers("padding", 0),
            numbers("dilation", 1),
            arguments.get("groups", 1),
        )

    def unfold(self, x: Tensor, weight: Tensor) -> Tensor:
        """Patches of x (N, C, *spatial): (groups, N * positions, C / groups * kernel), as weight.flatten(1)."""
        x = F.pad(x, self._pads(weight))
        samples, channels = x.shape[:2]
        positions, kernel = self._positions(x, weight), tuple(weight.shape[2:])
        strides = x.stride()
        windows = x.as_strided(
            (samples, channels, *positions, *kernel),
            (
                *strides[:2],
                *(a * b for a, b in zip(strides[2:], self.stride, strict=True)),
                *(a * b for a, b in zip(strides[2:], self.dilation, strict=True)),
            ),
        )
        d, g = self.dimensions, self.groups
        windows = windows.reshape(samples, g, channels // g, *positions, *kernel)
        order = (1, 0, *range(3, 3 + d), 2, *range(3 + d, 3 + 2 * d))
        return windows.permute(order).reshape(g, -1, channels // g * weight[0, 0].numel())

    def count_patches(self, x: Tensor, weight: Tensor) -> int:
        """Output positions over all samples of x."""
        shape = list(x.shape[2:])
        pads = self._pads(weight)
        for i in range(self.dimensions):
            shape[-1 - i] += pads[2 * i] + pads[2 * i + 1]
        count = x.shape[0]
        for size, k, s, d in zip(shape, weight.shape[2:], self.stride, self.dilation, strict=True):
            count *= (size - d * (k - 1) - 1) // s + 1
        return count

    def _positions(self, padded: Tensor, weight: Tensor) -> tuple[int, ...]:
        sizes = zip(padded.shape[2:], weight.shape[2:], self.stride, self.dilation, strict=True)
        return tuple((size - d * (k - 1) - 1) // s + 1 for size, k, s, d in sizes)

    def _pads(self, weight: Tensor) -> list[int]:
        """Padding in the order of F.pad: last dimension first, before and after."""
        pads: list[int] = []
        for i in reversed(range(self.dimensions)):
            if self.padding == "valid":
                pads += [0, 0]
            elif self.padding == "same":
                total = self.dilation[i] * (weight.shape[2 + i] - 1)
                pads += [total // 2, total - total // 2]
            else:
                pads += [int(self.padding[i])] * 2
        return pads


def patch_chunks(x: Tensor, weight: Tensor, geometry: ConvGeometry | None, limit: int) -> Iterator[Tensor]:
    """Patches of a call in chunks (groups, P, n), each of about `limit` numbers or one point, whichever is more.

    With the output side counted in: P * groups * (n + 2 * neurons per group) numbers a chunk.
    """
    if geometry is None:
        rows = x.reshape(1, -1, x.shape[-1])
        size = max(1, limit // (x.shape[-1] + 2 * weight.shape[0]))
        yield from rows.split(size, dim=1)
        return
    per_point = geometry.count_patches(x[:1], weight) * (weight[0].numel() * geometry.groups + 2 * weight.shape[0])
    for part in x.split(max(1, limit // max(per_point, 1))):
        yield geometry.unfold(part, weight)
