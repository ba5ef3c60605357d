"""The cases of the identities: that they reach everything that they are meant to, and the oracle that judges them."""

from collections import Counter

import numpy as np
import oracle as definitions
import pytest
import torch
from hypothesis import given
from theory.identities import PROPERTY
from torch import nn

from sipp_bench.compression.rounding import gamma, sensitivity_rounding
from theory_checks.cases import oracle
from theory_checks.cases.strategies import (
    INPUTS,
    KINDS,
    SCALES,
    SIGNS,
    WEIGHTS,
    LayerCase,
    NetworkCase,
    Residual,
    layer_cases,
    network_cases,
    random_layer_case,
    random_layer_cases,
    random_network_case,
)

pytestmark = pytest.mark.identity


def test_every_kind_of_case_occurs() -> None:
    cases = random_layer_cases(np.random.default_rng(0), 300)
    seen: Counter[str] = Counter()
    for case in cases:
        layer, x = case.layer, case.points
        weight = layer.weight.detach()
        seen[type(layer).__name__] += 1
        seen[str(weight.dtype)] += 1
        seen["bias"] += layer.bias is not None
        seen["many points"] += len(x) > 64
        seen["denormal weights"] += bool((weight[weight != 0].abs() < torch.finfo(weight.dtype).tiny).any())
        seen["denormal points"] += bool((x[x != 0].abs() < torch.finfo(x.dtype).tiny).any())
        seen["tiny"] += 0 < float(weight.abs().amax()) < 1e-28
        seen["huge"] += float(x.abs().amax()) > 1e29
        seen["no weight"] += not bool(weight.any())
        if not isinstance(layer, nn.Linear):
            seen["stride"] += max(layer.stride) > 1
            seen["dilation"] += max(layer.dilation) > 1
            seen["groups"] += layer.groups > 1
            seen["depthwise"] += 1 < layer.groups == layer.in_channels
            seen["padding numbers"] += not isinstance(layer.padding, str) and max(layer.padding) > 0
            if isinstance(layer.padding, str):
                seen[layer.padding] += 1
            seen[f"mode {layer.padding_mode}"] += 1
        else:
            seen["tokens"] += x.ndim == 3
        for option in (*WEIGHTS, *SCALES, *SIGNS, *INPUTS):
            seen[option] += option in case.label.partition("; ")[2]
        assert bool(torch.isfinite(weight).all())
        assert bool(torch.isfinite(x).all())
    missing = [name for name, count in seen.items() if count == 0]
    assert not missing
    assert {"Linear", "Conv1d", "Conv2d", "Conv3d", "same", "valid", "mode reflect", "mode circular"} <= set(seen)


def test_cases_come_from_their_seed_alone() -> None:
    before = torch.random.get_rng_state()
    one, again = (random_layer_cases(np.random.default_rng(4), 10) for _ in range(2))
    networks = [random_network_case(np.random.default_rng(4)) for _ in range(2)]
    assert torch.equal(torch.random.get_rng_state(), before)
    for a, b in zip(one, again, strict=True):
        assert a.label == b.label
        assert torch.equal(a.points, b.points)
        assert torch.equal(a.layer.weight, b.layer.weight)
    for a, b in zip(networks[0].model.parameters(), networks[1].model.parameters(), strict=True):
        assert torch.equal(a, b)


@PROPERTY
@given(layer_cases())
def test_the_copy_in_float64_is_exact(case: LayerCase) -> None:
    exact = case.in_float64()
    pairs = ((exact.layer.weight.detach(), case.layer.weight.detach()), (exact.points, case.points))
    for scaled, original in ((one, other.double()) for one, other in pairs):
        live = original != 0
        assert torch.equal(scaled != 0, live)
        if bool(live.any()):
            # One power of two: mantissas stay, exponents all move alike.
            (m, e), (m0, e0) = torch.frexp(scaled[live]), torch.frexp(original[live])
            assert torch.equal(m, m0)
            assert len((e - e0).unique()) == 1
            assert 0.5 <= float(scaled.abs().amax()) < 1


@PROPERTY
@given(layer_cases())
def test_the_oracle_is_the_definition(case: LayerCase) -> None:
    # Two oracles that share no code: torch's own layers here, numpy gathers in tests/oracle.py.
    exact = case.in_float64()
    layer, x, n = exact.layer, exact.points, case.size
    patches = definitions.patches(layer, x)
    assert np.array_equal(oracle.patches(layer, x).permute(1, 2, 0, 3).numpy(), patches)
    expected = definitions.sensitivity(layer.weight, patches)
    room = 2 * sensitivity_rounding(n, torch.float64)
    np.testing.assert_allclose(oracle.sensitivities(layer, x), expected.values.reshape(-1, n), rtol=room, atol=1e-300)
    z = definitions.quadrant_sums(layer.weight, patches)
    np.testing.assert_allclose(oracle.quadrant_sums(layer, x).detach(), z, rtol=2 * gamma(n), atol=1e-300)


@PROPERTY
@given(network_cases())
def test_networks(case: NetworkCase) -> None:
    with torch.no_grad():
        logits = case.model(case.points)
    assert logits.shape == (len(case.points), 3)
    assert not case.model.training
    residual = next(module for module in case.model.modules() if isinstance(module, Residual))
    inputs = oracle.layer_inputs(case.model, case.points)
    calls = [len(x) // len(case.points) for _, x in inputs.values()]
    assert calls == [1, residual.times, 1, 1]
    # The inputs recorded give the outputs: the last layer's are the logits.
    last, x = list(inputs.values())[-1]
    assert torch.equal(last(x), logits)


def test_recording_leaves_a_network_as_it_was() -> None:
    case = random_network_case(np.random.default_rng(2))
    case.model.train()
    modes = [module.training for module in case.model.modules()]
    oracle.layer_inputs(case.model, case.points)
    assert [module.training for module in case.model.modules()] == modes
    assert not any(module._forward_hooks for module in case.model.modules())


@pytest.mark.parametrize("kind", KINDS)
def test_kinds(kind: str) -> None:
    case = random_layer_case(np.random.default_rng(0), kind)
    assert kind in str(case) or type(case.layer).__name__.lower() == kind
