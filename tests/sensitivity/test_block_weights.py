"""Block weights c_b: the simple ones by hand, "downstream" against a Jacobian of the whole network."""

from collections.abc import Callable
from typing import Any

import oracle
import pytest
import torch
import torch.nn.functional as F
from samples import build, linear, signed, small_network
from torch import Tensor, nn

import sipp_bench as sb
from sipp_bench.errors import ModelError, OptionError
from sipp_bench.sensitivity.block_weights import block_weights, check_block_weights


def downstream(network: nn.Module, x: Tensor, batch_size: int = 64) -> dict[str, Tensor]:
    return block_weights("downstream", network, x, sb.measure_sensitivity(network, x), batch_size)


def expected_square(z: Any, jacobian: Tensor) -> Tensor:
    """Sum over patches and tau of (Z |d logits / d y|)^2.

    z: (patches, neurons, 2, 2); jacobian: (logits, patches, neurons).
    """
    square = (jacobian**2).sum(0)[:, :, None, None] * torch.from_numpy(z) ** 2
    return square.sum((0, 3))


def against_jacobian(network: nn.Sequential, x: Tensor) -> dict[str, Tensor]:
    """c_b of every layer of a Sequential, one point and one layer at a time, through torch.autograd.functional."""
    result = {}
    for index, layer in enumerate(network):
        if not hasattr(layer, "weight"):
            continue
        head, tail = network[:index], network[index + 1 :]
        total = torch.zeros(len(layer.weight), 2, dtype=torch.float64)
        for point in x.split(1):
            with torch.no_grad():
                a = head(point)
                y = layer(a)
            # A copy, as activations in place must not change the tensor that the Jacobian is taken at.
            jacobian = torch.autograd.functional.jacobian(lambda v, rest=tail: rest(v.clone()).flatten(), y)
            neurons = y.shape[-1] if isinstance(layer, nn.Linear) else y.shape[1]
            if isinstance(layer, nn.Linear):
                flat = jacobian.reshape(len(jacobian), -1, neurons)
            else:
                flat = jacobian.reshape(len(jacobian), neurons, -1).transpose(1, 2)
            total += expected_square(oracle.quadrant_sums(layer.weight, oracle.patches(layer, a))[0], flat)
        result[f"{index}.weight"] = (total / len(x)).sqrt()
    return result


NETWORKS: dict[str, tuple[Callable[[], nn.Sequential], tuple[int, ...]]] = {
    "mlp": (lambda: nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)), (4,)),
    "tokens": (lambda: nn.Sequential(nn.Linear(4, 6), nn.GELU(), nn.Flatten(), nn.Linear(18, 2)), (3, 4)),
    "convolutions, in place": (small_network, (2, 6, 6)),
}


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("name", NETWORKS)
def test_downstream_weights_are_those_of_the_jacobian(name: str, frozen: bool) -> None:
    make, shape = NETWORKS[name]
    network = build(make).double().eval().requires_grad_(not frozen)
    x = signed(7, *shape).double()
    expected = against_jacobian(network, x)
    with torch.no_grad():
        found = [downstream(network, x, batch_size) for batch_size in (3, 64)]
    for weights in found:
        assert set(weights) == set(expected)
        for name, c in weights.items():
            assert c.dtype == torch.float64
            # In float64 the two agree up to rounding, which no tolerance here needs to be tight for.
            torch.testing.assert_close(c, expected[name], rtol=1e-9, atol=1e-12)
    assert all(parameter.grad is None for parameter in network.parameters())


def test_a_layer_used_twice_counts_at_both_places() -> None:
    layer = linear([[2.0, -1.0], [1.0, 1.0]], torch.float64)
    network = nn.Sequential(layer, nn.Identity(), layer)
    x = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    # First call: a = (1, 0): Z^{++} = (2, 1); y = (2, 1); d logits / d y = W, columns of squared norms 5 and 2.
    # Second: a = (2, 1): Z of positive blocks (4, 3), of negative ones (1, 0); d logits / d y = identity.
    expected = torch.tensor([[4 * 5 + 16, 0 + 1], [1 * 2 + 9, 0]], dtype=torch.float64).sqrt()
    torch.testing.assert_close(downstream(network, x)["0.weight"], expected, rtol=1e-12, atol=0)


def test_attentions_projections_have_weights_too() -> None:
    class Attention(nn.Module):
        """Logits are the mean over tokens: the derivative at out_proj's output is the identity over the tokens."""

        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(4, 1, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.attention(x, x, x, need_weights=False)[0].mean(1)

    network, x = build(Attention).double(), signed(3, 5, 4).double()
    layer = network.attention

    def attended(projected: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(*projected.chunk(3, -1))

    def logits(projected: Tensor) -> Tensor:
        return layer.out_proj(attended(projected)).mean(0)

    first = torch.zeros(12, 2, dtype=torch.float64)
    last = torch.zeros(4, 2, dtype=torch.float64)
    for point in x:
        projected = F.linear(point, layer.in_proj_weight, layer.in_proj_bias).detach()
        z = oracle.quadrant_sums(layer.in_proj_weight, oracle.array(point)[None, :, None])[0]
        first += expected_square(z, torch.autograd.functional.jacobian(logits, projected))
        z = oracle.quadrant_sums(layer.out_proj.weight, oracle.array(attended(projected))[None, :, None])[0]
        last += expected_square(z, (torch.eye(4, dtype=torch.float64) / 5)[:, None].expand(4, 5, 4))
    found = downstream(network, x)
    expected = {"attention.in_proj_weight": first, "attention.out_proj.weight": last}
    assert set(found) == set(expected)
    for name, total in expected.items():
        torch.testing.assert_close(found[name], (total / 3).sqrt(), rtol=1e-9, atol=1e-12)


def test_many_logits_are_estimated_within_what_random_signs_allow() -> None:
    """16 random signs e_r estimate |J|^2 by the mean of (J . e_r)^2.

    Unbiased; with independent signs Var((J . e)^2) = 2 (|J|^4 - sum J_k^4) <= 2 |J|^4. Over N points with signs of
    their own, the sum of Z^2 |J|^2 has a relative standard deviation of at most sqrt(2 / (16 N)) where all points
    weigh the same, as they do here: one input, N times. N = 200: 0.025; 6 of them, and the root halves it: 0.075.
    """
    network = build(lambda: nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 50)))
    x = signed(1, 3).double().expand(200, 3)
    network = network.double()
    expected = against_jacobian(network, x[:1])
    found = downstream(network, x)
    assert not torch.allclose(found["0.weight"], expected["0.weight"], rtol=1e-6)
    for name, c in found.items():
        torch.testing.assert_close(c, expected[name], rtol=0.075, atol=1e-12)
    before = torch.get_rng_state()
    again = downstream(network, x)
    assert all(torch.equal(found[name], again[name]) for name in found)
    assert torch.equal(torch.get_rng_state(), before)


def test_parts_that_do_not_reach_the_logits_weigh_nothing() -> None:
    class Branch(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.lost = nn.Linear(3, 2), nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            self.lost(x)
            return F.relu(self.used(x))

    found = downstream(Branch(), signed(5, 3))
    assert not found["lost.weight"].any()
    assert found["used.weight"].any()


def test_uniform_and_layer_weights() -> None:
    network, x = build(small_network), signed(3, 2, 6, 6)
    sens = sb.measure_sensitivity(network, x)
    uniform, layer = (block_weights(kind, network, x, sens) for kind in ("uniform", "layer"))  # type: ignore[arg-type]  # literals
    for name, neurons in {"0.weight": 4, "2.weight": 4, "6.weight": 6, "8.weight": 3}.items():
        assert uniform[name].tolist() == [[1.0, 1.0]] * neurons
        assert layer[name].tolist() == [[1 / neurons] * 2] * neurons
        assert uniform[name].dtype == layer[name].dtype == torch.float64


def test_what_is_refused() -> None:
    with pytest.raises(OptionError, match=r"uniform, layer, downstream.*'steep'"):
        check_block_weights("steep")

    class Several(nn.Module):
        def __init__(self, pick: Callable[[Tensor], Any]) -> None:
            super().__init__()
            self.layer, self.pick = nn.Linear(3, 2), pick

        def forward(self, x: Tensor) -> Any:
            return self.pick(self.layer(x))

    x = signed(4, 3)
    for pick in (lambda y: (y, y), lambda y: {"logits": y}, lambda y: y.sum()):
        with pytest.raises(ModelError, match="one tensor of logits"):
            downstream(Several(pick), x)
    network = nn.Linear(3, 2)
    with torch.inference_mode(), pytest.raises(OptionError, match="inference_mode"):
        downstream(network, x)
