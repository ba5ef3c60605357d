"""Points in, empirical sensitivity out: which weights, quadrants, merging shards (THEORY section 1, claim C1)."""

import copy
import fnmatch
import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from sipp_bench import maxtimes
from sipp_bench.accumulator import Accumulator
from sipp_bench.errors import ModelError, OptionError
from sipp_bench.parts import block_sums
from sipp_bench.points import Points, batch_length, call_model, iterate_batches, model_device, usable_device
from sipp_bench.tracing import Call, check_parameters, tracing, unmeasured

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
    """Sensitivities by parameter name. `skipped`: weights that could not be measured, each with the reason."""

    layers: Mapping[str, LayerSensitivity]
    num_points: int
    patch_reduction: PatchReduction
    skipped: Mapping[str, str]

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
        return Sensitivity(merged, self.num_points + other.num_points, self.patch_reduction, skipped)


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
) -> Sensitivity:
    """Empirical sensitivity of every Linear and ConvNd weight of `model` over `points` (THEORY section 1).

        s_ij = max over x in S, patches p, tau in {+,-} of |w_ij| (a_j(x,p))_tau / Z_i^{sigma(j),tau}(x,p)

    points: Tensor (N, ...), a Dataset or a DataLoader (labels ignored). layers: names or glob patterns of parameters
    or modules; default all. patch_reduction: "max" (the definition) or, for convolutions, "mean" over the patches of
    a point before the maximum over points (the authors' choice, THEORY section 6; claim C2 then speaks of patch
    averages only). device: where the work is done; default the model's device; the model itself is not moved.
    backend: of the max-times product (`sipp_bench.maxtimes`); default what SIPP_BENCH_BACKEND says, else the fastest.
    derive_outputs: take each layer's output from its sums, y = Z^{++} - Z^{-+} - Z^{+-} + Z^{--} + b, instead of
    running the layer once more: less work, but later layers see inputs rounded differently, so that s may move by
    some 1e-4 relative. By default the network's own outputs stay what they are, to the last bit.
    The network runs in eval mode without gradients and is afterwards as it was. Memory: chunks of 64 MiB beside the
    network's own. float32 networks give values within 1e-5 relative of a float64 computation on the same inputs;
    where float32 would under- or overflow, the chunk is computed in float64. Half precisions are computed in float32.

    Raises ModelError for NaN or infinity in weights or activations (which layer), and for a network with nothing to
    measure; PointsError for points that are missing, not finite or of the wrong shape; OptionError for options.
    """
    if patch_reduction not in get_args(PatchReduction):
        raise OptionError(f"patch_reduction is 'max' or 'mean', not {patch_reduction!r}.")
    maxtimes.requested(backend)
    check_parameters(model)
    target = model_device(model) if device is None else usable_device(device)
    if target != model_device(model):
        model = copy.deepcopy(model).to(target)
    wanted = _matching(model, layers)
    parameters = dict(model.named_parameters())
    accumulators: dict[str, Accumulator] = {}
    asked: list[Call] = []

    def accumulate(call: Call, derive: bool = False) -> Tensor | None:
        if call.name not in wanted:
            return None
        if call.name not in accumulators:
            weight = parameters[call.name].detach()
            accumulators[call.name] = Accumulator(call.name, weight, call.groups, patch_reduction, backend)
        return accumulators[call.name].add(call, derive)

    def observe(call: Call, output: Tensor) -> None:
        if not (asked and asked[-1] is call):
            accumulate(call)

    def derive(call: Call) -> Tensor | None:
        asked[:] = [call]
        return accumulate(call, derive=True)

    num_points = 0
    with torch.no_grad(), tracing(model, observe, derive if derive_outputs else None) as trace:
        batches = iterate_batches(points, batch_size, target)
        for inputs, _ in tqdm(batches, desc="sensitivity", unit="batch", disable=not progress):
            call_model(model, inputs)
            num_points += batch_length(inputs)
    skipped = {name: why for name, why in unmeasured(model, trace).items() if layers is None or name in wanted}
    measured = {
        name: LayerSensitivity(name, *accumulators[name].result())
        for name, _ in model.named_parameters()
        if name in accumulators and name not in trace.embedded
    }
    if not measured:
        raise ModelError(nothing_to_prune(model, skipped))
    return Sensitivity(measured, num_points, patch_reduction, skipped)


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
