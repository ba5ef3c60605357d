"""Claim C7, the certificate a posteriori: how far pruning can have moved each output, for one input at a time.

The dense network runs once, and each of its operations carries a bound e on |ahat - a|, entry by entry, along with its
value a. Bounds are outward: they contain the rounding of both networks and their own (see `certificate_rules`).
"""

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

from sipp_bench.errors import ModelError, OptionError, PointsError
from sipp_bench.network.blocks import full_precision
from sipp_bench.network.forward import no_look
from sipp_bench.network.point_sets import Inputs, Points, map_inputs
from sipp_bench.network.points import call_model, iterate_batches, model_device
from sipp_bench.network.tracing import tracing
from theory_checks.certificate.rules import HARMLESS, RULES, Rule, tensors_in

Certify = Callable[[nn.Module, nn.Module, Tensor], "Certificate"]


@dataclass(frozen=True)
class Certificate:
    """What claim C7 says about each input. N inputs, K outputs (logits), float64.

    output: y, of the dense network (N, K). error: e >= |yhat - y| (N, K). certified: y_c - y_k > e_c + e_k for the
    predicted class c and every other k, so that pruning leaves the prediction as it is (N,).
    """

    output: Tensor
    error: Tensor
    certified: Tensor

    @property
    def useless(self) -> Tensor:
        """Inputs whose largest bound is at least the range of their logits: it cannot fail and says nothing (N,)."""
        return ~(self.error.amax(1) < self.output.amax(1) - self.output.amin(1))


def certify(
    model: nn.Module,
    pruned: nn.Module,
    points: Points,
    *,
    dtype: torch.dtype = torch.float64,
    batch_size: int = 32,
    rules: Mapping[str, Rule] = RULES,
) -> Certificate:
    """Bound |yhat - y| for every point and output, with no assumption about how `pruned` came about (claim C7).

        e' = |What| e + |(What - W) a|   for linear maps;   e |gamma| / sqrt(var + eps)   for batch-norm in eval mode;
        L e   for activations with Lipschitz constant L;   max e, mean e   for pooling;   the sum for residuals

    pruned: `model` with other weights and biases in its Linear and ConvNd layers, equal elsewhere (a retrained one,
    where batch-norm moved, is refused). dtype: the arithmetic that is spoken of, float64 or float32: both networks are
    converted to it, and e contains the rounding of both runs on the same batch. Neither network is changed. rules: by
    the name of the operation; add to them for one of your own.
    Raises ModelError, naming it, for an operation without a rule, and where the output is not one tensor (N, K).
    """
    if dtype not in (torch.float64, torch.float32):
        raise OptionError(f"A certificate speaks of float64 or float32, not of {dtype}.")
    dense, other = (copy.deepcopy(network).to(dtype).eval() for network in (model, pruned))
    mode = _Propagation(dense, other, torch.finfo(dtype).eps / 2, rules)
    outputs, errors = [], []
    with torch.no_grad(), full_precision(model_device(model)):
        for inputs, _ in iterate_batches(points, batch_size, model_device(model), model):
            x = map_inputs(lambda tensor: _cast(tensor, dtype), inputs)
            with mode:
                output = _run(dense, x, model, inputs)
            if not isinstance(output, Tensor) or output.ndim != 2:
                raise ModelError(f"A certificate needs one output tensor (N, K); {type(model).__name__} gives another.")
            outputs.append(output.double().clone())
            errors.append(mode.error(output).nan_to_num(nan=torch.inf))
    y, e = torch.cat(outputs), torch.cat(errors)
    return Certificate(y, e, certified_class(y, e))


def _run(dense: nn.Module, x: Inputs, model: nn.Module, inputs: Inputs) -> Any:
    """The converted network's output. Raises ModelError if it refuses what the network itself takes."""
    try:
        return call_model(dense, x)
    except PointsError as error:
        with tracing(model, no_look):
            call_model(model, inputs)  # raises the same if the points are to blame
        dtype = next(iter(tensor.dtype for tensor in tensors_in(x) if tensor.is_floating_point()), "the other type")
        raise ModelError(
            f"A certificate runs a copy of the network in {dtype}, which {type(model).__name__} cannot do: "
            f"{_reason(error)}. A network that converts its numbers itself (x.float()) or has complex ones has none."
        ) from error


def _reason(error: Exception) -> str:
    return str(error.__cause__ or error).strip().splitlines()[0].rstrip(".")


def certified_class(output: Tensor, error: Tensor) -> Tensor:
    """Whether y_c - y_k > e_c + e_k for c the largest output and every other k: (N,) bool, outward in rounding."""
    best = output.argmax(1, keepdim=True)
    unit = torch.finfo(torch.float64).eps
    margin = (output.gather(1, best) - output) * (1 - unit) > (error.gather(1, best) + error) * (1 + unit)
    return margin.scatter(1, best, True).all(1)


class _Propagation(TorchFunctionMode):
    """While on, every operation of the dense network hands the bounds of its inputs on to its result.

    A tensor without an entry is the same in both networks. Parameters and buffers that differ have one from the start.
    """

    def __init__(self, dense: nn.Module, pruned: nn.Module, unit: float, rules: Mapping[str, Rule]) -> None:
        super().__init__()
        self.unit = unit
        self.rules = rules
        self.pruned_weights: dict[int, Tensor] = {}
        self._errors = WeakTensorKeyDictionary()
        self._dense = dense  # held, since weights are known by identity
        others = dict(_state(pruned))
        for name, tensor in _state(dense):
            if name not in others or others[name].shape != tensor.shape:
                raise ModelError(
                    f"The pruned network has no {name!r} like the dense one: they must be the same network."
                )
            self.pruned_weights[id(tensor)] = others[name].detach()
            if not torch.equal(tensor, others[name]):
                if not tensor.is_floating_point():
                    raise ModelError(f"{name!r} differs between the networks and holds no real numbers.")
                self._attach(tensor, (others[name].double() - tensor.double()).abs().detach())

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if "input" in kwargs and not args:
            args = (kwargs.pop("input"),)
        if not any(self.differs(tensor) for tensor in tensors_in((args, kwargs))):
            return func(*args, **kwargs)
        name: str = func.__self__.__name__ if func.__name__ == "__get__" else func.__name__  # a property has its own
        if name in HARMLESS:
            return func(*args, **kwargs)
        rule = self.rules.get(name.strip("_"))
        typed = any(isinstance(given, torch.dtype) for given in (*args, *kwargs.values()))
        if rule is None or typed or "out" in kwargs:
            raise ModelError(
                f"No bound can be carried through {name!r}, which this network applies to what pruning has changed: "
                "a certificate speaks of linear maps, pooling, batch-norm, sums and Lipschitz activations."
            )
        errors = rule(self, func, args, kwargs)  # before the operation, which may work in place
        output = func(*args, **kwargs)
        self._attach_all(output, errors)
        return output

    def differs(self, tensor: Tensor) -> bool:
        """Whether this tensor may have another value in the pruned network."""
        return tensor in self._errors

    def error(self, tensor: Tensor) -> Tensor:
        """e of a tensor, float64, zeros where it is the same in both networks."""
        if tensor not in self._errors:
            return torch.zeros_like(tensor, dtype=torch.float64)
        error: Tensor
        error, version = self._errors[tensor]
        if version != tensor._version:
            raise ModelError("This network changes a tensor in place through a view of it, where no bound can follow.")
        return error

    def _attach(self, tensor: Tensor, error: Tensor) -> None:
        self._errors[tensor] = (error, tensor._version)

    def _attach_all(self, output: Any, errors: Any) -> None:
        """Bounds for a result that is one tensor, or several."""
        if isinstance(output, Tensor):
            self._attach(output, errors)
        else:
            for tensor, error in zip(output, errors, strict=True):
                self._attach(tensor, error)


def _state(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters()
    yield from model.named_buffers()


def _cast(x: Tensor, dtype: torch.dtype) -> Tensor:
    return x.to(dtype) if x.is_floating_point() else x
