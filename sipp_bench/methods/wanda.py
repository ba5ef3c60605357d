"""Wanda: weights times activation norms (Sun, Liu, Bair, Kolter, ICLR 2024)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sipp_bench.methods.observers import Look, Observer
from sipp_bench.methods.protocol import Observation
from sipp_bench.methods.scores import Scope, ScoreMethod
from sipp_bench.network.forward import each_call
from sipp_bench.network.patches import patch_chunks
from sipp_bench.network.tracing import Call
from sipp_bench.network.unmeasured import unmeasured

_CHUNK = 1 << 24


@dataclass(frozen=True)
class Activations:
    """squares: by weight name, sum over x in S and patches p of a_j(x, p)^2, (neurons, n) float64; skipped: weights
    that stay dense, each with the reason."""

    squares: Mapping[str, Tensor]
    skipped: Mapping[str, str]


@dataclass(frozen=True)
class ActivationSquares(Observer[Activations]):
    """Squared activation norms in one forward pass; for a convolution a_j runs over the unfolded patches."""

    def observe(self, look: Look) -> Activations:
        parameters = dict(look.model.named_parameters())
        squares: dict[str, Tensor] = {}

        def add(call: Call, output: Tensor) -> None:
            weight = parameters[call.name]
            if call.name not in squares:
                squares[call.name] = torch.zeros(weight.shape[0], weight[0].numel(), device=weight.device).double()
            neurons = call.weight.shape[0] // call.groups
            call = call.only_counted()
            for patches in patch_chunks(call.input, call.weight, call.geometry, _CHUNK):
                norms = patches.double().square().sum(1)  # (groups, n)
                squares[call.name][call.rows] += norms.repeat_interleave(neurons, 0)

        trace = each_call(look.model, look.points, add, look.batch_size)
        names = [name for name in parameters if name in squares and name not in trace.dense]
        return Activations({name: squares[name] for name in names}, unmeasured(look.model, trace))


@dataclass(frozen=True, kw_only=True)
class Wanda(ScoreMethod):
    """score_ij = |w_ij| sqrt(sum over x in S and patches p of a_j(x, p)^2), compared within each output neuron.

    The paper's comparison group is the output (`scope="output"`, the default); `"layer"` and `"global"` are there for
    comparison.
    """

    name: ClassVar[str] = "wanda"
    scope: Scope = "output"

    @property
    def needs(self) -> tuple[ActivationSquares]:
        return (ActivationSquares(),)

    def observe(self, look: Look) -> Observation:
        """The weights' magnitudes times their inputs' norms."""
        found, parameters = look.at(*self.needs), dict(look.model.named_parameters())
        scores = {
            name: parameters[name].detach().abs() * squares.sqrt().reshape(parameters[name].shape).float()
            for name, squares in found.squares.items()
        }
        return Observation(scores, found.skipped)
