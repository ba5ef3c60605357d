"""A network over points: one loop over the calls that a trace sees."""

import torch
from torch import Tensor, nn

from sipp_bench.network.point_sets import Points, as_point_set
from sipp_bench.network.points import call_model, iterate_batches, model_device
from sipp_bench.network.tracing import Call, Observer, Trace, tracing


def each_call(model: nn.Module, points: Points, observe: Observer, batch_size: int = 64) -> Trace:
    """Show `observe` every application of a weight while the network passes over the points, in eval mode.

    Without gradients. Returns what the trace saw. Raises PointsError for points that the network does not take.
    """
    with torch.no_grad(), tracing(model, observe) as trace:
        for inputs, _ in iterate_batches(points, batch_size, model_device(model), model):
            trace.counted = as_point_set(points).counted(inputs)
            call_model(model, inputs)
    return trace


def no_look(call: Call, output: Tensor) -> None:
    """An observer for which passing over the points is enough."""
