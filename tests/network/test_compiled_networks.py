"""Networks of torch.compile: whole, in part, in place, inside their own forward; measured and pruned as uncompiled."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from samples import build, signed
from torch import Tensor, nn

import sipp_bench as sb

X = signed(9, 2, 6, 6)


class Network(nn.Module):
    """A convolution and two linear layers, of which one is inside a function that may be compiled."""

    def __init__(self, compiled_function: bool = False) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten())
        self.second = nn.Linear(64, 5)
        self.function: Callable[[Tensor], Tensor] = lambda x: self.second(x).tanh()
        if compiled_function:
            self.function = torch.compile(self.function, backend="eager")
        self.third = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.third(self.function(self.first(x)))


def whole() -> nn.Module:
    return torch.compile(Network(), backend="eager")  # type: ignore[return-value]  # it gives a module for a module


def part() -> nn.Module:
    network: Any = Network()
    network.first = torch.compile(network.first, backend="eager")
    return network  # type: ignore[no-any-return]


def in_place() -> nn.Module:
    network = Network()
    network.compile(backend="eager")
    return network


FORMS = {"whole": whole, "part": part, "in place": in_place, "function": lambda: Network(True)}


@pytest.mark.parametrize("used_before", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_a_compiled_network_is_measured_and_pruned_as_if_it_were_not(form: str, used_before: bool) -> None:
    """The compiler's code calls nothing that a trace could see, and compiling the trace itself ends the process.

    Names are the network's own, which carry `_orig_mod` where torch put it. All tests take the backend that compiles
    to Python: which one it is does not matter, since none of them runs while a trace is on.
    """
    plain, network = build(Network), build(FORMS[form]).eval()
    if used_before:
        network(X)
    expected, found = sb.measure_sensitivity(plain, X), sb.measure_sensitivity(network, X)
    assert [name.replace("_orig_mod.", "") for name in found] == list(expected)
    assert set(found) <= {name for name, _ in network.named_parameters()}
    for one, other in zip(expected.values(), found.values(), strict=True):
        assert torch.equal(one.values, other.values)
        assert torch.equal(one.active, other.active)
    assert not found.skipped
    for method in ("sipp-hybrid", "wanda", "snip"):
        one, other = (sb.prune(model, X, method=method, keep=0.5) for model in (plain, network))
        assert [torch.equal(a, b) for a, b in zip(one.masks.values(), other.masks.values(), strict=True)] == [True] * 3
        with torch.no_grad():
            # Compiled and plain code may round otherwise, at most in each of three sums.
            torch.testing.assert_close(other.model.eval()(X), one.model.eval()(X), rtol=1e-4, atol=1e-5)


def test_the_compiler_compiles_again_after_a_trace() -> None:
    runs: list[int] = []

    def backend(graph: Any, inputs: Any) -> Any:
        runs.append(1)
        return graph.forward

    layer = nn.Linear(3, 2)
    network: Any = torch.compile(layer, backend=backend)
    sb.measure_sensitivity(network, signed(4, 3))
    assert not runs
    network(signed(4, 3))
    assert runs
