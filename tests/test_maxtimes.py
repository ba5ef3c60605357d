"""The max-times kernel: every backend against the definition by loops, at every tile size and for all groups."""

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sipp_bench import maxtimes
from sipp_bench.maxtimes import chunked, reference

BACKENDS = {"chunked": chunked.max_product, "reference": reference.max_product, "default": maxtimes.max_product}


def random_case(groups: int, p: int, m: int, n: int, dtype: torch.dtype, seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def numbers(*shape: int) -> Tensor:
        values = torch.rand(shape, generator=generator, dtype=dtype)
        return torch.where(torch.rand(shape, generator=generator) < 0.3, 0.0, values).to(dtype)

    return {
        "a": numbers(groups, p, n),
        "r_plus": numbers(groups, p, m),
        "r_minus": numbers(groups, p, m),
        "positive": torch.rand((groups, m, n), generator=generator) < 0.5,
        "out": numbers(groups, m, n) / 2,
    }


def by_loops(a: Tensor, r_plus: Tensor, r_minus: Tensor, positive: Tensor, out: Tensor) -> Tensor:
    result = out.clone()
    for g, i, j in itertools.product(*map(range, out.shape)):
        r = r_plus if positive[g, i, j] else r_minus
        # One product of two numbers, rounded once, in every backend: equal to the last bit.
        result[g, i, j] = max([result[g, i, j], *(a[g, p, j] * r[g, p, i] for p in range(a.shape[1]))])
    return result


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("tile", [1, 7, 64, 1 << 17])
@settings(deadline=None, max_examples=15)
@given(
    st.integers(1, 3), st.integers(0, 5), st.integers(1, 4), st.integers(1, 5),
    st.sampled_from([torch.float32, torch.float64]), st.integers(0, 999),
)  # fmt: skip
def test_backends_do_what_the_definition_says(
    backend: str, tile: int, groups: int, p: int, m: int, n: int, dtype: torch.dtype, seed: int
) -> None:
    if p == 0 and backend == "reference":
        p = 1  # a maximum over nothing
    case: dict[str, Any] = random_case(groups, p, m, n, dtype, seed)
    expected = by_loops(**case)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunked, "_TILE", {"cpu": tile})
        BACKENDS[backend](**case)
    assert torch.equal(case["out"], expected)


def test_a_part_of_a_larger_result_is_filled_in_place() -> None:
    case: dict[str, Any] = random_case(1, 4, 6, 5, torch.float32, 0)
    whole = torch.zeros(1, 9, 5)
    chunked.max_product(case["a"], case["r_plus"], case["r_minus"], case["positive"], whole[:, 2:8])
    expected = by_loops(**case | {"out": torch.zeros(1, 6, 5)})
    assert torch.equal(whole[:, 2:8], expected)
    assert not whole[:, :2].any()
    assert not whole[:, 8:].any()
