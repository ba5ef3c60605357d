"""Passes over the points: one if all running maxima fit in memory, else several, each with as many layers as do.

The first layer that does not fit beside those before it in the forward pass, and all after it, wait for the next pass.
Each layer is measured in one pass from the first point to the last, so that the result is that of a single pass, to the
last bit.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from sipp_bench.errors import OptionError
from sipp_bench.network.points import batch_length, call_model
from sipp_bench.network.tracing import Call, Trace, tracing
from sipp_bench.sensitivity.accumulator import Accumulator, Result, chunk_size
from sipp_bench.sensitivity.batches import Batches
from sipp_bench.sensitivity.footprint import held_bytes, workspace_bytes
from sipp_bench.sensitivity.ranks import Ranks


@dataclass
class Found:
    """What passes over the points gave. peak_bytes: see `Sensitivity`."""

    results: dict[str, Result] = field(default_factory=dict)
    trace: Trace = field(default_factory=Trace)
    num_points: int = 0
    passes: int = 0
    peak_bytes: int = 0

    def told(self) -> "Found":
        """What other ranks must know at once: all but the large tensors, which are merged one by one."""
        counts = {name: (torch.empty(0), torch.empty(0), torch.empty(0), n) for name, (*_, n) in self.results.items()}
        return Found(counts, self.trace, self.num_points, self.passes, self.peak_bytes)


@dataclass
class Pass:
    """One pass: the layers that are measured in it, and those that wait for the next.

    room: bytes that all of this may take, None for no limit. finished_bytes: those of layers measured before.
    """

    make: Callable[[Call, Tensor], Accumulator]
    workspace: Callable[[Call, Tensor], int]
    parameters: Mapping[str, Tensor]
    wanted: set[str]
    room: int | None
    finished_bytes: int
    running: dict[str, Accumulator] = field(default_factory=dict)
    waiting: set[str] = field(default_factory=set)
    planned_bytes: int = 0
    largest_workspace: int = 0

    def accumulator(self, call: Call) -> Accumulator | None:
        """The running maximum of a call's weight, or None if it is not for this pass.

        Raises OptionError for a layer that has no room although no other one is measured beside it.
        """
        if call.name in self.running:
            return self.running[call.name]
        if call.name not in self.wanted or call.name in self.waiting:
            return None
        weight = self.parameters[call.name]
        # Those after a layer that waits do so too: what they leave behind would take room from it.
        if self.waiting or (self.room is not None and not self._fits(call, weight, self.room)):
            self.waiting.add(call.name)
            return None
        self.running[call.name] = self.make(call, weight)
        return self.running[call.name]

    def held_bytes(self) -> int:
        """Of running maxima and of what earlier passes have finished."""
        return self.finished_bytes + sum(accumulator.nbytes for accumulator in self.running.values())

    def _fits(self, call: Call, weight: Tensor, room: int) -> bool:
        held, workspace = held_bytes(weight), self.workspace(call, weight)
        needed = self.finished_bytes + self.planned_bytes + held + max(workspace, self.largest_workspace)
        if needed <= room:
            self.planned_bytes += held
            self.largest_workspace = max(self.largest_workspace, workspace)
            return True
        if not self.running:
            raise OptionError(
                f"There is no room to measure {call.name!r}, not even by itself: it takes {_megabytes(held)} for its "
                f"running maxima and about {_megabytes(workspace)} to work in, beside "
                f"{_megabytes(self.finished_bytes)} of sensitivities measured before, and {_megabytes(room)} are "
                "allowed. Free some memory, measure fewer layers at a time (layers=), or allow more (memory=, in "
                "bytes)."
            )
        return False


def run_passes(
    model: nn.Module,
    batches: Batches,
    wanted: set[str],
    *,
    patch_reduction: str,
    backend: str | None,
    derive_outputs: bool,
    room: int | None,
    progress: bool,
) -> Found:
    """Measure the `wanted` weights of `model` on this rank's batches, in as few passes as `room` takes (bytes)."""
    found = Found()
    parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}
    unfolded, limit = chunk_size(batches.device, backend)

    def make(call: Call, weight: Tensor) -> Accumulator:
        return Accumulator(call.name, weight, call.groups, patch_reduction, backend)

    def workspace(call: Call, weight: Tensor) -> int:
        return workspace_bytes(call, weight, limit, unfolded, average=patch_reduction == "mean")

    wanted = set(wanted)
    while True:
        found.passes += 1
        finished_bytes = sum(tensor.nbytes for result in found.results.values() for tensor in result[:3])
        one = Pass(make, workspace, parameters, wanted, room, finished_bytes)
        num_points = _run(model, batches, one, found, derive_outputs, progress)
        found.num_points = num_points
        found.peak_bytes = max(found.peak_bytes, one.held_bytes())
        while one.running:  # one by one, so that each one's magnitudes are gone before the next
            name, accumulator = one.running.popitem()
            found.results[name] = accumulator.result()
            del accumulator
        wanted = one.waiting - found.trace.dense.keys()
        if not wanted:
            return found


def _run(model: nn.Module, batches: Batches, one: Pass, found: Found, derive_outputs: bool, progress: bool) -> int:
    """One pass; returns the number of points."""
    asked: list[Call] = []

    def accumulate(call: Call, derive: bool = False) -> Tensor | None:
        # A weight that is used otherwise as well will not be in the result: see `unmeasured`.
        accumulator = None if call.name in trace.dense else one.accumulator(call)
        if derive_outputs and one.waiting:
            raise OptionError(
                "derive_outputs needs the sums of all layers in one pass, for which there is not enough memory: leave "
                "it out, or allow more (memory=, in bytes)."
            )
        return None if accumulator is None else accumulator.add(call.only_counted(), derive)

    def observe(call: Call, output: Tensor) -> None:
        if not (asked and asked[-1] is call):
            accumulate(call)

    def derive(call: Call) -> Tensor | None:
        asked[:] = [call]
        return accumulate(call, derive=True)

    num_points = 0
    number = f" (pass {found.passes})" if found.passes > 1 else ""
    with torch.no_grad(), tracing(model, observe, derive if derive_outputs else None) as trace:
        for inputs in tqdm(batches, desc=f"sensitivity{number}", unit="batch", disable=not progress):
            trace.counted = batches.counted(inputs)
            call_model(model, inputs)
            num_points += batch_length(inputs)
    found.trace.applied |= trace.applied
    found.trace.dense |= trace.dense
    return num_points


def merge_ranks(found: Found, told: list[Found], ranks: Ranks, parameters: Mapping[str, Tensor]) -> Found:
    """The same on every rank: maxima of sensitivities, sums of counts; points of no rank count 0."""
    merged = Found(passes=max(one.passes for one in told), peak_bytes=max(one.peak_bytes for one in told))
    merged.num_points = sum(one.num_points for one in told)
    for one in told:
        merged.trace.applied |= one.trace.applied
        merged.trace.dense |= one.trace.dense
    for name, weight in parameters.items():
        counts = [one.results[name][3] for one in told if name in one.results]
        if counts:
            own = found.results.pop(name) if name in found.results else _nothing(weight)
            values, positive, active, _ = own
            merged.results[name] = (ranks.maximum_(values), positive, ranks.sum_(active), sum(counts))
    return merged


def _nothing(weight: Tensor) -> Result:
    """A weight that none of this rank's points reached."""
    dtype = torch.float64 if weight.dtype == torch.float64 else torch.float32
    active = torch.zeros(weight.shape[0], 2, dtype=torch.int64, device=weight.device)
    return torch.zeros_like(weight, dtype=dtype), weight > 0, active, 0


def _megabytes(count: int) -> str:
    return f"{count / 1e6:,.2f} MB"
