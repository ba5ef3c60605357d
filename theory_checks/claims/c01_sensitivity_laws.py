"""C1: the laws of empirical sensitivity."""

from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch import Tensor, nn

from sipp_bench.compression.rounding import gamma, sensitivity_rounding, sensitivity_underflow
from sipp_bench.sensitivity.measure import LayerSensitivity
from theory_checks.cases import oracle
from theory_checks.cases.strategies import LayerCase, NetworkCase, random_layer_cases, random_network_case
from theory_checks.evidence.finding import Effort
from theory_checks.evidence.identity import Comparison, IdentityClaim, close
from theory_checks.subjects.subject import Subject

# 16 points of these, with 2 inputs and 2 * 2 sums each, are more than the library takes into one chunk (2^24 numbers),
# so that its splitting is looked at as well.
_LARGE_TOKENS = 180_000


class SensitivityLaws(IdentityClaim[LayerCase | NetworkCase]):
    """0 <= s <= 1; T >= 1 for a block active anywhere on S, T <= its weights and <= the number of its active
    (x, p, tau), so T = 1 with a single one. s stays as it is when a row's block or a layer input is scaled by a
    positive number and when a becomes -a; permutes with outputs and inputs; never falls when S grows;
    s(S1 u S2) = max(s(S1), s(S2)). A convolution equals the linear map over its unfolded patches.

    Proof idea: each g = |w_j| (a_j)_tau / Z is a share of a sum of non-negative numbers, the shares of one active
    (x, p, tau) add up to 1, and s is a maximum over (x, p, tau), a set that none of the changes alters. An
    independent oracle gives the values themselves, for layers of all geometries and for whole networks.
    """

    number = "C1"
    title = "Sensitivity laws"
    statement = (
        "0 <= s <= 1; 1 <= T <= min(weights, active (x, p, tau)) for active blocks; invariant under positive scaling "
        "and a -> -a; permutes with outputs and inputs; merges by max; a convolution is the linear map over its "
        "patches."
    )
    rejects = (
        "magnitudes for sensitivities",
        "mean over points",
        "first half of S only",
        "first batch of S only",
        "one sign zeroed",
        "first patch only",
        "sensitivities halved",
        "sensitivities of 1",
        "negative activations ignored",
        "bias inside Z",
        "small sums are zero",
        "stride ignored",
        "padding ignored",
    )

    def cases(self, effort: Effort, rng: np.random.Generator) -> Iterable[LayerCase | NetworkCase]:
        """All kinds of layers in turn, small networks, uneven padding, one sample that fills more than a chunk."""
        yield from random_layer_cases(rng, 2 * effort.cases)  # many geometries, dtypes and scales to meet
        yield from (_uneven_padding(rng, convolution) for convolution in (nn.Conv1d, nn.Conv2d, nn.Conv3d))
        for _ in range(effort.cases // 6):
            yield random_network_case(rng)
        yield _large_case(rng)

    def compare(self, subject: Subject, case: LayerCase | NetworkCase) -> Iterator[Comparison]:
        """Every law on a layer; equality with the oracle on each layer of a network."""
        if isinstance(case, NetworkCase):
            sens = subject.sensitivity(case.model, case.points)
            for name, (layer, inputs) in oracle.layer_inputs(case.model, case.points).items():
                yield from _equals_oracle(sens[f"{name}.weight"], layer, inputs)
            return
        found = _measure(subject, case)
        if case.points.shape[1:2] == (_LARGE_TOKENS,):
            halves = [_measure(subject, case, points=part) for part in case.points.chunk(2, 1)]
            yield from _same("chunks", found, torch.maximum(halves[0].values, halves[1].values), case)
            return
        exact = case.in_float64()
        yield from _equals_oracle(found, exact.layer, exact.points, case.layer.weight.dtype)
        yield from _range(found, case)
        yield from _scaling(subject, found, case)
        yield from _same("a -> -a", _measure(subject, case, points=-case.points), found.values, case)
        yield from _permutations(subject, found, case)
        yield from _more_points(subject, found, case)
        if not isinstance(case.layer, nn.Linear):
            yield from _unfolded(subject, found, case)


CLAIM = SensitivityLaws()


def _measure(
    subject: Subject, case: LayerCase, weight: Tensor | None = None, points: Tensor | None = None
) -> LayerSensitivity:
    layer = case.layer if weight is None else oracle.with_weight(case.layer, weight)
    return subject.sensitivity(layer, case.points if points is None else points)["weight"]


def _equals_oracle(
    found: LayerSensitivity, layer: oracle.Layer, inputs: Tensor, dtype: torch.dtype | None = None
) -> Iterator[Comparison]:
    dtype = dtype or layer.weight.dtype
    expected = oracle.sensitivities(layer, inputs)
    slack = expected * sensitivity_rounding(expected.shape[1], dtype) + sensitivity_underflow(dtype)
    yield close("equals the oracle", found.values.flatten(1), expected, slack)
    z = oracle.quadrant_sums(layer, inputs)
    yield close("active (x, p, tau) counted", found.active, (z > 0).sum((0, 1, 4)), 0)
    yield close("patches counted", found.num_patches, z.shape[0] * z.shape[1], 0)


def _same(law: str, found: LayerSensitivity, expected: Tensor, case: LayerCase, extra: int = 0) -> Iterator[Comparison]:
    """Two measurements of one exact value: each has its own rounding. extra: roundings of the changed case."""
    dtype = case.layer.weight.dtype
    relative = 2 * gamma(case.size + 4 + extra, dtype)
    yield close(law, found.values, expected, expected.double() * relative + 2 * sensitivity_underflow(dtype))


def _range(found: LayerSensitivity, case: LayerCase) -> Iterator[Comparison]:
    weight = case.layer.weight.detach().flatten(1)
    dtype = weight.dtype
    slack = gamma(case.size + 4, dtype) + case.size * sensitivity_underflow(dtype)
    total = found.totals
    live = found.active > 0
    yield Comparison("0 <= s", -found.values.double(), 0)
    yield Comparison("s <= 1", found.values, 1)
    yield Comparison("s = 0 where w = 0", found.values.flatten(1)[weight == 0], 0)
    yield Comparison("T >= 1 where active", 1, total[live], slack)
    yield Comparison("T = 0 where never active", total[~live], 0)
    yield Comparison("T <= number of active (x, p, tau)", total, found.active, found.active * slack)
    yield Comparison("T <= weights", total, torch.stack([(weight > 0).sum(1), (weight < 0).sum(1)], 1))
    alone = found.active == 1
    yield close("one active (x, p, tau): T = 1", total[alone], torch.ones_like(total[alone]), slack)


def _scaling(subject: Subject, found: LayerSensitivity, case: LayerCase) -> Iterator[Comparison]:
    """Factors of at least 1, so that denormals keep their digits; powers of two are exact, three costs a rounding."""
    rng, weight = case.rng, case.layer.weight.detach()
    rows = weight.flatten(1)

    def factors(*shape: int) -> Tensor:
        chosen = rng.choice([1.0, 3.0], shape) * 2.0 ** rng.integers(0, 11, shape)
        return torch.from_numpy(chosen).to(weight.dtype)

    blocks = factors(len(rows), 2)
    scaled = torch.where(rows > 0, rows * blocks[:, :1], rows * blocks[:, 1:]).reshape(weight.shape)
    yield from _same("a block scaled", _measure(subject, case, weight=scaled), found.values, case, 2)
    inputs = factors(len(case.points), *(1 for _ in case.points.shape[1:]))
    scaled_points = _measure(subject, case, points=case.points * inputs)
    yield from _same("an input scaled", scaled_points, found.values, case, 2)


def _permutations(subject: Subject, found: LayerSensitivity, case: LayerCase) -> Iterator[Comparison]:
    rng, weight = case.rng, case.layer.weight.detach()
    groups = 1 if isinstance(case.layer, nn.Linear) else case.layer.groups
    per_group, channels = len(weight) // groups, weight.shape[1]
    rows, columns = torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=torch.int64)
    shuffled, expected = [], []
    for group in range(groups):
        row = torch.from_numpy(rng.permutation(per_group)) + group * per_group
        column = torch.from_numpy(rng.permutation(channels))
        rows, columns = torch.cat([rows, row]), torch.cat([columns, column + group * channels])
        shuffled.append(weight[row][:, column])
        expected.append(found.values[row][:, column])
    axis = case.points.ndim - 1 if isinstance(case.layer, nn.Linear) else 1
    moved = _measure(subject, case, torch.cat(shuffled), case.points.index_select(axis, columns))
    yield from _same("outputs and inputs permuted", moved, torch.cat(expected), case)
    yield close("outputs permuted: active", moved.active, found.active[rows], 0)


def _more_points(subject: Subject, found: LayerSensitivity, case: LayerCase) -> Iterator[Comparison]:
    if len(case.points) < 2:
        return
    at = int(case.rng.integers(1, len(case.points)))
    parts = [subject.sensitivity(case.layer, part) for part in (case.points[:at], case.points[at:])]
    dtype = case.layer.weight.dtype
    for part in parts:
        s = part["weight"].values.double()
        slack = 2 * (s * gamma(case.size + 4, dtype) + sensitivity_underflow(dtype))
        yield Comparison("never falls when S grows", s, found.values, slack)
    merged = parts[0].merge(parts[1])["weight"]
    yield from _same("merges by max", merged, found.values, case)
    yield close("merged: active", merged.active, found.active, 0)


def _unfolded(subject: Subject, found: LayerSensitivity, case: LayerCase) -> Iterator[Comparison]:
    """Each group of a convolution as a Linear on tokens, its patches."""
    weight = case.layer.weight.detach()
    patches = oracle.patches(case.layer, case.points).to(weight.dtype)
    values = []
    for rows, tokens in zip(weight.flatten(1).chunk(len(patches)), patches, strict=True):
        linear = nn.Linear(rows.shape[1], len(rows), bias=False)
        values.append(subject.sensitivity(oracle.with_weight(linear, rows), tokens)["weight"].values)
    yield from _same("the linear map over its patches", found, torch.cat(values).reshape(weight.shape), case)


def _uneven_padding(rng: np.random.Generator, convolution: type[nn.Conv1d | nn.Conv2d | nn.Conv3d]) -> LayerCase:
    """padding="same" with an odd number of zeros, of which one more goes after; the dimensions differ in all else."""
    dimensions = {nn.Conv1d: 1, nn.Conv2d: 2, nn.Conv3d: 3}[convolution]
    kernel, dilation = (4, 2, 2)[:dimensions], (1, 3, 1)[:dimensions]
    layer = convolution(2, 2, kernel, padding="same", dilation=dilation)  # type: ignore[arg-type]  # of its length
    weight = torch.from_numpy(rng.standard_normal(tuple(layer.weight.shape)))
    points = torch.from_numpy(rng.standard_normal((3, 2, *(5, 4, 3)[:dimensions])))
    return LayerCase(oracle.with_weight(layer, weight), points, int(rng.integers(2**31)), str(layer))


def _large_case(rng: np.random.Generator) -> LayerCase:
    """Tokens in one batch that hold more numbers than one chunk, their extremes at both ends; no half of them does."""
    layer = nn.Linear(2, 2, bias=False)
    weight = torch.from_numpy(rng.uniform(1, 2, (2, 2)) * [[1, -1], [1, 1]]).float()
    points = torch.from_numpy(rng.uniform(1, 2, (16, _LARGE_TOKENS, 2)).astype(np.float32))
    points[0, 0, 0] = points[-1, -1, 1] = 1e3
    return LayerCase(oracle.with_weight(layer, weight), points, 0, f"{_LARGE_TOKENS} tokens a point")
