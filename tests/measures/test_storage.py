"""File sizes: what is counted holds the whole network, and is as long as its parts say."""

import gc
import tracemalloc

import numpy as np
import pytest
import safetensors.torch
import scipy.sparse
import torch
from hypothesis import given
from hypothesis import strategies as st
from samples import build, masked, small_network
from torch import Tensor, nn

import sipp_bench as sb
from sipp_bench.compression.changes import Masked
from sipp_bench.measures.storage import file_sizes


def sparse(shape: tuple[int, ...], keep: float, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(shape, generator=generator) < keep
    return torch.where(mask, torch.randn(shape, generator=generator), 0.0), mask


SHAPES = st.lists(st.integers(1, 6), min_size=2, max_size=4).map(tuple)


@given(SHAPES, st.floats(0, 1), st.integers(0, 99))
def test_csr_is_scipys(shape: tuple[int, ...], keep: float, seed: int) -> None:
    weight, mask = sparse(shape, keep, seed)
    found = Masked(weight, mask).encodings()["csr"]
    expected = scipy.sparse.csr_array(weight.flatten(1).numpy())
    np.testing.assert_array_equal(found["values"].numpy(), expected.data)
    np.testing.assert_array_equal(found["columns"].numpy(), expected.indices)
    np.testing.assert_array_equal(found["offsets"].numpy(), expected.indptr)
    assert found["columns"].dtype == found["offsets"].dtype == torch.int32


@given(SHAPES, st.floats(0, 1), st.integers(0, 99))
def test_bitmap_holds_the_weight(shape: tuple[int, ...], keep: float, seed: int) -> None:
    weight, mask = sparse(shape, keep, seed)
    found = Masked(weight, mask).encodings()["bitmap"]
    bits = np.unpackbits(found["bits"].numpy(), count=weight.numel()).astype(bool)
    restored = torch.zeros(weight.numel())
    restored[torch.from_numpy(bits)] = found["values"]
    assert torch.equal(restored.reshape(shape), weight)
    assert found["bits"].numel() == -(-weight.numel() // 8)


def contents(size: int, parts: int) -> range:
    """The possible bytes of `parts` arrays in a file of `size`, whose header takes 40 to 150 bytes an array."""
    return range(size - 8 - 150 * parts, size - 8 - 40 * parts)


def test_sizes_by_hand() -> None:
    network = nn.Linear(200, 100)
    mask = torch.zeros(100, 200, dtype=torch.bool)
    mask[:, :10] = True
    sizes = file_sizes(network, masked(network, {"weight": mask}))
    assert 4 * (20000 + 100) in contents(sizes.dense, 2)
    assert 4 * (1000 + 1000 + 101 + 100) in contents(sizes.csr, 4)
    assert 4 * (1000 + 100) + 20000 // 8 in contents(sizes.bitmap, 3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_of_a_pruned_network(dtype: torch.dtype) -> None:
    network = build(small_network).to(dtype)
    pruned = sb.prune(network, torch.rand(20, 2, 6, 6, dtype=dtype), method="magnitude", keep=0.2)
    sizes = file_sizes(pruned.model, pruned.changes)
    assert sizes.dense == len(safetensors.torch.save(dict(network.state_dict())))
    assert file_sizes(pruned.model, {}).bitmap == sizes.dense, "without masks nothing is sparse"


@pytest.mark.parametrize("keep", [0.02, 0.5, 1.0])
def test_what_each_encoding_is_good_for(keep: float) -> None:
    network = nn.Linear(300, 300, bias=False)
    _, mask = sparse((300, 300), keep, 0)
    sizes = file_sizes(network, masked(network, {"weight": mask}))
    # One bit a weight against 32 for each kept one: a bitmap is smaller than CSR from 1/32 upwards.
    assert (sizes.bitmap < sizes.csr) == (keep > 1 / 32)
    assert (sizes.bitmap < sizes.dense) == (keep < 31 / 32)
    assert (sizes.csr < sizes.dense) == (keep < 0.499)


def test_tied_weights_buffers_and_half_precision() -> None:
    network = nn.Sequential(nn.Linear(40, 40, bias=False), nn.BatchNorm1d(40), nn.Linear(40, 40, bias=False)).half()
    network[2].weight = network[0].weight
    network.register_buffer("unsaved", torch.zeros(10**5), persistent=False)
    sizes = file_sizes(network, masked(network, {"0.weight": torch.eye(40, dtype=torch.bool)}))
    assert 2 * (1600 + 4 * 40) + 8 in contents(sizes.dense, 6)
    assert 2 * (40 + 4 * 40) + 8 + 200 in contents(sizes.bitmap, 7)


def test_no_memory_is_kept_for_a_length_that_is_new() -> None:
    """9 KB a cell were, and long runs grew by them: each number of kept weights is a new length of a tensor."""
    network, mask = nn.Linear(100, 20, bias=False), torch.zeros(20, 100, dtype=torch.bool)

    def measure(kept: range) -> None:
        for number in kept:
            mask.view(-1)[:number] = True
            file_sizes(network, masked(network, {"weight": mask}))

    measure(range(1, 20))
    gc.collect()
    tracemalloc.start()
    measure(range(20, 60))
    gc.collect()
    grown, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert grown < 40 * 1000
