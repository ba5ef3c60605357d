"""C2: the error of dropping weights, for certain, on every point of S."""

from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch import Tensor

from sipp_bench.compression.rounding import error_rounding, sensitivity_rounding, sensitivity_underflow
from theory_checks.cases import oracle
from theory_checks.cases.strategies import LayerCase, NetworkCase, random_layer_cases, random_network_case
from theory_checks.evidence.finding import Effort
from theory_checks.evidence.identity import Comparison, IdentityClaim
from theory_checks.subjects.subject import Subject


class DeterministicError(IdentityClaim[LayerCase | NetworkCase]):
    """Drop the set P of a block and keep the rest as it is: for every x in S, p and tau,
    0 <= Z - Zhat <= (sum_P s) Z, hence r <= eps_det = min(1, sum_P s).

    Proof: Z - Zhat = (sum_P g) Z, with 0 <= g <= s for every (x, p, tau) of S, and the g of a block add up to 1.

    Looked for: the P that comes closest. Over all P the ratio of error to bound is largest for a single weight, the
    one with the largest g / s; among the larger sets, for those whose weights all have their maximum at one
    (x, p, tau). Both, and random sets, are tried on every case.
    """

    number = "C2"
    title = "Deterministic error of dropping"
    statement = (
        "For every x in S, p and tau: 0 <= Z - Zhat <= (sum over the dropped P of s) Z, so r <= min(1, sum_P s)."
    )
    rejects = (
        "magnitudes for sensitivities",
        "mean over points",
        "first half of S only",
        "first batch of S only",
        "one sign zeroed",
        "first patch only",
        "sensitivities halved",
        "negative activations ignored",
        "bias inside Z",
        "small sums are zero",
        "padding ignored",
        "bound halved",
    )

    def cases(self, effort: Effort, rng: np.random.Generator) -> Iterable[LayerCase | NetworkCase]:
        """All kinds of layers in turn, and small networks."""
        yield from random_layer_cases(rng, effort.cases)
        for _ in range(effort.cases // 6):
            yield random_network_case(rng)

    def compare(self, subject: Subject, case: LayerCase | NetworkCase) -> Iterator[Comparison]:
        """Dropped sets on a layer, or on every layer of a network."""
        sens = subject.sensitivity(case.layer if isinstance(case, LayerCase) else case.model, case.points)
        if isinstance(case, LayerCase):
            exact = case.in_float64()
            measured = {"weight": (exact.layer, exact.points, case.layer.weight.dtype)}
        else:
            inputs = oracle.layer_inputs(case.model, case.points)
            measured = {f"{name}.weight": (layer, x, layer.weight.dtype) for name, (layer, x) in inputs.items()}
        rng = np.random.default_rng(case.seed)
        for name, (layer, x, dtype) in measured.items():
            s = sens[name].values.flatten(1).double()
            for dropped in dropped_sets(layer, x, s, rng):
                yield from _drop(subject, layer, x, s, dropped, dtype)


CLAIM = DeterministicError()


def block_signs(layer: oracle.Layer) -> Tensor:
    """Which weights belong to the blocks of positive and of negative weights: (2, M, n)."""
    weight = layer.weight.detach().flatten(1)
    return torch.stack([weight > 0, weight < 0])


def dropped_sets(layer: oracle.Layer, x: Tensor, s: Tensor, rng: np.random.Generator) -> Iterator[Tensor]:
    """Masks (M, n) of weights to drop, hard ones first. s: the sensitivities of the subject."""
    signs = block_signs(layer)
    g = oracle.contributions(layer, x)
    largest = g.amax((0, 1, 4))
    # The single weight of each block whose contribution is largest against its sensitivity.
    ratio = torch.where(s > 0, largest / s, torch.where(largest > 0, torch.inf, 0.0))
    single = torch.where(signs, ratio, -1.0).argmax(2)
    yield (torch.nn.functional.one_hot(single, s.shape[1]).bool() & signs).any(0)
    # The weights of each block that have their largest contribution at one (x, p, tau), where there are most of them.
    attained = (g >= largest[..., None]) & (g > 0)
    for chosen in signs:
        together = attained & chosen[..., None]
        at = together.sum(3).movedim(2, -1).flatten(0, 2).argmax(0)  # of each neuron, over (x, p, tau)
        yield together.permute(0, 1, 4, 2, 3).flatten(0, 2)[at, torch.arange(len(s))]
    for share in (0.1, 0.3, 0.6, 0.9):
        yield torch.from_numpy(rng.random(tuple(s.shape)) < share)
    yield torch.ones_like(signs[0])


def drop(layer: oracle.Layer, dropped: Tensor) -> Tensor:
    """The layer's weight without these weights."""
    weight = layer.weight.detach().flatten(1)
    return torch.where(dropped, 0, weight).reshape(layer.weight.shape)


def drop_epsilons(subject: Subject, layer: oracle.Layer, s: Tensor, dropped: Tensor) -> Tensor:
    """The subject's bound on every block: (M, 2)."""
    gone = dropped & block_signs(layer)
    epsilons = [[subject.drop_epsilon(row[mask]) for row, mask in zip(s, sign, strict=True)] for sign in gone]
    return torch.tensor(epsilons, dtype=torch.float64).T


def _drop(
    subject: Subject, layer: oracle.Layer, x: Tensor, s: Tensor, dropped: Tensor, dtype: torch.dtype
) -> Iterator[Comparison]:
    pruned = drop(layer, dropped)
    n = s.shape[1]
    z, zhat = oracle.quadrant_sums(layer, x), oracle.quadrant_sums(layer, x, pruned)
    yield Comparison("Z - Zhat >= 0", zhat, z, z * error_rounding(n))
    epsilon = subject.shrink * drop_epsilons(subject, layer, s, dropped)
    slack = epsilon * sensitivity_rounding(n, dtype) + error_rounding(n) + n * sensitivity_underflow(dtype)
    r = oracle.relative_errors(layer, x, pruned)
    yield Comparison("r <= eps", r.amax((0, 1, 4)), epsilon, slack)
