"""Wanda: weights times activation norms (Sun, Liu, Bair, Kolter, ICLR 2024)."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from sipp_bench.methods.protocol import Observation
from sipp_bench.methods.scores import Scope, ScoreMethod
from sipp_bench.network.patches import patch_chunks
from sipp_bench.network.point_sets import Points, as_point_set
from sipp_bench.network.points import call_model, iterate_batches, model_device
from sipp_bench.network.tracing import Call, tracing
from sipp_bench.network.unmeasured import unmeasured

_CHUNK = 1 << 24


@dataclass(frozen=True, kw_only=True)
class Wanda(ScoreMethod):
    """score_ij = |w_ij| sqrt(sum over x in S and patches p of a_j(x, p)^2), compared within each output neuron.

    The paper's comparison group is the output (`scope="output"`, the default); `"layer"` and `"global"` are there for
    comparison. For a convolution a_j runs over the unfolded patches.
    """

    name: ClassVar[str] = "wanda"
    scope: Scope = "output"

    def observe(self, model: nn.Module, points: Points, labels: Tensor | None, batch_size: int) -> Observation:
        """Squared activation norms in one forward pass."""
        parameters = dict(model.named_parameters())
        squares: dict[str, Tensor] = {}

        def observe(call: Call, output: Tensor) -> None:
            weight = parameters[call.name]
            if call.name not in squares:
                squares[call.name] = torch.zeros(weight.shape[0], weight[0].numel(), device=weight.device).double()
            neurons = call.weight.shape[0] // call.groups
            call = call.only_counted()
            for patches in patch_chunks(call.input, call.weight, call.geometry, _CHUNK):
                norms = patches.double().square().sum(1)  # (groups, n)
                squares[call.name][call.rows] += norms.repeat_interleave(neurons, 0)

        with torch.no_grad(), tracing(model, observe) as trace:
            for inputs, _ in iterate_batches(points, batch_size, model_device(model), model):
                trace.counted = as_point_set(points).counted(inputs)
                call_model(model, inputs)
        names = [name for name in parameters if name in squares and name not in trace.dense]
        scores = {
            name: parameters[name].detach().abs() * squares[name].sqrt().reshape(parameters[name].shape).float()
            for name in names
        }
        return Observation(scores, unmeasured(model, trace))
