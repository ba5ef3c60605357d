"""How claim C7's bound e passes through each operation, one rule a name, with the rounding that it has to contain.

Rounding, for arithmetic with unit roundoff u (2^-53 for float64): a sum of n products, in whatever order, is within
gamma_n sum |terms| of the exact one, gamma_n = n u / (1 - n u) (Higham, Accuracy and Stability of Numerical
Algorithms, 2nd ed., 3.1). Both networks are rounded and so is e, in float64: e gets gamma_{4 (n + 4)} times the terms
of both runs, where each of the three (the dense run, the pruned run, e itself) needs at most gamma_{n + 4}. The pruned
network's values are not known here; they are at most |a| + e.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from sipp_bench.errors import ModelError

# Questions about a tensor that have the same answer in both networks.
HARMLESS = frozenset(
    (
        "shape", "ndim", "dtype", "device", "layout", "requires_grad", "is_cuda", "size", "dim", "ndimension", "numel",
        "stride", "nelement", "is_contiguous", "is_floating_point", "is_complex", "__len__", "get_device", "type",
        "is_nested", "is_sparse", "is_quantized", "is_leaf", "grad_fn", "itemsize",
    )
)  # fmt: skip


class Bounds(Protocol):
    """What a rule may ask. unit: u of both runs. pruned_weights: by id of the dense network's parameter or buffer."""

    unit: float
    pruned_weights: dict[int, Tensor]

    def differs(self, tensor: Tensor) -> bool: ...
    def error(self, tensor: Tensor) -> Tensor: ...


Rule = Callable[[Bounds, Any, tuple[Any, ...], dict[str, Any]], Any]


def tensors_in(arguments: Any) -> Iterator[Tensor]:
    """Every tensor in nested tuples, lists and dicts of arguments."""
    if isinstance(arguments, Tensor):
        yield arguments
    elif isinstance(arguments, tuple | list):
        for each in arguments:
            yield from tensors_in(each)
    elif isinstance(arguments, dict):
        yield from tensors_in(list(arguments.values()))


def gamma(n: int, unit: float) -> float:
    """gamma_{4 (n + 4)}: the share of its terms that rounding can move a bound by; infinite where that is all of it."""
    k = 4 * (n + 4) * unit
    return k / (1 - k) if k < 1 else math.inf


def _only_first(run: Bounds, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Value and bound of the first argument, the only one that may differ."""
    if any(run.differs(tensor) for tensor in tensors_in((args[1:], kwargs))):
        raise ModelError(
            "A parameter of an activation or of batch-norm differs in the pruned network: no bound has it."
        )
    return args[0].double(), run.error(args[0])


def _linear(run: Bounds, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """e' = |What| e + |(What - W) a| + |bhat - b|, for F.linear and torch.convNd."""
    named = dict(zip(("input", "weight", "bias"), args, strict=False)) | kwargs
    x, weight, bias = named.pop("input"), named.pop("weight"), named.pop("bias", None)
    rest = args[3:]
    if run.differs(weight) and id(weight) not in run.pruned_weights:
        raise ModelError("A weight is computed from others that were pruned (weight norm, a slice): no bound has it.")
    w, pruned = weight.double(), run.pruned_weights.get(id(weight), weight).double()
    a, e = x.double(), run.error(x)

    def apply(values: Tensor, by: Tensor) -> Tensor:
        out: Tensor = func(values, by, None, *rest, **named)
        return out

    terms = apply(a.abs(), w.abs() + pruned.abs())
    bound: Tensor = torch.zeros_like(terms)
    if run.differs(x):
        spread = apply(e, pruned.abs())
        bound, terms = bound + spread, terms + spread
    if run.differs(weight):
        bound = bound + apply(a, pruned - w).abs()
    if bias is not None:
        shape = (-1,) if func is F.linear else (-1,) + (1,) * (weight.ndim - 2)
        change, size = (t.reshape(shape) for t in (run.error(bias), bias.double().abs()))
        bound, terms = bound + change, terms + 2 * size + change
    return bound + gamma(weight[0].numel(), run.unit) * terms


def _same_places(run: Bounds, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Operations that move numbers, or take the largest: the same operation on the bounds. Exact."""

    def bounds(argument: Any) -> Any:
        if isinstance(argument, Tensor) and argument.is_floating_point():
            return run.error(argument).clone()
        return type(argument)(bounds(each) for each in argument) if isinstance(argument, list | tuple) else argument

    return func(*bounds(args), **{name: bounds(value) for name, value in kwargs.items()})


def _pad(run: Bounds, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """Padding by a constant has bound 0, whatever the constant; the other modes copy numbers."""
    _, e = _only_first(run, args, kwargs)
    given = dict(zip(("pad", "mode"), args[1:3], strict=False)) | kwargs
    padded: Tensor = F.pad(e, given["pad"], given.get("mode", "constant"))
    return padded


def _average(run: Bounds, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """Averages and sums of entries: the same on the bounds. At most all entries of a point are in one."""
    a, e = _only_first(run, args, kwargs)
    out: Tensor
    out, terms = (func(values, *args[1:], **kwargs).abs() for values in (e, 2 * a.abs() + e))
    moved: Tensor = out + terms * gamma(a.numel(), run.unit)
    return moved


def _batch_norm(run: Bounds, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """e |gamma| / sqrt(var + eps), in eval mode with the same statistics and parameters."""
    a, e = _only_first(run, args, kwargs)
    names = ("running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")
    given = dict(zip(names, args[1:], strict=False)) | kwargs
    mean, var = given["running_mean"], given["running_var"]
    if given.get("training") or mean is None or var is None:
        raise ModelError("A batch-norm layer without running statistics mixes the points of a batch: no bound has it.")
    shape = (1, -1) + (1,) * (a.ndim - 2)
    gain = torch.rsqrt(var.double() + given.get("eps", 1e-5))
    gain = gain if given.get("weight") is None else gain * given["weight"].double().abs()
    shift = 0.0 if given.get("bias") is None else given["bias"].double().abs().reshape(shape)
    gain, mean = gain.reshape(shape), mean.double().abs().reshape(shape)
    moved: Tensor = e * gain + (gain * (2 * (a.abs() + mean) + e) + 2 * shift) * gamma(4, run.unit)
    return moved


def _add(run: Bounds, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """Sums and differences (residuals): the bounds add up."""
    (a, e), (b, f) = (_operand(run, each) for each in _pair(args, kwargs))
    factor = max(1.0, abs(kwargs.get("alpha", 1)))  # rsub has it on the other operand
    bound = factor * (e + f)
    moved: Tensor = bound + (2 * factor * (a.abs() + b.abs()) + bound) * gamma(2, run.unit)
    return moved


def _multiply(run: Bounds, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """Products: |a| f + |b| e + e f."""
    (a, e), (b, f) = (_operand(run, each) for each in _pair(args, kwargs))
    bound = a.abs() * f + b.abs() * e + e * f
    return bound + gamma(2, run.unit) * (2 * (a * b).abs() + bound)


def _divide(run: Bounds, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """Quotients by what is the same in both networks."""
    given, by = _pair(args, kwargs)
    if kwargs.get("rounding_mode") or (isinstance(by, Tensor) and run.differs(by)):
        raise ModelError("A division by what pruning has changed, or one that rounds down, has no bound here.")
    (a, e), (b, _) = _operand(run, given), _operand(run, by)
    return e / b.abs() + gamma(2, run.unit) * (2 * a.abs() + e) / b.abs()


def _pair(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
    return args[0], args[1] if len(args) > 1 else kwargs["other"]


def _operand(run: Bounds, value: Any) -> tuple[Tensor, Tensor]:
    if isinstance(value, Tensor):
        return value.double(), run.error(value)
    number = torch.tensor(float(value), dtype=torch.float64)
    return number, torch.zeros_like(number)


def _lipschitz(constant: float | Callable[..., float], exact: bool = False) -> Rule:
    """L e, for functions of one number with |f(x)| <= L |x| + 1 that are computed to within 8 u (|x| + |f(x)|)."""

    def rule(run: Bounds, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        a, e = _only_first(run, args, kwargs)
        options = {name: value for name, value in kwargs.items() if name not in ("inplace", "approximate")}
        factor = constant if isinstance(constant, float) else constant(*args[1:2], **options)
        if exact:
            return factor * e
        return factor * e + gamma(4, run.unit) * ((1 + factor) * (2 * a.abs() + e) + 2)

    return rule


def _identity(run: Bounds, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """Dropout in eval mode."""
    training = args[2] if len(args) > 2 else kwargs.get("training", kwargs.get("train", True))
    if training:
        raise ModelError("The network draws at random in eval mode (dropout that stays on): no bound has it.")
    return _only_first(run, args, kwargs)[1]


def _log_softmax(run: Bounds, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """e_i + max over k of e_k: the logarithm of the sum moves by at most the largest."""
    a, e = _only_first(run, args, kwargs)
    dim = kwargs.get("dim", args[1] if len(args) > 1 else None)
    if dim is None:
        raise ModelError("log_softmax needs its dim named.")
    largest = e.amax(dim, keepdim=True)
    size = 2 * a.abs().amax(dim, keepdim=True) + largest + math.log(a.shape[dim])
    return e + largest + gamma(a.shape[dim], run.unit) * (4 * size + 2)


_PLACES = (
    "view", "view_as", "reshape", "flatten", "unflatten", "permute", "transpose", "t", "movedim", "squeeze",
    "unsqueeze", "contiguous", "clone", "detach", "expand", "chunk", "split", "getitem", "cat", "concat", "stack",
    "repeat_interleave", "max_pool1d", "max_pool2d", "max_pool3d", "adaptive_max_pool1d", "adaptive_max_pool2d",
    "adaptive_max_pool3d", "pixel_shuffle", "pixel_unshuffle", "channel_shuffle",
)  # fmt: skip
_AVERAGES = (
    "avg_pool1d", "avg_pool2d", "avg_pool3d", "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d",
    "mean", "sum",
)  # fmt: skip
_DROPOUTS = ("dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout")

RULES: dict[str, Rule] = {
    **dict.fromkeys(("linear", "conv1d", "conv2d", "conv3d"), _linear),
    **dict.fromkeys(_PLACES, _same_places),
    **dict.fromkeys(_AVERAGES, _average),
    **dict.fromkeys(_DROPOUTS, _identity),
    **dict.fromkeys(("add", "iadd", "radd", "sub", "isub", "rsub", "subtract"), _add),
    **dict.fromkeys(("mul", "imul", "rmul", "multiply"), _multiply),
    **dict.fromkeys(("div", "truediv", "divide"), _divide),
    "pad": _pad,
    "batch_norm": _batch_norm,
    "log_softmax": _log_softmax,
    # Clipping and signs are exact in floating point.
    **dict.fromkeys(("relu", "relu6", "hardtanh", "clamp", "clip", "abs", "neg"), _lipschitz(1.0, exact=True)),
    **dict.fromkeys(("tanh", "softsign", "logsigmoid"), _lipschitz(1.0)),
    "leaky_relu": _lipschitz(lambda negative_slope=0.01: max(1.0, abs(negative_slope))),
    "elu": _lipschitz(lambda alpha=1.0: max(1.0, abs(alpha))),
    "celu": _lipschitz(lambda alpha=1.0: 1.0),
    "selu": _lipschitz(1.7581),  # scale times alpha, the slope left of 0
    "sigmoid": _lipschitz(0.25),
    "hardsigmoid": _lipschitz(1 / 6),
    "hardswish": _lipschitz(1.5),  # at x = 3
    "gelu": _lipschitz(1.1292),  # at sqrt(2); 1.1290 for its approximation by tanh
    "silu": _lipschitz(1.0999),  # at 2.3994
    "mish": _lipschitz(1.0886),
}
