"""Cases for the identities: layers and small networks with points, from Hypothesis or from a plain generator.

One builder makes both: it asks a `Choose` for every decision. Hypothesis shrinks the decisions; the numbers in the
tensors come from a seed that is one of them.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from theory_checks.cases.oracle import Layer, with_weight

Choice = TypeVar("Choice")
Array = npt.NDArray[np.float64]

KINDS = ("linear", "tokens", "conv1d", "conv2d", "conv3d")
SIGNS = ("signed", "relu", "negative")
SCALES = ("plain", "plain", "decades", "tiny", "huge", "wide", "denormal", "denormal")
WEIGHTS = ("dense", "dense", "sparse", "equal", "one sign", "dead neuron", "zero column", "single", "dominated")
INPUTS = ("dense", "dense", "sparse", "zero column", "dead point", "one-hot", "dominated")
_BATCH = 64  # points in one batch of the library's
_CONVOLUTIONS: dict[int, type[nn.Conv1d | nn.Conv2d | nn.Conv3d]] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


class Choose(Protocol):
    """Where decisions come from."""

    def pick(self, options: Sequence[Choice]) -> Choice:
        """One of the options."""

    def number(self, low: int, high: int) -> int:
        """A whole number within [low, high]."""


@dataclass(frozen=True)
class Seeded:
    """Decisions from a numpy generator."""

    rng: np.random.Generator

    def pick(self, options: Sequence[Choice]) -> Choice:
        return options[int(self.rng.integers(len(options)))]

    def number(self, low: int, high: int) -> int:
        return int(self.rng.integers(low, high + 1))


@dataclass(frozen=True)
class Drawn:
    """Decisions from Hypothesis."""

    draw: st.DrawFn

    def pick(self, options: Sequence[Choice]) -> Choice:
        return self.draw(st.sampled_from(options))

    def number(self, low: int, high: int) -> int:
        return self.draw(st.integers(low, high))


@dataclass(frozen=True)
class LayerCase:
    """One layer and the points that it sees. seed: for what a check chooses about the case. label: for people."""

    layer: Layer
    points: Tensor
    seed: int
    label: str

    def __str__(self) -> str:
        return self.label

    @property
    def size(self) -> int:
        """n, the weights of one neuron."""
        return self.layer.weight[0].numel()

    @property
    def rng(self) -> np.random.Generator:
        """A new generator for this case, always the same."""
        return np.random.default_rng(self.seed)

    def in_float64(self) -> "LayerCase":
        """The case in float64, weights and points scaled by powers of two so that the largest is about 1.

        Exact, also for denormals: s and r are ratios in which the factors cancel. The oracle works on this one, where
        no product that matters under- or overflows.
        """
        weight, points = (_near_one(t.detach().double()) for t in (self.layer.weight, self.points))
        return LayerCase(with_weight(self.layer, weight), points, self.seed, self.label)


@dataclass(frozen=True)
class NetworkCase:
    """A small network in eval mode and its points, fewer than a batch."""

    model: nn.Module
    points: Tensor
    seed: int
    label: str

    def __str__(self) -> str:
        return self.label


class Residual(nn.Module):
    """x + f(x), `times` times over with the same f: a layer that is called more than once."""

    def __init__(self, inner: nn.Module, times: int = 1) -> None:
        super().__init__()
        self.inner = inner
        self.times = times

    def forward(self, x: Tensor) -> Tensor:
        """The residual sum, `times` times."""
        for _ in range(self.times):
            x = x + self.inner(x)
        return x


def build_layer_case(choose: Choose, kind: str | None = None) -> LayerCase:
    """One layer with points, of any kind or the one given."""
    kind = kind or choose.pick(KINDS)
    dtype = choose.pick((torch.float64, torch.float32))
    seed = choose.number(0, 2**31 - 1)
    rng = np.random.default_rng(seed)
    points = choose.pick((1, 2, 3, 5, 5, _BATCH + 6))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if kind in ("linear", "tokens"):
            inputs, outputs = choose.number(1, 8), choose.number(1, 4)
            layer: Layer = nn.Linear(inputs, outputs, bias=choose.pick((True, False)))
            shape = (points, *((choose.number(1, 4),) if kind == "tokens" else ()), inputs)
            geometry = f"{kind} {inputs} -> {outputs}"
        else:
            layer, spatial = _convolution(choose, int(kind[4]))
            shape = (points, layer.in_channels, *spatial)
            geometry = str(layer)
    settings = [choose.pick(options) for options in (WEIGHTS, SCALES, SIGNS, INPUTS, SCALES)]
    weights, weight_scale, signs, inputs_like, input_scale = settings
    weight = _weights(rng, tuple(layer.weight.shape), weights) * _scale(rng, layer.weight.shape, weight_scale, dtype)
    x = _inputs(rng, shape, signs, inputs_like, 1 if kind.startswith("conv") else -1)
    x = x * _scale(rng, shape, input_scale, dtype)
    layer = with_weight(layer, torch.from_numpy(weight).to(dtype))
    what = f"weights {weights}, {weight_scale}; inputs {signs}, {inputs_like}, {input_scale}"
    return LayerCase(layer, torch.from_numpy(x).to(dtype), seed, f"{geometry}, {points} points, {dtype}; {what}")


def build_network_case(choose: Choose) -> NetworkCase:
    """A small network of convolutions, batch-norm, pooling, residual sums and Linear layers."""
    seed, points = choose.number(0, 2**31 - 1), choose.number(1, 6)
    dtype = choose.pick((torch.float64, torch.float32))
    activation = choose.pick((nn.ReLU, nn.ReLU, nn.Tanh, nn.GELU))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        first = nn.Conv2d(2, 4, 3, stride=choose.pick((1, 2)), padding=1)
        inner = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1, groups=choose.pick((1, 2, 4)), bias=False), activation())
        norm: nn.Module = nn.BatchNorm2d(4) if choose.pick((True, False)) else nn.Identity()
        pool = choose.pick((nn.MaxPool2d(2), nn.AvgPool2d(2), nn.AdaptiveAvgPool2d(2)))
        residual = Residual(inner, choose.pick((1, 2)))
        body = nn.Sequential(first, norm, activation(), residual, pool, nn.Flatten())
        x = torch.randn(points, 2, 6, 6)
        with torch.no_grad():
            width = body.eval()(x).shape[1]
        model = nn.Sequential(*body, nn.Linear(width, 5), activation(), nn.Dropout(), nn.Linear(5, 3))
        if isinstance(norm, nn.BatchNorm2d):
            assert norm.running_var is not None
            assert norm.running_mean is not None
            nn.init.uniform_(norm.running_var, 0.5, 2)
            nn.init.normal_(norm.running_mean)
            nn.init.normal_(norm.weight)
            nn.init.normal_(norm.bias)
    label = f"network of seed {seed}, {points} points, {dtype}: {', '.join(str(part) for part in (first, norm, pool))}"
    return NetworkCase(model.to(dtype).eval(), x.to(dtype), seed, label)


def random_layer_case(rng: np.random.Generator, kind: str | None = None) -> LayerCase:
    """A layer case from a plain generator."""
    return build_layer_case(Seeded(rng), kind)


def random_network_case(rng: np.random.Generator) -> NetworkCase:
    """A network case from a plain generator."""
    return build_network_case(Seeded(rng))


def random_layer_cases(rng: np.random.Generator, count: int) -> list[LayerCase]:
    """Cases in which all kinds of layers take turns."""
    return [random_layer_case(rng, kind) for kind, _ in zip(itertools.cycle(KINDS), range(count), strict=False)]


@st.composite
def layer_cases(draw: st.DrawFn, kind: str | None = None) -> LayerCase:
    """Layer cases for Hypothesis."""
    return build_layer_case(Drawn(draw), kind)


@st.composite
def network_cases(draw: st.DrawFn) -> NetworkCase:
    """Network cases for Hypothesis."""
    return build_network_case(Drawn(draw))


def _convolution(choose: Choose, dimensions: int) -> tuple[Layer, tuple[int, ...]]:
    """A convolution and a spatial size that it accepts, also without padding."""
    groups = choose.pick((1, 1, 2, 3))
    channels, outputs = groups * choose.pick((1, 1, 2)), groups * choose.number(1, 2)
    largest_kernel = {1: 4, 2: 3, 3: 2}[dimensions]
    kernel, dilation, room = (
        tuple(choose.number(low, high) for _ in range(dimensions))
        for low, high in ((1, largest_kernel), (1, 2), (0, 5 - dimensions))
    )
    spatial = tuple(d * (k - 1) + 1 + r for d, k, r in zip(dilation, kernel, room, strict=True))
    stride = tuple(choose.number(1, 3) for _ in range(dimensions))
    mode = choose.pick(("zeros", "zeros", "reflect", "replicate", "circular"))
    padding: str | tuple[int, ...] = choose.pick(("numbers", "numbers", "same", "same", "valid"))
    if padding == "numbers":
        # Only zeros can be added without limit: a reflection is shorter than what it reflects.
        padding = tuple(choose.number(0, 2 if mode == "zeros" else min(2, size - 1)) for size in spatial)
    if padding == "same":
        stride = (1,) * dimensions
    layer: Layer = _CONVOLUTIONS[dimensions](
        channels,
        outputs,
        kernel,  # type: ignore[arg-type]  # a tuple as long as the convolution has dimensions
        stride,  # type: ignore[arg-type]
        padding,  # type: ignore[arg-type]
        dilation,  # type: ignore[arg-type]
        groups,
        bias=choose.pick((True, False)),
        padding_mode=mode,  # type: ignore[arg-type]  # one of torch's four
    )
    return layer, spatial


def _weights(rng: np.random.Generator, shape: tuple[int, ...], like: str) -> Array:
    rows = rng.standard_normal((shape[0], int(np.prod(shape[1:]))))
    one = rng.integers(rows.shape[1], size=len(rows))
    chosen = np.arange(rows.shape[1]) == one[:, None]
    match like:
        case "sparse":
            rows[rng.random(rows.shape) < 0.6] = 0
        case "equal":
            rows[:] = rows[0, 0]
        case "one sign":
            rows = np.abs(rows)
        case "dead neuron":
            rows[rng.integers(len(rows))] = 0
        case "zero column":
            rows[:, one[0]] = 0
        case "single":
            rows[~chosen] = 0
        case "dominated":
            rows[chosen] *= 1e3
    return rows.reshape(shape)


def _inputs(rng: np.random.Generator, shape: tuple[int, ...], signs: str, like: str, channels: int) -> Array:
    x = rng.standard_normal(shape)
    flat = x.reshape(len(x), -1)
    chosen = np.arange(flat.shape[1]) == rng.integers(flat.shape[1], size=(len(x), 1))
    match like:
        case "sparse":
            x[rng.random(shape) < 0.6] = 0
        case "zero column":
            np.moveaxis(x, channels, 0)[rng.integers(shape[channels])] = 0
        case "dead point":
            x[0] = 0
        case "one-hot":
            flat[~chosen] = 0
        case "dominated":
            flat[chosen] *= 1e3
    if len(x) > _BATCH:  # the first batch is one point over and over: most maxima are in what comes after it
        x[:_BATCH] = x[0]
    return {"signed": x, "relu": np.maximum(x, 0), "negative": -np.abs(x)}[signs]


def _scale(rng: np.random.Generator, shape: Sequence[int], like: str, dtype: torch.dtype) -> Array | float:
    """Factors: one for all, or one for each entry ("decades", "wide")."""
    fixed = {"plain": 1.0, "tiny": 1e-30, "huge": 1e30, "denormal": torch.finfo(dtype).tiny * 1e-3}
    if like in fixed:
        return fixed[like]
    decades = {"decades": 4, "wide": 30}[like]
    return np.asarray(10 ** rng.uniform(-decades, decades, tuple(shape)))


def _near_one(values: Tensor) -> Tensor:
    """Times the power of two that brings the largest magnitude into [1/2, 1)."""
    exponent = -int(torch.frexp(values.abs().amax())[1]) if values.numel() else 0
    # In two steps: 2**exponent alone overflows for denormals.
    half = exponent // 2
    return values * 2.0**half * 2.0 ** (exponent - half)
