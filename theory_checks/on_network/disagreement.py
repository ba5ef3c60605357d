"""How often a pruned network's prediction differs from the dense one's on fresh data: an exact upper bound."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sipp_bench.errors import ModelError
from sipp_bench.network.points import Inputs, Points, batch_length, call_model, iterate_batches, model_device
from theory_checks.evidence import statistics
from theory_checks.evidence.wording import percent_up


@dataclass(frozen=True)
class Disagreement:
    """Predictions that differ, `count` of `points` fresh points, i.i.d. and apart from training, S and every choice.

    at_most: the exact one-sided upper confidence bound on the rate, for this one pair of networks; several pairs hold
    together with confidence 1 - (number of pairs) (1 - confidence) only.
    """

    count: int
    points: int
    at_most: float
    confidence: float

    @property
    def supported(self) -> float:
        """What the bound would be without a single difference: no smaller rate can be claimed from these points."""
        return statistics.supported_delta(self.points, self.confidence)

    def statement(self, keep: float) -> str:
        """Such as "at keep 0.1: at most 1.3 % of inputs, 95 % confidence (4 of 1000 fresh points differ)"."""
        return (
            f"at keep {keep:g}: at most {percent_up(self.at_most)} of inputs, {100 * self.confidence:g} % confidence "
            f"({self.count} of {self.points} fresh points differ)"
        )


def prediction_disagreement(
    model: nn.Module, pruned: nn.Module, fresh: Points, confidence: float = 0.95, batch_size: int = 512
) -> Disagreement:
    """Compare the classes that two networks predict, the largest logit's, on fresh points.

    Both run in eval mode and are afterwards as they were. A prediction from a NaN differs from every other. Raises
    PointsError without points, ModelError unless the outputs are logits (batch, classes) of two classes or more.
    """
    count = points = 0
    for inputs, _ in iterate_batches(fresh, batch_size, model_device(model), model):
        count += int((_classes(model, inputs) != _classes(pruned, inputs, other=True)).sum())
        points += batch_length(inputs)
    return Disagreement(count, points, statistics.upper_bound(count, points, confidence), confidence)


def _classes(model: nn.Module, inputs: Inputs, other: bool = False) -> Tensor:
    """The predicted classes on the CPU; for logits with NaN -1, or -2 for the other network, so that they differ."""
    modes = {module: module.training for module in model.modules()}
    try:
        with torch.no_grad():
            logits = call_model(model.eval(), inputs)
    finally:
        for module, training in modes.items():
            module.training = training
    if not isinstance(logits, Tensor) or logits.ndim != 2 or logits.shape[1] < 2:
        shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ModelError(f"Predictions are compared by logits (batch, classes) of two classes or more, not {shape}.")
    return torch.where(logits.isnan().any(1), -2 if other else -1, logits.argmax(1)).cpu()
