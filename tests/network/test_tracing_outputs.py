"""A traced network computes what it computes without a trace: the same products, the same bits."""

from typing import Any

import pytest
import torch
from samples import build, signed, small_network
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from traced import Functional, cross, encoder_layer, trace_calls


def kinds(name: str) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """A network of this kind in eval mode, and what it is called with."""
    q, kv = signed(3, 5, 6), signed(3, 4, 6, seed=1)
    make: Any
    make, args = {
        "small": (small_network, (signed(7, 2, 6, 6),)),
        "functional": (Functional, (signed(7, 3),)),
        "self": (cross, (q, q, q)),
        "no bias": (lambda: cross(bias=False), (q, kv, kv)),
        "separate": (cross, (q, q.clone(), q.clone())),
        "encoder": (encoder_layer, (signed(3, 5, 8),)),
        "decoder": (lambda: nn.TransformerDecoderLayer(6, 2, 9, batch_first=True), (q, kv)),
        "cross": (cross, (q, kv, kv)),
        "query is key": (cross, (q, q, q.clone())),
        "kdim": (lambda: cross(kdim=8, vdim=3), (q, signed(3, 4, 8), signed(3, 4, 3))),
        "bias_kv": (lambda: cross(add_bias_kv=True, add_zero_attn=True), (q, kv, kv)),
    }[name]
    return build(make).eval(), args


KINDS = (
    "small", "functional", "self", "no bias", "separate", "encoder", "decoder", "cross", "query is key", "kdim",
    "bias_kv",
)  # fmt: skip


class Products(TorchDispatchMode):
    """Notes the shape of every matrix product and convolution, except products with an identity matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.made: list[tuple[str, list[tuple[int, ...]]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        tensors = [arg for arg in args if isinstance(arg, Tensor)]
        if name in ("addmm", "mm", "bmm", "baddbmm", "convolution"):
            second = tensors[-1]
            if second.ndim != 2 or not torch.equal(second, torch.eye(*second.shape)):
                self.made.append((name, [tuple(tensor.shape) for tensor in tensors]))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", KINDS)
def test_a_trace_makes_the_products_of_the_untraced_network(name: str) -> None:
    """What makes the bits equal below, whichever library makes the products."""
    network, args = kinds(name)
    with Products() as plain:
        network(*args)
    with Products() as traced:
        trace_calls(network, *args)
    assert plain.made == traced.made


@pytest.mark.parametrize("name", KINDS)
def test_outputs_under_a_trace_are_the_untraced_ones_bit_for_bit(name: str) -> None:
    network, args = kinds(name)
    # With gradients on, torch does not take its fused path, whose rounding differs.
    plain = network(*args)
    _, traced = trace_calls(network, *args)
    pairs = [(plain, traced)] if isinstance(plain, Tensor) else list(zip(plain, traced, strict=True))
    for one, other in pairs:
        assert torch.equal(one, other)
