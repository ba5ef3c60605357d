"""SNIP: connection sensitivity of the loss (Lee, Ajanthan, Torr, ICLR 2019)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sipp_bench.errors import ModelError, PointsError
from sipp_bench.methods.observers import Look, Observer
from sipp_bench.methods.protocol import Observation
from sipp_bench.methods.scores import ScoreMethod
from sipp_bench.network.points import batch_length, call_model, iterate_batches, model_device, shuffles
from sipp_bench.network.tracing import Call, tracing
from sipp_bench.network.unmeasured import unmeasured


@dataclass(frozen=True)
class Gradients:
    """sums: by weight name, dL/dw summed over the points, L the cross-entropy; points: how many there were; skipped:
    weights that stay dense, each with the reason."""

    sums: Mapping[str, Tensor]
    points: int
    skipped: Mapping[str, str]


@dataclass(frozen=True)
class LossGradients(Observer[Gradients]):
    """One backward pass over the points, whose gradients stay out of the network's own `.grad`.

    Labels: those given, else those that come with the points, else the network's own predictions. The network is in
    eval mode (the definitions of THEORY section 1), so that batch-norm uses its running statistics.
    """

    def observe(self, look: Look) -> Gradients:
        frozen = [parameter for parameter in look.model.parameters() if not parameter.requires_grad]
        floating = [parameter for parameter in frozen if parameter.is_floating_point()]
        try:
            for parameter in floating:
                parameter.requires_grad_(True)
            return self._gradients(look)
        finally:
            for parameter in floating:
                parameter.requires_grad_(False)

    def _gradients(self, look: Look) -> Gradients:
        model, points = look.model, look.points
        parameters = dict(model.named_parameters())
        if look.labels is not None and shuffles(points):
            raise PointsError(
                "Labels are matched with points by position, but this DataLoader has an order of its own: make it with "
                "shuffle=False, or let its Dataset give (input, label)."
            )
        labels = None if look.labels is None else _as_tensor(look.labels)
        sums: dict[str, Tensor] = {}
        seen = 0

        def observe(call: Call, output: Tensor) -> None:
            sums.setdefault(call.name, torch.zeros_like(parameters[call.name]))

        with torch.enable_grad(), tracing(model, observe) as trace:
            for inputs, own in iterate_batches(points, look.batch_size, model_device(model), model):
                size = batch_length(inputs)
                given = own if labels is None else labels[seen : seen + size].to(model_device(model))
                seen += size
                logits = call_model(model, inputs)
                if not sums:
                    continue  # no weight to prune so far, which `fit` says better than autograd
                loss = _loss(model, logits, given, size)
                gradients = torch.autograd.grad(loss, [parameters[name] for name in sums], allow_unused=True)
                for name, gradient in zip(sums, gradients, strict=True):
                    if gradient is not None:
                        sums[name] += gradient
        if labels is not None and len(labels) != seen:
            raise PointsError(f"There are {seen} points but {len(labels)} labels: give one label for each point.")
        names = [name for name in parameters if name in sums and name not in trace.dense]
        return Gradients({name: sums[name].detach() for name in names}, seen, unmeasured(model, trace))


@dataclass(frozen=True, kw_only=True)
class Snip(ScoreMethod):
    """score_ij = |w_ij dL/dw_ij|, L the mean cross-entropy over the points, kept globally. Labels: `LossGradients`."""

    name: ClassVar[str] = "snip"

    @property
    def needs(self) -> tuple[LossGradients]:
        return (LossGradients(),)

    def observe(self, look: Look) -> Observation:
        """The weights times their gradients."""
        found, parameters = look.at(*self.needs), dict(look.model.named_parameters())
        scores = {name: (parameters[name].detach() * g / found.points).abs() for name, g in found.sums.items()}
        return Observation(scores, found.skipped)


def _as_tensor(labels: object) -> Tensor:
    try:
        tensor = torch.as_tensor(labels)
    except (TypeError, ValueError, RuntimeError) as error:
        raise PointsError(f"SNIP's labels are a tensor or a list of whole numbers: {error}.") from error
    if tensor.ndim == 0:
        raise PointsError("SNIP's labels are one for each point, not a single number.")
    return tensor


def _loss(model: nn.Module, logits: object, labels: Tensor | None, size: int) -> Tensor:
    if not isinstance(logits, Tensor) or logits.ndim != 2:
        raise ModelError(
            f"SNIP needs a classifier whose output is one tensor (N, classes); {type(model).__name__}'s is not."
        )
    if labels is None:
        labels = logits.detach().argmax(1)
    if labels.shape != (size,):
        raise PointsError(f"SNIP needs one label for each of the {size} points of a batch, not {tuple(labels.shape)}.")
    if bool(((labels < 0) | (labels >= logits.shape[1]) | (labels != labels.long())).any()):
        raise PointsError(
            f"SNIP's labels are classes, whole numbers from 0 to {logits.shape[1] - 1}: others were given."
        )
    return F.cross_entropy(logits, labels.long(), reduction="sum")
