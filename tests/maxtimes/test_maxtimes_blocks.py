"""The native kernel at every boundary of its blocks, and with threads that overlap; to the last bit as unfolded.

Its constants (kernel.cpp): 4, 8 or 16 patches a vector, up to 8 vectors a step, 512 patches a tile, 2^18 numbers of
1 / z a block (512 patches at least), 64 columns a task (fewer where threads would have nothing to do), 8 neurons.
Two operations on two numbers, each rounded once, give every number: backends agree to the last bit.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from sipp_bench.maxtimes import chunked, native, reference
from sipp_bench.network.patches import ConvGeometry, Windows

NO_NATIVE = native.unavailable(torch.device("cpu"), torch.float32)
pytestmark = pytest.mark.skipif(NO_NATIVE is not None, reason=f"no native library here: {NO_NATIVE}")
VARIANTS = native.variants() if NO_NATIVE is None else ()


@contextmanager
def threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def sums(chunk: Windows, groups: int, neurons: int, generator: torch.Generator) -> Tensor:
    """Made-up z (samples, groups, 2M, positions) for the patches of a chunk, a tenth of them 0.

    In each row one is much the smallest: that patch is the largest of every column, and missing or misplacing it is
    seen. For half of the rows it is at the edge of a tile, for the others anywhere.
    """
    samples, patches = chunk.x.shape[0] if chunk.geometry else 1, chunk.unfold().shape[1]
    z = torch.rand(samples, groups, 2 * neurons, patches // samples, generator=generator) + 0.1
    z = torch.where(z < 0.2, 0.0, z)
    near = {p + by for p in (0, *range(0, patches, 512), patches) for by in (-2, -1, 0, 1)}
    edges = torch.tensor([p for p in near if 0 <= p < patches])
    anywhere, at_edges = (torch.randint(k, z.shape[1:3], generator=generator) for k in (patches, len(edges)))
    at = torch.where(torch.rand(z.shape[1:3], generator=generator) < 0.5, anywhere, edges[at_edges])
    g, row = torch.meshgrid(torch.arange(groups), torch.arange(2 * neurons), indexing="ij")
    z[at // z.shape[3], g, row, at % z.shape[3]] = 2.0**-9
    return z


def assert_as_unfolded(chunk: Windows, groups: int, neurons: int, n: int, variant: str, seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    z = sums(chunk, groups, neurons, generator)
    positive = torch.rand(groups, neurons, n, generator=generator) < 0.5
    found, expected = (torch.zeros(groups, neurons, n) for _ in range(2))
    reference.max_product(chunk, z, positive, expected)
    native.max_product(chunk, z, positive, found, variant)
    assert torch.equal(found, expected)


def convolution(layer: nn.Conv1d | nn.Conv2d | nn.Conv3d, samples: int, *spatial: int) -> tuple[Windows, int, int, int]:
    """Its patches on random inputs, padded; groups, neurons a group, columns."""
    names = ("stride", "padding", "dilation", "groups")
    shape = tuple(layer.weight.shape)
    geometry = ConvGeometry.from_arguments(len(spatial), {name: getattr(layer, name) for name in names})
    generator = torch.Generator().manual_seed(samples)
    x = geometry.pad(torch.rand(samples, layer.in_channels, *spatial, generator=generator), shape)
    return Windows(x.contiguous(), geometry, shape), layer.groups, shape[0] // layer.groups, layer.weight[0].numel()


# What crosses a boundary, and where: a row of the output that goes on in the next tile starts there at `at * step`.
CONVOLUTIONS = {
    "a row goes on in the next tile": convolution(nn.Conv2d(4, 8, 3, stride=2), 1, 47, 47),
    "rows longer than a tile": convolution(nn.Conv2d(4, 8, 3, stride=2), 1, 8, 1301),
    "a stride along rows only": convolution(nn.Conv2d(2, 5, 3, stride=(1, 2)), 1, 20, 75),
    "a stride across rows only": convolution(nn.Conv2d(2, 5, 3, stride=(2, 1)), 1, 75, 20),
    "stride 3 and dilation 2, padded": convolution(nn.Conv2d(3, 7, 3, stride=3, dilation=2, padding=2), 2, 70, 73),
    "groups": convolution(nn.Conv2d(4, 6, 3, stride=2, groups=2, padding=1), 2, 46, 51),
    "depthwise": convolution(nn.Conv2d(5, 10, 3, stride=2, groups=5), 1, 50, 50),
    "many samples of one tile": convolution(nn.Conv2d(2, 9, 2, stride=2), 29, 13, 14),
    "a sample is one run": convolution(nn.Conv2d(3, 4, 1), 3, 23, 29),
    "a sample is one run, grouped": convolution(nn.Conv2d(4, 4, 1, groups=2), 2, 23, 29),
    "1x1 with a stride": convolution(nn.Conv2d(3, 4, 1, stride=2), 1, 64, 64),
    "one dimension": convolution(nn.Conv1d(2, 3, 5, stride=3, dilation=4), 2, 4011),
    "three dimensions": convolution(nn.Conv3d(2, 3, 2, stride=(2, 1, 3), dilation=(1, 2, 1)), 1, 17, 11, 40),
    "more columns than one task": convolution(nn.Conv2d(9, 3, 3, stride=2), 1, 51, 53),
    "three blocks of 512 patches": convolution(nn.Conv2d(2, 300, 3, stride=2), 2, 47, 47),
    "five blocks of 1024 patches, grouped": convolution(nn.Conv1d(2, 196, 3, stride=2, groups=2), 3, 3001),
}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("crossing", CONVOLUTIONS)
def test_convolutions_that_cross_blocks(crossing: str, variant: str) -> None:
    assert_as_unfolded(*CONVOLUTIONS[crossing], variant)


EDGES = st.sampled_from([edge + by for edge in (4, 8, 16, 32, 64, 128, 512, 1024, 1536) for by in (-1, 0, 1)])


@pytest.mark.parametrize("variant", VARIANTS)
@settings(deadline=None, max_examples=60)
@given(
    st.one_of(EDGES, st.integers(1, 1600)), st.integers(1, 3), st.integers(1, 3), st.integers(1, 3), st.integers(1, 2),
    st.one_of(st.sampled_from([7, 8, 9, 15, 16, 17]), st.integers(1, 20)), st.integers(1, 3), st.integers(1, 3),
)  # fmt: skip
def test_strided_convolutions_at_the_edge_of_blocks(
    variant: str, length: int, stride: int, dilation: int, kernel: int, groups: int, neurons: int, samples: int,
    workers: int,
) -> None:  # fmt: skip
    layer = nn.Conv1d(2 * groups, neurons * groups, kernel, stride=stride, dilation=dilation, groups=groups)
    size = (length - 1) * stride + dilation * (kernel - 1) + 1
    with threads(workers):
        assert_as_unfolded(*convolution(layer, samples, size), variant, seed=length)


@pytest.mark.parametrize("workers", [1, 2, 3])
@pytest.mark.parametrize("n", [15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129])
def test_columns_at_the_edge_of_a_task(n: int, workers: int) -> None:
    x = torch.rand(2, n, 70, generator=torch.Generator().manual_seed(n))
    with threads(workers):
        for neurons in (1, 2, 3, 7, 8, 13):
            assert_as_unfolded(Windows(x), 2, neurons, n, VARIANTS[0], seed=neurons)


@pytest.mark.parametrize("patches", [511, 512, 513, 1023, 1024, 1025, 2047, 2048, 2049, 4095, 4097])
@pytest.mark.parametrize("neurons", [64, 85, 128, 171, 256, 257])
def test_several_blocks_of_reciprocals(patches: int, neurons: int) -> None:
    """Blocks of 2048, 1536, 1024, 512 patches; of 512 as well where one number more a row would be too many."""
    x = torch.rand(1, 3, patches, generator=torch.Generator().manual_seed(patches))
    with threads(2):
        assert_as_unfolded(Windows(x), 1, neurons, 3, VARIANTS[0], seed=neurons)


@pytest.fixture(scope="module")
def large() -> tuple[Windows, Tensor, Tensor, Tensor]:
    """A Linear 2304 -> 64 on 4,096 points: two blocks of 2048 patches, tasks of milliseconds; and what comes out."""
    generator = torch.Generator().manual_seed(0)
    chunk = Windows(torch.rand(1, 2304, 4096, generator=generator))
    z, positive = sums(chunk, 1, 64, generator), torch.rand(1, 64, 2304, generator=generator) < 0.5
    expected = torch.zeros(1, 64, 2304)
    chunked.max_product(chunk, z, positive, expected)
    return chunk, z, positive, expected


@pytest.mark.parametrize("workers", [2, 3, 8])
def test_threads_that_overlap(large: tuple[Windows, Tensor, Tensor, Tensor], workers: int) -> None:
    """More threads than cores too: then one is interrupted in the middle of what another goes on with."""
    chunk, z, positive, expected = large
    with threads(workers):
        for _ in range(3):
            found = torch.zeros_like(expected)
            native.max_product(chunk, z, positive, found)
            assert torch.equal(found, expected)


@pytest.mark.parametrize("workers", [2, 3, 8])
def test_the_survey_by_threads_that_overlap(workers: int) -> None:
    z = torch.rand(16, 2, 256, 400, generator=torch.Generator().manual_seed(0))
    z = torch.where(z < 0.3, 0.0, z)
    counts, ends = 1 + (z > 0).sum((0, 3)), (z[z > 0].min().item(), z.max().item())
    with threads(workers):
        for _ in range(3):
            active = torch.ones(2, 256, dtype=torch.int64)
            assert native.survey(z, active) == ends
            assert torch.equal(active, counts)
