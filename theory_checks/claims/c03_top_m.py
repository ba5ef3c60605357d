"""C3: keeping the largest c_b s minimises the summed bound."""

import functools
import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sipp_bench.compression.rounding import error_rounding, sensitivity_rounding, sensitivity_underflow
from theory_checks.cases import oracle
from theory_checks.evidence.finding import Effort
from theory_checks.evidence.identity import Comparison, IdentityClaim, close
from theory_checks.subjects.subject import Subject

_WEIGHTS = 12


@dataclass(frozen=True)
class TinyNetwork:
    """A network of `_WEIGHTS` weights, so that every choice of kept weights can be tried; a budget and c_b."""

    model: nn.Module
    points: Tensor
    budget: int
    weights: str
    label: str

    def __str__(self) -> str:
        return f"{self.label}, {len(self.points)} points, {self.budget} weights kept, block weights {self.weights}"


class TopM(IdentityClaim[TinyNetwork]):
    """Keeping the B largest c_b s over all blocks of the network minimises sum_b c_b sum_{P_b} s, the uncapped sum of
    C2's bounds, among all choices of B weights.

    Proof: the sum is that of c_b s over dropped weights, linear in the choice. True for the uncapped sum and for the
    bound only: neither min(1, .) nor the error itself is minimised.

    Trial: `sipp-det` on small networks against every subset of B weights, with s from the oracle; and the guarantee
    that comes with the result, against the errors on S.
    """

    number = "C3"
    title = "Top-m minimises the summed bound"
    statement = "Keeping the B largest c_b s over all blocks minimises sum_b c_b sum over dropped s (uncapped)."
    rejects = ("bound halved", "largest magnitudes kept", "every layer pruned alike", "block weights ignored")

    def cases(self, effort: Effort, rng: np.random.Generator) -> Iterable[TinyNetwork]:
        """Networks whose layers differ in width, so that c_b matters, with all three kinds of block weights."""
        kinds = itertools.cycle(["uniform", "layer", "downstream"])
        for weights, _ in zip(kinds, range(effort.cases), strict=False):
            yield _tiny_network(rng, weights)

    def compare(self, subject: Subject, case: TinyNetwork) -> Iterator[Comparison]:
        """The method's choice against all others, its count, and its guarantee."""
        layers = {f"{name}.weight": entry for name, entry in oracle.layer_inputs(case.model, case.points).items()}
        s = {name: oracle.sensitivities(*entry) for name, entry in layers.items()}
        fitted = subject.fit(case.model, case.points, "sipp-det", weights=case.weights)
        c = _block_weights(case, layers, fitted)
        costs = torch.cat([(s[name] * c[name]).flatten() for name in layers])
        pruned = fitted.prune(case.budget / _WEIGHTS)
        kept = torch.cat([pruned.masks[name].flatten() for name in layers])
        alive = torch.cat([layer.weight.detach().flatten() != 0 for layer, _ in layers.values()])
        yield close("B weights kept", kept.sum(), min(case.budget, int(alive.sum())), 0)
        choices = _choices()
        best = (~choices[choices.sum(1) == case.budget] * costs).sum(1).min()
        # The method ranks its own s: each choice's sum is off by the rounding of the s in it, at most that of all.
        n, dtype = max(layer.weight[0].numel() for layer, _ in layers.values()), case.points.dtype
        room = 2 * sensitivity_rounding(n, dtype)
        yield Comparison("no choice of B weights has a smaller sum", costs[~kept].sum(), best, room * costs.sum())
        for name, (layer, x) in layers.items():
            rows = s[name] * ~pruned.masks[name].flatten(1)
            positive = layer.weight.detach().flatten(1) > 0
            expected = torch.stack([(rows * positive).sum(1), (rows * ~positive).sum(1)], 1).clamp(max=1)
            epsilon = pruned.guarantee.epsilon[name]
            slack = room * expected + n * sensitivity_underflow(dtype)
            yield close("guarantee: min(1, sum_P s)", epsilon, expected, slack)
            r = oracle.relative_errors(layer, x, dict(pruned.model.named_parameters())[name].detach())
            yield Comparison("r <= guarantee", r.amax((0, 1, 4)), subject.shrink * epsilon, slack + error_rounding(n))


CLAIM = TopM()


@functools.cache
def _choices() -> Tensor:
    """All masks of kept weights."""
    return torch.tensor(list(itertools.product([False, True], repeat=_WEIGHTS)))


def _block_weights(
    case: TinyNetwork, layers: Mapping[str, tuple[oracle.Layer, Tensor]], fitted: Any
) -> dict[str, Tensor]:
    """c of each weight, (M, n): by definition where that is simple, else as the method measured it."""
    c = {}
    for name, (layer, _) in layers.items():
        neurons = layer.weight.shape[0]
        if case.weights == "downstream":
            blocks = fitted.observation.block_weights[name]
            c[name] = torch.where(layer.weight.detach().flatten(1) > 0, blocks[:, :1], blocks[:, 1:])
        else:
            value = 1.0 if case.weights == "uniform" else 1 / neurons
            c[name] = torch.full((neurons, 1), value, dtype=torch.float64)
    return c


def _tiny_network(rng: np.random.Generator, weights: str) -> TinyNetwork:
    dtype = (torch.float64, torch.float32)[int(rng.integers(2))]
    points = int(rng.integers(1, 6))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(rng.integers(2**31)))
        first: oracle.Layer
        rest: tuple[nn.Module, ...]
        match int(rng.integers(3)):
            case 0:
                first, rest = nn.Linear(2, 4), (nn.ReLU(), nn.Linear(4, 1))
                x = torch.randn(points, 2)
            case 1:
                first, rest = nn.Linear(3, 3), (nn.Tanh(), nn.Linear(3, 1))
                x = torch.randn(points, 3)
            case _:
                first = nn.Conv1d(1, 3, 2, padding=1)
                rest = (nn.ReLU(), nn.MaxPool1d(2), nn.Flatten(), nn.Linear(6, 1))
                x = torch.randn(points, 1, 3)
        with torch.no_grad():
            if rng.random() < 0.3:
                first.weight[0] = 0
            # Layers of unlike magnitudes, which s does not see.
            first.weight.mul_(float(10 ** rng.uniform(-2, 2)))
    model = nn.Sequential(first, *rest).to(dtype).eval()
    budget = int(rng.integers(0, _WEIGHTS + 1))
    return TinyNetwork(model, x.to(dtype), budget, weights, f"{first}, {', '.join(str(part) for part in rest)}")
