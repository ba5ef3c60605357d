"""What the checks take for granted of a network: the same points give the same numbers, each point by itself."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from sipp_bench.errors import ModelError, PointsError
from sipp_bench.network.forward import no_look
from sipp_bench.network.points import Inputs, call_model, iterate_batches, model_device
from sipp_bench.network.tracing import Call, tracing
from theory_checks.certificate.rules import tensors_in
from theory_checks.on_network.held import Held

# Points that are run again, of each form. Relative to a tensor's largest number: two runs of one batch differ at most
# by rounding, where the order of sums is not fixed (on a GPU); a point by itself is another product than in a batch.
_POINTS = 4
_AGAIN, _ALONE = 1e-5, 1e-3


def require_repeatable(model: nn.Module, points: Held) -> None:
    """Raise ModelError, naming the place, if the network's numbers change from one run to the next in eval mode."""
    with torch.random.fork_rng():
        one, two = (list(_numbers(model, points[:_POINTS])) for _ in range(2))
    for (name, before), (_, after) in zip(one, two, strict=False):
        if _differ(before, after, _AGAIN):
            raise ModelError(
                f"The network is random in eval mode: {name} differs between two runs on the same points, so that no "
                "claim about it can be checked. Likely causes: F.dropout without training=self.training, noise or a "
                "random choice in forward. Make forward repeatable, and try again."
            )


def mixes_points(model: nn.Module, points: Held) -> bool:
    """Whether the output for a point depends on the others in its batch, or a point cannot be run by itself."""
    some = points[:_POINTS]
    try:
        alone = [_outputs(model, inputs) for one in some.singles() for inputs in _batches(model, one)]
    except PointsError:
        return True
    whole = [_outputs(model, inputs) for inputs in _batches(model, some)]
    if not all(tensor.ndim for tensors in (*whole, *alone) for tensor in tensors):
        return False
    rows = [row for tensors in whole for row in zip(*tensors, strict=False)]
    return any(
        _differ(row, tensor[0], _ALONE)
        for together, apart in zip(rows, alone, strict=False)
        for row, tensor in zip(together, apart, strict=False)
        if len(tensor) == 1
    )


def _numbers(model: nn.Module, points: Held) -> Iterator[tuple[str, Tensor]]:
    """Every traced layer's inputs and the outputs, in the order of the run."""
    for inputs in _batches(model, points):
        seen: list[tuple[str, Tensor]] = []

        def observe(call: Call, output: Tensor, seen: list[tuple[str, Tensor]] = seen) -> None:
            seen.append((f"the input of {call.name!r}", call.input.clone()))

        with torch.no_grad(), tracing(model, observe):
            output = call_model(model, inputs)
        yield from seen
        yield from (("its output", tensor) for tensor in tensors_in(output))


def _outputs(model: nn.Module, inputs: Inputs) -> list[Tensor]:
    with torch.no_grad(), tracing(model, no_look):
        return list(tensors_in(call_model(model, inputs)))


def _batches(model: nn.Module, points: Held) -> Iterator[Inputs]:
    for inputs, _ in iterate_batches(points.points(_POINTS), _POINTS, model_device(model)):
        yield inputs


def _differ(one: Tensor, other: Tensor, share: float) -> bool:
    if one.shape != other.shape:
        return True
    if one.is_complex() or not one.numel():
        return not torch.equal(one, other)
    share = max(share, 8 * torch.finfo(one.dtype).eps) if one.is_floating_point() else share
    one, other = one.double(), other.double()
    # What is not finite counts as different only where the other is.
    apart = torch.where(one.isfinite() | other.isfinite(), (one - other).abs(), 0.0)
    return not bool((apart <= share * one.abs().nan_to_num(0.0, 0.0, 0.0).amax()).all())
