"""The geometry of convolutions: a convolution is the linear map over its unfolded patches (claim C1)."""

import functools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
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
        x = self.pad(x, weight.shape)
        samples, channels = x.shape[:2]
        kernel = tuple(weight.shape[2:])
        positions = self.positions(tuple(x.shape[2:]), kernel)
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
        kernel = tuple(weight.shape[2:])
        return int(x.shape[0]) * math.prod(self.positions(self.padded(tuple(x.shape[2:]), kernel), kernel))

    def padded(self, spatial: tuple[int, ...], kernel: tuple[int, ...]) -> tuple[int, ...]:
        """The sizes of an input with its padding."""
        pads = self._pads(kernel)
        return tuple(size + pads[-2 - 2 * i] + pads[-1 - 2 * i] for i, size in enumerate(spatial))

    def positions(self, padded: tuple[int, ...], kernel: tuple[int, ...]) -> tuple[int, ...]:
        """Output positions along each dimension of a padded input."""
        sizes = zip(padded, kernel, self.stride, self.dilation, strict=True)
        return tuple((size - d * (k - 1) - 1) // s + 1 for size, k, s, d in sizes)

    def pad(self, x: Tensor, weight_shape: tuple[int, ...]) -> Tensor:
        """x with the zeros that the convolution adds around it."""
        pads = self._pads(tuple(weight_shape[2:]))
        return F.pad(x, pads) if any(pads) else x

    def convolve(self, padded: Tensor, weight: Tensor) -> Tensor:
        """The convolution of an input that is padded already."""
        convolution = (F.conv1d, F.conv2d, F.conv3d)[self.dimensions - 1]
        return convolution(padded, weight, None, self.stride, 0, self.dilation, self.groups)

    def _pads(self, kernel: tuple[int, ...]) -> list[int]:
        """Padding in the order of F.pad: last dimension first, before and after."""
        pads: list[int] = []
        for i in reversed(range(self.dimensions)):
            if self.padding == "valid":
                pads += [0, 0]
            elif self.padding == "same":
                total = self.dilation[i] * (kernel[i] - 1)
                pads += [total // 2, total - total // 2]
            else:
                pads += [int(self.padding[i])] * 2
        return pads


@dataclass(frozen=True)
class Layout:
    """Where patches lie in the memory of `Windows.x`: patch r * length + k, column j of group g is the number at
    starts[r] + k * step + columns[j] + g * group_stride. starts and columns: int64, on the CPU.
    """

    starts: Tensor
    length: int
    step: int
    columns: Tensor
    group_stride: int


@dataclass(frozen=True)
class Windows:
    """The patches of one chunk of a call, in place: nothing is unfolded until somebody asks.

    x: of a convolution its padded input (N, C, *spatial); else (groups, n, P), one column of all patches after the
    other. Contiguous. weight_shape: of a convolution's weight.
    """

    x: Tensor
    geometry: ConvGeometry | None = None
    weight_shape: tuple[int, ...] = ()

    def unfold(self) -> Tensor:
        """The patches: (groups, P, n), as weight.flatten(1)."""
        if self.geometry is None:
            return self.x.transpose(1, 2).contiguous()
        return replace(self.geometry, padding="valid").unfold(self.x, self.x.new_empty(1).expand(self.weight_shape))

    def layout(self) -> Layout:
        """Where the patches lie in x."""
        if self.geometry is None:
            return _column_layout(*self.x.shape)
        return _window_layout(tuple(self.x.shape), self.weight_shape, self.geometry)

    def signs(self) -> Iterator[tuple[int, "Windows"]]:
        """tau and the patches of (a)_tau, for tau = 1 and -1; one that no activation has is left out: its Z are 0."""
        lowest, highest = (float(end) for end in torch.aminmax(self.x)) if self.x.numel() else (0.0, 0.0)
        if highest > 0:
            yield 1, replace(self, x=self.x.clamp(min=0)) if lowest < 0 else self
        if lowest < 0:
            yield -1, replace(self, x=(-self.x).clamp_(min=0))


def windows(
    x: Tensor, weight: Tensor, geometry: ConvGeometry | None, limit: int, *, unfolded: bool
) -> Iterator[Windows]:
    """The patches of a call in chunks of at least one point, or 512 rows of a Linear.

    limit: about how many numbers a chunk's sums (two a neuron and patch) may have, with its patches if `unfolded`.
    """
    per_patch = 2 * weight.shape[0] + (weight[0].numel() * (geometry.groups if geometry else 1) if unfolded else 0)
    if geometry is None:
        for rows in x.reshape(-1, x.shape[-1]).split(max(512, limit // per_patch)):
            yield Windows(rows.t().contiguous()[None])
        return
    per_point = geometry.count_patches(x[:1], weight) * per_patch
    for part in x.split(max(1, limit // max(per_point, 1))):
        yield Windows(geometry.pad(part, tuple(weight.shape)).contiguous(), geometry, tuple(weight.shape))


@functools.lru_cache(maxsize=256)
def _column_layout(groups: int, n: int, patches: int) -> Layout:
    return Layout(torch.zeros(1, dtype=torch.int64), patches, 1, torch.arange(n) * patches, n * patches)


@functools.lru_cache(maxsize=256)
def _window_layout(shape: tuple[int, ...], weight_shape: tuple[int, ...], geometry: ConvGeometry) -> Layout:
    samples, channels, *spatial = shape
    kernel = weight_shape[2:]
    strides = [math.prod(spatial[i + 1 :]) for i in range(len(spatial))]
    plane = math.prod(spatial)
    *outer, length = geometry.positions(tuple(spatial), tuple(kernel))
    axes = [torch.arange(samples) * channels * plane]
    axes += [torch.arange(size) * s * t for size, s, t in zip(outer, geometry.stride, strides, strict=False)]
    starts = _all_sums(axes)
    step = geometry.stride[-1]
    if step == 1 and length == spatial[-1] and tuple(outer) == tuple(spatial[:-1]):
        # Rows that follow one another without a gap are one run: whole samples of a 1x1 convolution.
        length, starts = length * math.prod(outer), torch.arange(samples) * channels * plane
    columns = _all_sums(
        [torch.arange(weight_shape[1]) * plane]
        + [torch.arange(k) * d * t for k, d, t in zip(kernel, geometry.dilation, strides, strict=True)]
    )
    return Layout(starts, length, step, columns, weight_shape[1] * plane)


def _all_sums(axes: list[Tensor]) -> Tensor:
    """Sums of one number of each axis, in row-major order."""
    total = axes[0]
    for axis in axes[1:]:
        total = (total[:, None] + axis).flatten()
    return total.contiguous()


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
