"""Every application of a weight as a linear map while a network runs: which weight, on which input, in which geometry.

Weights are followed by identity, so tied weights, a layer called twice and functional calls are seen. The trace is a
`TorchFunctionMode`; it does not see the calls inside `F.multi_head_attention_forward`, which is therefore taken apart
into its four linear maps around an attention whose own projections are the identity (exact in floating point). What
torch.compile has compiled runs uncompiled.
"""

import contextlib
import inspect
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._C._functorch import is_functorch_wrapped_tensor
from torch.overrides import TorchFunctionMode

from sipp_bench.errors import ModelError
from sipp_bench.network import weight_uses
from sipp_bench.network.patches import ConvGeometry
from sipp_bench.network.weight_uses import View, Weights, tensors_in

_CONVOLUTIONS = {
    torch.conv1d: 1, torch.conv2d: 2, torch.conv3d: 3,
    torch.ops.aten.conv1d.default: 1, torch.ops.aten.conv2d.default: 2, torch.ops.aten.conv3d.default: 3,
}  # fmt: skip
_ARGUMENTS = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
_ATTENTION = inspect.signature(F.multi_head_attention_forward)


@dataclass(frozen=True)
class Call:
    """One application of (some rows of) a weight: y = W a (+ b) for every patch of `input`.

    name: as in `model.named_parameters()`; weight: the rows applied, a view (M, ...); rows: which rows of the
    parameter those are (attention's packed in_proj is applied in parts, one for each of its inputs); input: what the
    network gave, batch first for convolutions; geometry: None for a Linear; bias: that of these rows, added afterwards;
    counted: which positions of the input count (see `PointSet`), bool like its first two dimensions; None for all.
    """

    name: str
    weight: Tensor
    rows: slice
    input: Tensor
    geometry: ConvGeometry | None = None
    bias: Tensor | None = None
    counted: Tensor | None = None

    def only_counted(self) -> "Call":
        """The same call on the positions that count: input (positions, ..., n)."""
        return self if self.counted is None else replace(self, input=self.input[self.counted], counted=None)

    @property
    def groups(self) -> int:
        """Groups of a convolution; 1 for a Linear."""
        return self.geometry.groups if self.geometry else 1

    def shaped(self, output: Tensor) -> Tensor:
        """(samples, M, positions) in the shape of the layer's output."""
        if self.geometry is None:
            return output.movedim(1, 2).reshape(*self.input.shape[:-1], -1)
        padded = self.geometry.padded(tuple(self.input.shape[2:]), tuple(self.weight.shape[2:]))
        shaped: Tensor = output.unflatten(2, self.geometry.positions(padded, tuple(self.weight.shape[2:])))
        return shaped

    def count_patches(self) -> int:
        """Patches of this call, all points together."""
        if self.geometry is None:
            return self.input.numel() // max(self.input.shape[-1], 1)
        return self.geometry.count_patches(self.input, self.weight)


# Receives each call with its output; what it returns, if anything, replaces the output in the running network.
Observer = Callable[[Call, Tensor], Tensor | None]
# Receives a call before it is made; returns its output without the bias, or None to let the network compute it.
Derive = Callable[[Call], Tensor | None]


@dataclass
class Trace:
    """What a trace has seen so far: weights applied as linear maps, and uses of weights that are none, with the reason.

    counted: to be set before each batch, which positions of it count, (N, L) bool; None for all.
    """

    applied: set[str] = field(default_factory=set)
    dense: dict[str, str] = field(default_factory=dict)
    counted: Tensor | None = None


class _Tracer(TorchFunctionMode):
    def __init__(self, model: nn.Module, observe: Observer, trace: Trace, derive: Derive | None) -> None:
        super().__init__()
        self.names = {id(parameter): name for name, parameter in model.named_parameters()}
        self.weights = Weights(model)
        self.observe = observe
        self.trace = trace
        self.derive = derive

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.linear or func is torch.ops.aten.linear.default:
            return self._apply(func, **dict(zip(_ARGUMENTS, args, strict=False)), **kwargs)
        if func in _CONVOLUTIONS:
            return self._apply(func, **dict(zip(_ARGUMENTS, args, strict=False)), **kwargs)
        if func is F.multi_head_attention_forward:
            return self._attention(func, _ATTENTION.bind(*args, **kwargs))
        return self._other(func, args, kwargs)

    def _other(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Any function: one that applies a weight's rows is a call as well; what else uses a weight keeps it dense."""
        found = self.weights.views(tensors_in((*args, *kwargs.values())))
        if not found:
            return func(*args, **kwargs)
        applied = weight_uses.product(func, args, kwargs, found)
        output = func(*args, **kwargs)
        if applied is not None and not applied.view.parameter.is_complex():
            assert applied.view.rows is not None
            weight, x = applied.view.parameter, applied.input
            call = self._call(applied.view.name, weight, applied.view.rows, x, None, applied.bias)
            return applied.from_output(self._observed(call, applied.to_output(output)))
        views = [view for _, view in found]
        if not weight_uses.harmless(func, output, views, self.weights):
            for view in views:
                self.trace.dense.setdefault(view.name, self._reason(func, view, len(found)))
        return output

    @staticmethod
    def _reason(func: Any, view: View, count: int) -> str:
        """Why a weight stays dense that a function was given."""
        if func in (F.embedding, F.embedding_bag):
            return weight_uses.EMBEDDED
        name = weight_uses.name_of(func)
        linear = name in ("linear", "matmul", "mm", "mv", "addmm", "einsum", "linear.default", "addmm.default")
        if linear and count == 1 and view.parameter.ndim == 2 and view.rows is not None:
            return weight_uses.TRANSPOSED
        return f"it is used in {name!r} in a way of which no bound speaks"

    def _apply(self, func: Any, **arguments: Any) -> Tensor:
        """Run one linear map as the network asked for it, and report it when its weight is a parameter."""
        x, weight = arguments["input"], arguments["weight"]
        if id(weight) not in self.names or weight.is_complex():
            return self._applied_view(func, arguments)
        if is_functorch_wrapped_tensor(x):
            raise _Carried(
                ModelError(
                    f"{self.names[id(weight)]!r} is applied inside torch.vmap or torch.func.grad, where the numbers "
                    "of a single point cannot be read: give the network a forward that applies it to the whole batch."
                )
            )
        geometry = None
        if func in _CONVOLUTIONS:
            geometry = ConvGeometry.from_arguments(_CONVOLUTIONS[func], arguments)
            if x.ndim == geometry.dimensions + 1:
                x = x.unsqueeze(0)
        rows = slice(0, weight.shape[0])
        call = self._call(self.names[id(weight)], weight, rows, x, geometry, arguments.get("bias"))
        if self.derive is not None and x.ndim == arguments["input"].ndim:
            with _carrying():
                derived = self.derive(call)
            if derived is not None:
                bias = arguments.get("bias")
                return derived if bias is None else derived + bias.reshape(-1, *[1] * (weight.ndim - 2))
        return self._observed(call, func(**arguments))

    def _applied_view(self, func: Any, arguments: dict[str, Any]) -> Tensor:
        """F.linear or F.conv with what is no parameter itself: rows of one, another part of it, or none of it."""
        x, weight = arguments["input"], arguments["weight"]
        found = self.weights.views([weight])
        if len(found) != 1 or found[0][1].rows is None or found[0][1].transposed or weight.is_complex():
            output: Tensor = self._other(func, (), arguments)
            return output
        view = found[0][1]
        if weight.shape == view.parameter.shape:  # the parameter itself, as another object
            return self._apply(func, **(arguments | {"weight": view.parameter}))
        output = func(**arguments)
        if weight.ndim > 2:
            self.trace.dense.setdefault(view.name, "parts of it are applied by themselves")
            return output
        assert view.rows is not None
        call = self._call(view.name, view.parameter, view.rows, x, None, arguments.get("bias"))
        return self._observed(call, output)

    def _call(
        self,
        name: str,
        weight: Tensor,
        rows: slice,
        x: Tensor,
        geometry: ConvGeometry | None,
        bias: Tensor | None,
        sequence_first: bool = False,
    ) -> Call:
        self.trace.applied.add(name)
        counted = self.trace.counted
        if counted is not None and sequence_first:
            counted = counted.t()
        if counted is not None and (geometry is not None or x.ndim < 3 or x.shape[:2] != counted.shape):
            counted = None
        bias = None if bias is None else bias.detach()
        return Call(name, weight.detach()[rows], rows, x.detach(), geometry, bias, counted)

    def _observed(self, call: Call, output: Tensor) -> Tensor:
        with _carrying():
            replacement = self.observe(call, output)
        return output if replacement is None else replacement

    def _linear(self, x: Tensor, weight: Tensor, bias: Tensor | None, rows: slice | None = None) -> Tensor:
        """One of attention's projections, by the given rows of its weight, of a sequence (L, N, ...)."""
        rows = rows or slice(0, weight.shape[0])
        part = None if bias is None else bias[rows]
        output = F.linear(x, weight[rows], part)
        if id(weight) not in self.names:
            return output
        call = self._call(self.names[id(weight)], weight, rows, x, None, part, sequence_first=True)
        return self._observed(call, output)

    def _attention(self, func: Any, bound: inspect.BoundArguments) -> Any:
        """Attention as projections in, attention with identity projections, projection out."""
        bound.apply_defaults()
        given = bound.arguments
        query, key, value = given["query"], given["key"], given["value"]
        width, bias = given["embed_dim_to_check"], given["in_proj_bias"]
        parts = [slice(i * width, (i + 1) * width) for i in range(3)]
        if given["use_separate_proj_weight"]:
            weights = (given["q_proj_weight"], given["k_proj_weight"], given["v_proj_weight"])
            biases = [None if bias is None else bias[part] for part in parts]
            projected = [self._linear(x, w, b) for x, w, b in zip((query, key, value), weights, biases, strict=True)]
        else:
            # The products that torch makes, one over all rows of one input: another product rounds otherwise.
            if key is not value:
                inputs, rows = [query, key, value], parts
            elif query is not key:
                inputs, rows = [query, key], [parts[0], slice(width, 3 * width)]
            else:
                inputs, rows = [query], [slice(0, 3 * width)]
            outputs = [self._linear(x, given["in_proj_weight"], bias, r) for x, r in zip(inputs, rows, strict=True)]
            projected = [part for output in outputs for part in output.split(width, -1)]
        out_weight, out_bias = given["out_proj_weight"], given["out_proj_bias"]
        identity = torch.eye(width, dtype=out_weight.dtype, device=out_weight.device)
        given.update(
            query=projected[0], key=projected[1], value=projected[2],
            use_separate_proj_weight=True, in_proj_weight=None, in_proj_bias=None,
            q_proj_weight=identity, k_proj_weight=identity, v_proj_weight=identity,
            out_proj_weight=identity, out_proj_bias=None,
        )  # fmt: skip
        attended, attention_weights = func(*bound.args, **bound.kwargs)
        return self._linear(attended, out_weight, out_bias), attention_weights


class _Carried(BaseException):
    """An observer's error on its way through the network's code, which must not take it for one of its own."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error


@contextlib.contextmanager
def _carrying() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        raise _Carried(error) from error


def uncompiled() -> contextlib.AbstractContextManager[Any]:
    """While on, what torch.compile has compiled runs as it was written: compiled code calls nothing that is seen here.

    Without torch's compiler in this process there is nothing to switch off, and loading it takes seconds.
    """
    if "torch._dynamo" not in sys.modules:
        return contextlib.nullcontext()
    return torch.compiler.set_stance("force_eager")  # type: ignore[no-any-return]  # torch gives no type


@contextlib.contextmanager
def tracing(model: nn.Module, observe: Observer, derive: Derive | None = None) -> Iterator[Trace]:
    """While the block runs, `observe` receives each linear map of `model`; the network is in eval mode.

    derive: asked first, for all but attention's projections; the network computes, and `observe` receives, what it
    returns None for.

    Every module's training flag, and torch's fast path for attention, are as before when the block ends. What
    `observe` and `derive` raise ends the block as it is, whatever the network's code would make of it.
    """
    modes = [(module, module.training) for module in model.modules() if hasattr(module, "training")]
    fast_path = torch.backends.mha.get_fastpath_enabled()
    trace = Trace()
    try:
        for module, _ in modes:
            module.training = False
        torch.backends.mha.set_fastpath_enabled(False)
        with uncompiled(), _Tracer(model, observe, trace, derive):
            yield trace
    except _Carried as carried:
        raise carried.error from carried.error.__cause__
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
        for module, mode in modes:
            module.training = mode
