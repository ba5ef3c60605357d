"""Points in, empirical sensitivity out: which weights, quadrants, merging shards (THEORY section 1, claim C1)."""

import copy
import fnmatch
import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from sipp_bench import maxtimes
from sipp_bench.errors import ModelError, OptionError, PointsError
from sipp_bench.machine.memory import processes_here, room
from sipp_bench.network.blocks import block_sums
from sipp_bench.network.point_sets import Points, PointSet, Positions, as_point_set
from sipp_bench.network.points import NO_POINTS, digest, model_device, usable_device
from sipp_bench.network.unmeasured import check_parameters, unmeasured
from sipp_bench.sensitivity.batches import Batches
from sipp_bench.sensitivity.footprint import held_bytes
from sipp_bench.sensitivity.passes import merge_ranks, run_passes
from sipp_bench.sensitivity.ranks import Group, Ranks

PatchReduction = Literal["max", "mean"]


@dataclass(frozen=True)
class LayerSensitivity:
    """Empirical sensitivities of one weight, s_ij = max over x in S, p, tau of |w_ij| (a_j)_tau / Z_i^{sigma,tau}.

    values: shaped like the weight, in [0, 1]; float32, or float64 for a float64 network; 0 where Z was always 0.
    positive: w > 0, shaped like the weight. active: (neurons, 2) int64, the number of active (x, p, tau) of each
    block; column 0 is the block of positive weights, column 1 that of negative ones. num_patches: over all points.
    """

    name: str
    values: Tensor
    positive: Tensor
    active: Tensor
    num_patches: int

    @functools.cached_property
    def totals(self) -> Tensor:
        """T of every block, the sum of its sensitivities: (neurons, 2) float64."""
        return block_sums(self.values, self.positive)

    def merge(self, other: "LayerSensitivity") -> "LayerSensitivity":
        """Sensitivities over both samples: the element-wise maximum (claim C1)."""
        if self.values.shape != other.values.shape:
            raise OptionError(
                f"Sensitivities of {self.name!r} have shapes {tuple(self.values.shape)} and "
                f"{tuple(other.values.shape)}: only measurements of one and the same network can be merged."
            )
        device = self.values.device
        if not torch.equal(self.positive, other.positive.to(device)):
            raise OptionError(
                f"Sensitivities of {self.name!r} belong to different weights (their signs differ): "
                "only measurements of one and the same network can be merged."
            )
        return replace(
            self,
            values=torch.maximum(self.values, other.values.to(device)),
            active=self.active + other.active.to(device),
            num_patches=self.num_patches + other.num_patches,
        )


@dataclass(frozen=True)
class Sensitivity(Mapping[str, LayerSensitivity]):
    """Sensitivities by parameter name. `skipped`: weights that could not be measured, each with the reason.

    passes: how many times the network ran over the points. peak_bytes: the most that running maxima and finished
    sensitivities held at a time, counted tensor by tensor; without the network, its activations and the workspace of a
    chunk. Of several measurements or ranks, the largest.
    """

    layers: Mapping[str, LayerSensitivity]
    num_points: int
    patch_reduction: PatchReduction
    skipped: Mapping[str, str]
    passes: int = 1
    peak_bytes: int = 0

    def __getitem__(self, name: str) -> LayerSensitivity:
        return self.layers[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.layers)

    def __len__(self) -> int:
        return len(self.layers)

    @property
    def num_patches(self) -> int:
        """Patches seen by the weight that saw most of them, over all points."""
        return max(layer.num_patches for layer in self.layers.values())

    def merge(self, other: "Sensitivity") -> "Sensitivity":
        """What one measurement of both samples gives, up to float rounding. Raises OptionError if they don't fit."""
        if self.patch_reduction != other.patch_reduction:
            raise OptionError(
                f"Sensitivities measured with patch_reduction {self.patch_reduction!r} and "
                f"{other.patch_reduction!r} can't be merged: measure both in the same way."
            )
        for one, another in ((self, other), (other, self)):
            for name in one.layers:
                if name not in another.layers and name not in another.skipped:
                    raise OptionError(f"Only one of the two measurements asked for {name!r}: measure the same layers.")
        # A weight that only one shard's points reached has sensitivity 0 on the other.
        names = [*self.layers, *(name for name in other.layers if name not in self.layers)]
        merged = {}
        for name in names:
            both = [sens.layers[name] for sens in (self, other) if name in sens.layers]
            merged[name] = both[0].merge(both[1]) if len(both) == 2 else both[0]
        skipped = {name: why for name, why in {**self.skipped, **other.skipped}.items() if name not in merged}
        return Sensitivity(
            merged,
            self.num_points + other.num_points,
            self.patch_reduction,
            skipped,
            max(self.passes, other.passes),
            max(self.peak_bytes, other.peak_bytes),
        )


def measure_sensitivity(
    model: nn.Module,
    points: Points,
    *,
    layers: Sequence[str] | str | None = None,
    patch_reduction: PatchReduction = "max",
    batch_size: int = 64,
    device: torch.device | str | None = None,
    backend: maxtimes.Backend | None = None,
    derive_outputs: bool = False,
    progress: bool = False,
    memory: int | None = None,
    group: Group = None,
    labelled: bool | None = None,
    positions: Positions | None = None,
) -> Sensitivity:
    """Empirical sensitivity of every Linear and ConvNd weight of `model` over `points` (THEORY section 1).

        s_ij = max over x in S, patches p, tau in {+,-} of |w_ij| (a_j(x,p))_tau / Z_i^{sigma(j),tau}(x,p)

    points: Tensor (N, ...); tensors (N, ...) in a tuple, for `model(*tensors)`, or in a dict (a tokenizer's output),
    for `model(**tensors)`; a Dataset or a DataLoader of these. labelled: whether a tuple's last tensor is a label, to
    be left out, or an input as the others; needed only where the network's forward could take it (see
    `sipp_bench.network.points.PointSet`). positions: the input (N, L) that marks, non-zero, which positions count: its
    name in the dict, its place in the tuple, or a function that makes it of a batch's inputs; the others are padding. A
    Linear layer then is measured on its inputs a(x, l) at marked positions l alone, wherever its input is (N, L, ...,
    n), and nn.MultiheadAttention's on query, key and value of this length; inputs of other shapes (pooled ones, those
    of convolutions) count as they are, which can only make s larger. By default all count. layers: names or glob
    patterns of parameters or modules; default all. patch_reduction: "max" (the definition) or, for convolutions, "mean"
    over the patches of a point before the maximum over points (the authors' choice, THEORY section 6; claim C2 then
    speaks of patch averages only). device: where the work is done; default the model's device; the model itself is not
    moved. backend: of the max-times product (`sipp_bench.maxtimes`); default what SIPP_BENCH_BACKEND says, else the
    fastest. derive_outputs: take each layer's output from its sums, y = Z^{++} - Z^{-+} - Z^{+-} + Z^{--} + b, instead
    of running the layer once more: less work, but later layers see inputs rounded differently, so that s may move by
    some 1e-4 relative. By default the network's own outputs stay what they are, to the last bit. The network runs in
    eval mode without gradients and is afterwards as it was. float32 networks give values within 1e-5 relative of a
    float64 computation on the same inputs; where float32 would under- or overflow, the chunk is computed in float64.
    Half precisions are computed in float32.

    memory: bytes that running maxima, finished sensitivities and workspace may take on `device`, beside the network,
    its points and its activations; default three quarters of what is free (`sipp_bench.machine.memory`). A running
    maximum takes 13 bytes a weight (float64: 25), of which 5 (9) stay. Layers that do not fit wait for another pass
    over the points, with the same result to the last bit. Points that are not the same each time they are read are then
    refused, but for a DataLoader that shuffles: its order is drawn once.

    group: None measures all points in this process, whatever torch.distributed is used for besides. "world", or a
    process group: its ranks share the points out and all return the same, to the last bit what one process returns
    (with as many threads, on the same kind of processor). Rank i takes batches i, i + ranks, ... of `batch_size`, so
    that some have nothing to do where there are fewer batches than ranks. All of them must call this with the same
    network, options and points (all points: no DistributedSampler). If one fails or ends, all raise.

    Raises ModelError for NaN or infinity in weights or activations (which layer), and for a network with nothing to
    measure; PointsError for points that are missing, not finite, of the wrong shape, or others in each pass or on each
    rank; OptionError for options, and for a layer that has no room; RankError where another rank failed or ended.
    """
    ranks = Ranks.of(group)
    points = PointSet.of(points, labelled, positions)
    if derive_outputs and as_point_set(points).positions is not None:
        raise OptionError("derive_outputs needs the sums of all positions: leave out either it or positions.")
    ready, told = ranks.together(
        lambda: _prepare(model, points, layers, patch_reduction, batch_size, device, backend, memory, ranks),
        lambda ready: ready.describe((patch_reduction, backend, derive_outputs)),
    )
    ready.agree(told)
    found, others = ranks.together(
        lambda: run_passes(
            ready.model, ready.batches, ready.wanted, patch_reduction=patch_reduction, backend=backend,
            derive_outputs=derive_outputs, room=ready.room, progress=progress,
        ),
        lambda found: (found.told(), ready.batches.streamed()),
    )  # fmt: skip
    parameters = {name: parameter.detach() for name, parameter in ready.model.named_parameters()}
    if others:
        ready.batches.compare_streams([stream for _, stream in others])
        found = merge_ranks(found, [one for one, _ in others], ranks, parameters)
    if not found.num_points:
        raise PointsError(NO_POINTS)
    skipped = {
        name: why
        for name, why in unmeasured(ready.model, found.trace).items()
        if layers is None or name in ready.wanted
    }
    measured = {
        name: LayerSensitivity(name, *found.results[name])
        for name in parameters
        if name in found.results and name not in found.trace.dense
    }
    if not measured:
        raise ModelError(nothing_to_prune(model, skipped))
    return Sensitivity(measured, found.num_points, patch_reduction, skipped, found.passes, found.peak_bytes)


@dataclass(frozen=True)
class _Ready:
    """What was asked for, checked, on this rank. room: bytes, or None if one pass will do in any case."""

    model: nn.Module
    batches: Batches
    wanted: set[str]
    room: int | None

    def describe(self, options: tuple[object, ...]) -> dict[str, Any]:
        """What must be equal on all ranks."""
        state = (*self.model.named_parameters(), *self.model.named_buffers())
        return {
            "network": {name: digest(tensor) for name, tensor in state},
            "options": (*options, self.batches.batch_size, sorted(self.wanted)),
            "points": self.batches.describe(),
        }

    def agree(self, told: Sequence[Mapping[str, Any]]) -> None:
        """Raise unless all ranks were given the same network, options and points."""
        for rank, other in enumerate(told):
            if other["options"] != told[0]["options"]:
                raise OptionError(
                    f"Rank {rank} was given other options than rank 0: measure with the same on all ranks."
                )
            mine, theirs = told[0]["network"], other["network"]
            for name in sorted(mine.keys() ^ theirs.keys()) + [n for n in mine if n in theirs and mine[n] != theirs[n]]:
                raise ModelError(
                    f"The networks of ranks 0 and {rank} differ in {name!r}: load the same checkpoint on every rank."
                )
        self.batches.agree([other["points"] for other in told])


def _prepare(
    model: nn.Module,
    points: Points,
    layers: Sequence[str] | str | None,
    patch_reduction: str,
    batch_size: int,
    device: torch.device | str | None,
    backend: maxtimes.Backend | None,
    memory: int | None,
    ranks: Ranks,
) -> _Ready:
    if patch_reduction not in get_args(PatchReduction):
        raise OptionError(f"patch_reduction is 'max' or 'mean', not {patch_reduction!r}.")
    maxtimes.requested(backend)
    if ranks.group is not None and isinstance(model, nn.parallel.DistributedDataParallel):
        raise ModelError(
            "A network in DistributedDataParallel waits for the other ranks in each forward pass, of which they make "
            "different numbers here: give the network inside it, model.module."
        )
    check_parameters(model)
    target = model_device(model) if device is None else usable_device(device)
    if target != model_device(model):
        model = copy.deepcopy(model).to(target)
    wanted = _matching(model, layers)
    sizes = [held_bytes(parameter) for name, parameter in model.named_parameters() if name in wanted]
    allowed = room(memory, target, processes_here() if ranks.group is not None else 1)
    # Far more than it takes, and not asked for: one pass, and points that can be read but once.
    ample = memory is None and 2 * sum(sizes) <= allowed
    once = ample and ranks.group is None
    if once:
        batches = Batches.once(points, model, batch_size, target)
    else:
        batches = Batches.repeatable(points, model, batch_size, target, ranks)
    return _Ready(model, batches, wanted, None if ample else allowed)


def nothing_to_prune(model: nn.Module, skipped: Mapping[str, str]) -> str:
    """The sentence for a network without a single Linear or ConvNd weight that can be pruned."""
    reasons = "".join(f" {name}: {why}." for name, why in skipped.items())
    return (
        f"{type(model).__name__} has nothing to prune: no Linear or ConvNd weight of it was used in its forward "
        f"pass.{reasons}"
    )


def _matching(model: nn.Module, layers: Sequence[str] | str | None) -> set[str]:
    """Names of the parameters that `layers` asks for."""
    names = [name for name, parameter in model.named_parameters() if parameter.ndim >= 2]
    if layers is None:
        return set(names)
    chosen: set[str] = set()
    for pattern in [layers] if isinstance(layers, str) else layers:
        if not isinstance(pattern, str):
            raise OptionError(f"layers are names or patterns, not {pattern!r}. The weights are: {', '.join(names)}.")
        hits = {name for name in names if any(fnmatch.fnmatchcase(n, pattern) for n in (name, name.rpartition(".")[0]))}
        if not hits:
            raise OptionError(f"No layer of the network matches {pattern!r}. Its weights are: {', '.join(names)}.")
        chosen |= hits
    return chosen
