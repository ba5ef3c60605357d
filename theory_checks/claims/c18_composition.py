"""C18: relative errors of layers compose, by the cancellation factor."""

import copy
import math
from collections.abc import Iterable, Iterator
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from sipp_bench.compression.rounding import gamma
from theory_checks.cases import oracle
from theory_checks.certificate.composition import cancellation
from theory_checks.claims.c07_network_certificate import PrunedCase
from theory_checks.evidence.finding import Effort, Finding, Kind, Verdict
from theory_checks.evidence.identity import Comparison, IdentityClaim
from theory_checks.subjects.subject import Subject


class Composition(IdentityClaim[PrunedCase]):
    """ReLU networks without batch-norm (fold it), the bias kept. If a layer's inputs have entrywise relative error xi
    and its blocks have r <= eps on the true inputs, its outputs have relative error

        xi' <= Delta (xi + eps + xi eps),   Delta the largest of (sum_j |w_ij a_j| + |b_i|) / |y_i + b_i|

    over all neurons and patches, as long as xi' <= 1: then no output changes its sign, and ReLU and pooling hand on
    what they get.

    Proof: a relative error of at most (1 + xi)(1 + eps) - 1 in every |w_ij a_j| is one of at most that times
    sum_j |w_ij a_j| in y_i. Tight: one layer whose positive blocks grow and whose negative ones shrink by eps; and
    layers without a negative number that all grow.

    On networks that are trained Delta has a heavy tail and the claim is useless; here they are built so that it is not.
    """

    number = "C18"
    title = "Composition of layers"
    statement = "xi' <= Delta (xi + eps + xi eps) for the relative error of a layer's outputs, while xi' <= 1."
    kind = Kind.CONDITIONAL
    assumption = "xi' <= 1 in every layer, Delta taken over all neurons and patches; ReLU; batch-norm folded"
    rejects = (
        "bound halved",
        "composition without cancellation",
        "composition of the inputs' error alone",
        "composition without the product",
    )

    def cases(self, effort: Effort, rng: np.random.Generator) -> Iterable[PrunedCase]:
        """One layer, chains without negative numbers, and chains with few of them."""
        for index in range(effort.cases):
            yield (_one_layer, _growing_chain, _mild_chain)[index % 3](rng)

    def compare(self, subject: Subject, case: PrunedCase) -> Iterator[Comparison]:
        """Layer by layer and point by point, for as long as the composed error is at most 1."""
        pruned_layers = dict(case.pruned.named_modules())
        true, moved = (oracle.layer_inputs(network, case.points) for network in (case.model, case.pruned))
        xi = torch.zeros(len(case.points), dtype=torch.float64)
        for name, (layer, x) in true.items():
            weight = pruned_layers[name].weight
            assert isinstance(weight, Tensor)
            eps = oracle.relative_errors(layer, x, weight.detach()).flatten(1).amax(1)
            # The rounding of both runs: gamma of every |w_ij a_j| each, and (1 + xi)(1 + eps) is at most 4.
            eps = eps + 8 * gamma(layer.weight[0].numel() + 4)
            delta = cancellation(layer, x).flatten(1).amax(1)
            xi = torch.as_tensor(subject.compose(delta, xi, eps), dtype=torch.float64)
            spoken = ~(xi > 1)  # NaN is spoken of, and violates
            y, yhat = _outputs(layer, x, layer.weight), _outputs(layer, moved[name][1], weight)
            error = (yhat - y).abs()
            relative = torch.where(error > 0, error / y.abs(), 0.0).flatten(1).amax(1)
            yield Comparison("xi' <= Delta (xi + eps + xi eps)", relative[spoken], subject.shrink * xi[spoken])
            xi = torch.where(spoken, xi, math.inf)

    def check(self, subject: Subject, effort: Effort, seed: int) -> Finding:
        """As for the identities, with what the assumption did: here it is met by construction."""
        finding = super().check(subject, effort, seed)
        if finding.verdict is Verdict.HOLDS:
            detail = f"{finding.detail} xi' <= 1 by construction here; on trained networks it seldom is."
            return replace(finding, detail=detail)
        return finding


CLAIM = Composition()


def _outputs(layer: oracle.Layer, x: Tensor, weight: Tensor) -> Tensor:
    y = oracle.apply_layer(layer, x, weight.detach())
    return y if layer.bias is None else y + layer.bias.detach().double()


def _scaled_blocks(model: nn.Module, plus: float, minus: float) -> nn.Module:
    """A copy with all positive weights times `plus` and all negative ones times `minus`."""
    pruned = copy.deepcopy(model)
    with torch.no_grad():
        for name, parameter in pruned.named_parameters():
            if name.endswith("weight"):
                parameter.copy_(torch.where(parameter > 0, plus * parameter, minus * parameter))
    return pruned


def _chain(rng: np.random.Generator) -> tuple[nn.Sequential, Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(rng.integers(2**31)))
        if rng.random() < 0.5:
            layers: list[nn.Module] = [nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 5), nn.ReLU(), nn.Linear(5, 3)]
            x = torch.rand(4, 6)
        else:
            pool = nn.MaxPool2d(2) if rng.random() < 0.5 else nn.AvgPool2d(2)
            layers = [nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), pool, nn.Flatten(), nn.Linear(16, 3)]
            x = torch.rand(4, 2, 4, 4)
    return nn.Sequential(*layers).double(), x.double()


def _one_layer(rng: np.random.Generator) -> PrunedCase:
    """Signs of all kinds: y is small where much cancels, and eps so small that xi' stays below 1."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(rng.integers(2**31)))
        layer = nn.Linear(6, 4, bias=False).double()
        x = torch.rand(3, 6).double()
    eps = 0.9 / float(cancellation(layer, x).max())
    return PrunedCase(layer, _scaled_blocks(layer, 1 + eps, 1 - eps), x, f"one layer, eps {eps:.3g}")


def _growing_chain(rng: np.random.Generator) -> PrunedCase:
    """No negative number, no bias: Delta is 1, and errors grow to (1 + eps)^layers - 1."""
    model, x = _chain(rng)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.abs_().mul_(0 if name.endswith("bias") else 1)
    eps = float(rng.uniform(0.05, 0.2))
    return PrunedCase(model, _scaled_blocks(model, 1 + eps, 1.0), x, f"growing chain, eps {eps:.3g}")


def _mild_chain(rng: np.random.Generator) -> PrunedCase:
    """Few and small negative numbers, biases, and single weights dropped."""
    model, x = _chain(rng)
    pruned = copy.deepcopy(model)
    with torch.no_grad():
        for parameter, other in zip(model.parameters(), pruned.parameters(), strict=True):
            signs = torch.from_numpy(np.where(rng.random(tuple(parameter.shape)) < 0.1, -0.1, 1.0))
            parameter.copy_(parameter.abs() * signs)
            keep = torch.from_numpy(rng.random(tuple(parameter.shape)) > 0.02)
            other.copy_(parameter * keep if parameter.ndim > 1 else parameter)
    return PrunedCase(model, pruned, x, "mild chain")
