"""Points in, empirical sensitivity out: which weights, quadrants, merging shards (THEORY section 1, claim C1)."""

import copy
import fnmatch
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from sipp_bench import maxtimes
from sipp_bench.errors import ModelError, OptionError
from sipp_bench.patches import Windows, windows
from sipp_bench.points import Points, batch_length, call_model, iterate_batches, model_device
from sipp_bench.quadrants import block_magnitudes, full_precision, reciprocals, window_sums
from sipp_bench.tracing import Call, check_parameters, tracing, unmeasured

PatchReduction = Literal["max", "mean"]

# Numbers in one chunk of patches and their sums: 64 MiB of float32, or 4 MiB where only the sums are ever stored, so
# that they stay in the cache.
_CHUNK, _CACHED_CHUNK = 1 << 24, 1 << 20
# Numbers in one part of a weight's rows (see `row_parts`): 1 MiB of float64. Fresh memory costs more than arithmetic.
PART = 1 << 17
# Where float32 is safe: inside, no product that matters to a sum under- or overflows (see `_needs_double`).
_SMALLEST_SUM, _LARGEST_SUM, _SMALLEST_PRODUCT, _LARGEST_QUOTIENT = 1e-25, 1e25, 1e-37, 1e37


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

    @property
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
    progress: bool = False,
) -> Sensitivity:
    """Empirical sensitivity of every Linear and ConvNd weight of `model` over `points` (THEORY section 1).

        s_ij = max over x in S, patches p, tau in {+,-} of |w_ij| (a_j(x,p))_tau / Z_i^{sigma(j),tau}(x,p)

    points: Tensor (N, ...), a Dataset or a DataLoader (labels ignored). layers: names or glob patterns of parameters
    or modules; default all. patch_reduction: "max" (the definition) or, for convolutions, "mean" over the patches of
    a point before the maximum over points (the authors' choice, THEORY section 6; claim C2 then speaks of patch
    averages only). device: where the work is done; default the model's device; the model itself is not moved. backend: of the
    max-times product (`sipp_bench.maxtimes`); default what SIPP_BENCH_BACKEND says, else the fastest there is.
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
    target = model_device(model) if device is None else torch.device(device)
    if target != model_device(model):
        model = copy.deepcopy(model).to(target)
    wanted = _matching(model, layers)
    accumulators: dict[str, _Accumulator] = {}

    def observe(call: Call, output: Tensor) -> None:
        if call.name in wanted:
            if call.name not in accumulators:
                parameter = dict(model.named_parameters())[call.name]
                accumulators[call.name] = _Accumulator(
                    call.name, parameter.detach(), call.groups, patch_reduction, backend
                )
            accumulators[call.name].add(call)

    num_points = 0
    with torch.no_grad(), tracing(model, observe) as trace:
        batches = iterate_batches(points, batch_size, target)
        for inputs, _ in tqdm(batches, desc="sensitivity", unit="batch", disable=not progress):
            call_model(model, inputs)
            num_points += batch_length(inputs)
    skipped = {name: why for name, why in unmeasured(model, trace).items() if layers is None or name in wanted}
    measured = {
        name: accumulators[name].result()
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


def row_parts(rows: int, columns: int) -> Iterator[slice]:
    """Slices of whole rows, few enough numbers each that a handful of temporaries stays in the cache."""
    # glibc hands freed memory back to the system beyond twice the largest block (of up to 32 MiB) that it has mapped and
    # freed so far: after this one, never touched, the temporaries of one part find those of the last still there.
    torch.empty(24 << 20, dtype=torch.uint8)
    step = max(1, PART // max(1, columns))
    return (slice(start, min(start + step, rows)) for start in range(0, rows, step))


def block_sums(values: Tensor, positive: Tensor, among: Tensor | None = None) -> Tensor:
    """Sums over blocks of numbers shaped like a weight: (neurons, 2) float64, positive weights first.

    among: marks the numbers that count; default all.
    """
    rows, signs = values.flatten(1), positive.flatten(1)
    counted = None if among is None else among.flatten(1)
    sums = torch.zeros(len(rows), 2, dtype=torch.float64, device=rows.device)
    for part in row_parts(*rows.shape):
        numbers = rows[part].double()
        if counted is not None:
            numbers = numbers * counted[part].double()
        # Products with 0 and 1 are exact, and several times as fast as torch.where.
        plus = numbers * signs[part].double()
        sums[part, 0], sums[part, 1] = plus.sum(1), (numbers - plus).sum(1)
    return sums


def _matching(model: nn.Module, layers: Sequence[str] | str | None) -> set[str]:
    """Names of the parameters that `layers` asks for."""
    names = [name for name, parameter in model.named_parameters() if parameter.ndim >= 2]
    if layers is None:
        return set(names)
    chosen: set[str] = set()
    for pattern in [layers] if isinstance(layers, str) else layers:
        hits = {name for name in names if any(fnmatch.fnmatchcase(n, pattern) for n in (name, name.rpartition(".")[0]))}
        if not hits:
            raise OptionError(f"No layer of the network matches {pattern!r}. Its weights are: {', '.join(names)}.")
        chosen |= hits
    return chosen


def _scale_(rows: Tensor) -> Tensor:
    """Each row of non-negative numbers (last dimension) times the power of two that brings its largest into [1, 2).

    In place: memory that is touched for the first time costs more than the arithmetic.
    """
    largest = rows.amax(-1, keepdim=True)
    exponents = 1 - torch.frexp(largest)[1]
    # In two steps: 2**exponent alone can overflow for denormal numbers.
    halves = (exponents // 2, exponents - exponents // 2)
    for half in halves if bool((exponents.abs() > 100).any()) else (exponents,):
        rows.mul_(torch.ldexp(torch.ones_like(largest), half))
    return rows


def _largest_mean(chunk: Windows, z: Tensor, samples: int, positive: Tensor) -> Tensor:
    """max over points of the mean over their patches of a / Z: (groups, M, n), as batched products."""
    a, r = chunk.unfold(), reciprocals(z)
    groups, _, n = a.shape
    a, r = (t.reshape(groups, samples, -1, t.shape[2]) for t in (a, r))
    best = torch.zeros_like(positive, dtype=a.dtype)
    size = max(1, _CHUNK // max(groups * r.shape[3] * n, 1))
    for k in range(0, samples, size):
        means = (r[:, k : k + size].transpose(2, 3) @ a[:, k : k + size]).amax(1) / a.shape[2]
        torch.maximum(best, torch.where(positive, *means.chunk(2, dim=1)), out=best)
    return best


class _Accumulator:
    """Running maximum of g / |w| for one weight, over calls, chunks and activation signs.

    Each block's weights are scaled by a power of two: exact, since s does not change when a block is scaled (claim
    C1), and it keeps the sums of nearly dead neurons inside float32's range.
    """

    def __init__(self, name: str, weight: Tensor, groups: int, reduction: PatchReduction, backend: str | None) -> None:
        self.name = name
        self.backend = backend
        chosen = maxtimes.choose(weight.device, torch.float32, backend)
        self.unfolded = chosen in ("torch", "reference")
        self.limit = _CHUNK if self.unfolded or weight.device.type != "cpu" else _CACHED_CHUNK
        self.shape = weight.shape
        self.reduction = reduction
        self.dtype = torch.float64 if weight.dtype == torch.float64 else torch.float32
        neurons = weight.shape[0] // groups
        self.positive = (weight > 0).reshape(groups, neurons, -1)
        self.magnitudes = _scale_(block_magnitudes(weight.to(self.dtype), groups))
        count = torch.zeros(self.magnitudes.shape[:2], dtype=torch.int64, device=weight.device)
        self.smallest_weight, _ = maxtimes.survey(self.magnitudes[None], count, backend)
        # A weight with a block that spans more than float32's normal range is measured in float64.
        normal = torch.finfo(torch.float32).tiny
        if self.smallest_weight < normal or int(count.sum()) < int(torch.count_nonzero(weight)):
            self.magnitudes = _scale_(block_magnitudes(weight.double(), groups))
            self.smallest_weight = 0.0
        self.quotients: Tensor | None = None
        self.best: Tensor | None = None
        self.active = torch.zeros(groups, 2 * neurons, dtype=torch.int64, device=weight.device)
        self.num_patches = 0

    def add(self, call: Call) -> None:
        """Fold in one application of (some rows of) the weight."""
        if not all(math.isfinite(float(end)) for end in torch.aminmax(call.input)):
            raise ModelError(
                f"The input of layer {call.name!r} holds NaN or infinity on these points: look at the layers before it."
            )
        self.num_patches += call.count_patches()
        average = self.reduction == "mean" and call.geometry is not None
        # Rows of a part of the weight occur for Linear only, where there is one group.
        part = call.rows if self.positive.shape[0] == 1 else slice(None)
        with full_precision(call.input.device):
            x = call.input.to(self.dtype)
            for chunk in windows(x, call.weight, call.geometry, self.limit, unfolded=self.unfolded or average):
                samples = chunk.x.shape[0]
                for one_sign in chunk.signs():
                    self._fold(one_sign, samples, part, average)

    def _fold(self, chunk: Windows, samples: int, part: slice, average: bool) -> None:
        neurons = self.positive.shape[1]
        magnitudes, positive = self.magnitudes, self.positive[:, part]
        if positive.shape[1] < neurons:
            magnitudes = torch.cat([magnitudes[:, :neurons][:, part], magnitudes[:, neurons:][:, part]], 1)
        active = torch.zeros(magnitudes.shape[:2], dtype=torch.int64, device=magnitudes.device)
        double = magnitudes.dtype == torch.float64
        if not double:
            z = window_sums(chunk, magnitudes)
            smallest, largest = maxtimes.survey(z, active, self.backend)
            double = self._needs_double(chunk.x, smallest, largest, int(active.sum()) == z.numel())
        if double:
            # Neither does s change when a patch is scaled, so that float64's own denormals are no trouble.
            chunk = Windows(_scale_(chunk.unfold().double()).transpose(1, 2).contiguous())
            z = window_sums(chunk, magnitudes.double())
            maxtimes.survey(z, active.zero_(), self.backend)
        half = positive.shape[1]
        self.active[:, :neurons][:, part] += active[:, :half]
        self.active[:, neurons:][:, part] += active[:, half:]
        if average:
            found = _largest_mean(chunk, z, samples, positive)
        elif double:
            found = torch.zeros_like(positive, dtype=torch.float64)
            maxtimes.max_product(chunk, z, positive, found, self.backend)
        else:
            maxtimes.max_product(chunk, z, positive, self._quotients()[:, part], self.backend)
            return
        if double:
            # Multiplied while still in the wider dtype: a / Z alone may be outside float32's range.
            signed = torch.where(positive, magnitudes[:, :half], magnitudes[:, half:])
            found, best = (found * signed).to(self.dtype), self._best()[:, part]
        else:
            best = self._quotients()[:, part]
        torch.maximum(best, found, out=best)

    def _quotients(self) -> Tensor:
        """Running maximum of a / Z, from chunks whose numbers float32 holds."""
        if self.quotients is None:
            self.quotients = torch.zeros_like(self.positive, dtype=self.dtype)
        return self.quotients

    def _best(self) -> Tensor:
        """Running maximum of |w| a / Z, from the other chunks."""
        if self.best is None:
            self.best = torch.zeros_like(self.positive, dtype=self.dtype)
        return self.best

    def _needs_double(self, x: Tensor, smallest: float, largest: float, all_live: bool) -> bool:
        """Whether float32 could under- or overflow in this chunk, with sums between these.

        Sums within [1e-25, 1e25] are safe, since each block's largest weight is about 1. A sum of 0 is exact unless
        the smallest weight times the smallest activation is too small for float32.
        """
        if smallest < _SMALLEST_SUM or not largest < _LARGEST_SUM:
            return True
        if largest > 0 and float(x.amax()) / smallest > _LARGEST_QUOTIENT:
            return True
        if all_live:
            return False
        return self.smallest_weight * float(torch.where(x > 0, x, 1.0).amin()) < _SMALLEST_PRODUCT

    def result(self) -> LayerSensitivity:
        """Sensitivities in the shape of the weight; rounding above 1 is cut off (claim C1). Ends the accumulation."""
        neurons = self.positive.shape[1]
        active = torch.stack([self.active[:, :neurons].flatten(), self.active[:, neurons:].flatten()], 1)
        values = self.best
        if self.quotients is not None:
            # One of the two is 0, so that their sum is |w|. In place: nothing of this is needed again.
            found = self.quotients.mul_(self.magnitudes[:, :neurons].add_(self.magnitudes[:, neurons:]))
            values = found if values is None else torch.maximum(values, found)
        if values is None:  # no activation was ever different from 0
            values = torch.zeros_like(self.positive, dtype=self.dtype)
        return LayerSensitivity(
            self.name,
            # Adding 0 turns the -0.0 of inputs that are -0.0 into 0.0, by which people divide.
            values.clamp_(max=1).add_(0.0).reshape(self.shape),
            self.positive.reshape(self.shape),
            active,
            self.num_patches,
        )
