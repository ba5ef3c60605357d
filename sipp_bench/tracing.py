"""Every application of a weight as a linear map while a network runs: which weight, on which input, in which geometry.

Weights are followed by identity, so tied weights, a layer called twice and functional calls are seen. The trace is a
`TorchFunctionMode`; it does not see the calls inside `F.multi_head_attention_forward`, which is therefore taken apart
into its four linear maps around an attention whose own projections are the identity (exact in floating point). What
torch.compile has compiled runs uncompiled.
"""

import contextlib
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._C._functorch import is_batchedtensor
from torch.nn.utils.parametrize import is_parametrized
from torch.overrides import TorchFunctionMode

from sipp_bench.errors import ModelError
from sipp_bench.patches import ConvGeometry
from sipp_bench.points import all_finite

_CONVOLUTIONS = {torch.conv1d: 1, torch.conv2d: 2, torch.conv3d: 3}
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
    """What a trace has seen so far: weights applied as linear maps, and weights read as embedding tables.

    counted: to be set before each batch, which positions of it count, (N, L) bool; None for all.
    """

    applied: set[str] = field(default_factory=set)
    embedded: set[str] = field(default_factory=set)
    counted: Tensor | None = None


class _Tracer(TorchFunctionMode):
    def __init__(self, names: Mapping[int, str], observe: Observer, trace: Trace, derive: Derive | None) -> None:
        super().__init__()
        self.names = names
        self.observe = observe
        self.trace = trace
        self.derive = derive

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.linear:
            return self._apply(func, **dict(zip(_ARGUMENTS, args, strict=False)), **kwargs)
        if func in _CONVOLUTIONS:
            return self._apply(func, **dict(zip(_ARGUMENTS, args, strict=False)), **kwargs)
        if func is F.multi_head_attention_forward:
            return self._attention(func, _ATTENTION.bind(*args, **kwargs))
        if func in (F.embedding, F.embedding_bag):
            table = args[1] if len(args) > 1 else kwargs["weight"]
            if id(table) in self.names:
                self.trace.embedded.add(self.names[id(table)])
        return func(*args, **kwargs)

    def _apply(self, func: Any, **arguments: Any) -> Tensor:
        """Run one linear map as the network asked for it, and report it when its weight is a parameter."""
        x, weight = arguments["input"], arguments["weight"]
        if id(weight) not in self.names or weight.is_complex():
            output: Tensor = func(**arguments)
            return output
        if is_batchedtensor(x):
            raise _Carried(
                ModelError(
                    f"{self.names[id(weight)]!r} is applied inside torch.vmap, where the numbers of a single point "
                    "cannot be read: give the network a forward that applies it to the whole batch."
                )
            )
        geometry = None
        if func in _CONVOLUTIONS:
            geometry = ConvGeometry.from_arguments(_CONVOLUTIONS[func], arguments)
            if x.ndim == geometry.dimensions + 1:
                x = x.unsqueeze(0)
        call = self._call(weight, slice(0, weight.shape[0]), x, geometry, arguments.get("bias"))
        if self.derive is not None and x.ndim == arguments["input"].ndim:
            with _carrying():
                derived = self.derive(call)
            if derived is not None:
                bias = arguments.get("bias")
                return derived if bias is None else derived + bias.reshape(-1, *[1] * (weight.ndim - 2))
        return self._observed(call, func(**arguments))

    def _call(
        self,
        weight: Tensor,
        rows: slice,
        x: Tensor,
        geometry: ConvGeometry | None,
        bias: Tensor | None,
        sequence_first: bool = False,
    ) -> Call:
        name = self.names[id(weight)]
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
        return self._observed(self._call(weight, rows, x, None, part, sequence_first=True), output)

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
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    modes = [(module, module.training) for module in model.modules()]
    fast_path = torch.backends.mha.get_fastpath_enabled()
    trace = Trace()
    try:
        for module, _ in modes:
            module.training = False
        torch.backends.mha.set_fastpath_enabled(False)
        with uncompiled(), _Tracer(names, observe, trace, derive):
            yield trace
    except _Carried as carried:
        raise carried.error from carried.error.__cause__
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
        for module, mode in modes:
            module.training = mode


def check_parameters(model: object) -> None:
    """Raise ModelError when this is no network, or a parameter is not initialised yet, or holds NaN or infinity."""
    if not isinstance(model, nn.Module):
        raise ModelError(f"The network must be a torch.nn.Module, not a {type(model).__name__}.")
    for name, parameter in model.named_parameters():
        if isinstance(parameter, nn.parameter.UninitializedParameter):
            raise ModelError(f"Parameter {name!r} is not initialised: run the network once on a point first.")
        if parameter.is_meta:
            raise ModelError(f"Parameter {name!r} is on the meta device, without numbers: load a checkpoint first.")
        if not all_finite(parameter):
            raise ModelError(f"Parameter {name!r} holds NaN or infinity: repair or reload the network first.")


def unmeasured(model: nn.Module, trace: Trace) -> dict[str, str]:
    """Weights of linear layers that can't be measured or pruned, each with the reason why it stays dense."""
    reasons = dict.fromkeys(
        sorted(trace.applied & trace.embedded), "it is an embedding table as well, of which no bound speaks"
    )
    parameters = {id(parameter): name for name, parameter in model.named_parameters()}
    for path, module in model.named_modules():
        for attribute, reason in _linear_weights(module):
            # A parametrization is not asked for its weight: some (spectral norm) change the network when they are.
            weight = None if is_parametrized(module, attribute) else getattr(module, attribute, None)
            if weight is None and not is_parametrized(module, attribute):
                continue
            name = parameters.get(id(weight))
            if isinstance(weight, Tensor) and weight.is_complex():
                reasons[name or f"{path}.{attribute}".lstrip(".")] = "it is complex: its numbers have no sign"
            elif name is None:
                reasons[f"{path}.{attribute}".lstrip(".")] = (
                    "it is computed from other parameters (a parametrization, weight norm or torch.nn.utils.prune): "
                    "make it a plain parameter first"
                )
            elif name not in trace.applied:
                reasons[name] = reason or "the forward pass never used it as a whole in F.linear or F.conv"
    return reasons


def _linear_weights(module: nn.Module) -> Iterator[tuple[str, str]]:
    """(attribute, reason why it is never measured or "") for the weights of one module."""
    if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d):
        yield "weight", ""
    elif isinstance(module, nn.MultiheadAttention):
        yield from ((name, "") for name in ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight"))
    elif isinstance(module, nn.modules.conv._ConvTransposeNd):
        yield "weight", "transposed convolutions are not supported"
    elif isinstance(module, nn.Bilinear):
        yield "weight", "bilinear maps are not supported"
    elif isinstance(module, nn.RNNBase):
        names = [name for name in module._parameters if "weight" in name]
        yield from ((name, "recurrent layers run inside one fused call and can't be seen") for name in names)
    elif isinstance(module, nn.RNNCellBase):
        yield from ((name, "recurrent cells run inside one fused call") for name in ("weight_ih", "weight_hh"))
