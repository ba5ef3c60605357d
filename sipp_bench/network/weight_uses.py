"""What a network does with a weight, seen from one call of a torch function: found by its memory, whatever view it is.

A weight W (M, n) is applied as a linear map y = W a where its rows meet the input: F.linear, x @ W.t(), W @ x, addmm,
einsum. Where its columns do (x @ W, its transpose in a tied decoder), blocks are columns, of which no bound here
speaks; nor does any of what else is done with a weight.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._C._functorch import is_functorch_wrapped_tensor

TRANSPOSED = "it is applied by its columns as well (x @ W, or its transpose), and bounds speak of its rows"
EMBEDDED = "it is an embedding table, of which no bound speaks"
_PRODUCTS = {"matmul", "mm", "mv", "__matmul__", "__rmatmul__", "mm.default", "mv.default", "matmul.default"}
_SUMS_WITH = {"addmm", "addmm.default"}
# New tensors that take only a weight's shape, type and place; and gradients, which are taken of what was computed.
_NO_USE = {
    "grad",
    "zeros_like", "ones_like", "empty_like", "full_like", "rand_like", "randn_like", "new_zeros", "new_ones",
    "new_empty", "new_full", "new_tensor",
}  # fmt: skip


@dataclass(frozen=True)
class View:
    """Where a tensor lies in a parameter: whole rows (of its transpose, if `transposed`), or `rows` None: elsewhere."""

    name: str
    parameter: Tensor
    rows: slice | None
    transposed: bool = False


@dataclass(frozen=True)
class Product:
    """y = W a: the view of W, the input with a last, how the result becomes the layer's output (M last) and back."""

    view: View
    input: Tensor
    bias: Tensor | None
    to_output: Callable[[Tensor], Tensor]
    from_output: Callable[[Tensor], Tensor]


class Weights:
    """The parameters of two and more dimensions of a network, by their memory."""

    def __init__(self, model: nn.Module) -> None:
        self._held: dict[int, list[tuple[str, Tensor]]] = {}
        for name, parameter in model.named_parameters():
            if parameter.ndim >= 2 and (place := _place(parameter)):
                self._held.setdefault(place, []).append((name, parameter))

    def views(self, tensors: Iterable[Tensor]) -> list[tuple[Tensor, View]]:
        """Which of the tensors are views of parameters, and of which part."""
        found = []
        for tensor in tensors:
            for name, parameter in self._held.get(_place(tensor), ()):
                if _overlap(tensor, parameter):
                    found.append((tensor, _view(name, parameter, tensor)))
        return found


def tensors_in(values: Iterable[Any]) -> Iterator[Tensor]:
    """Tensors among the arguments of a call, those in lists too."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from tensors_in(value)


def name_of(func: Any) -> str:
    """A function's name, for people."""
    return str(getattr(func, "__name__", func)).strip("_")


def harmless(func: Any, output: Any, used: Iterable[View], weights: Weights) -> bool:
    """Whether the call only looked at a weight's shape, or gave views of it, whose own uses will be seen."""
    if getattr(func, "__name__", "") in _NO_USE:
        return True
    names = {view.name for view in used}
    return all(names & {view.name for _, view in weights.views([tensor])} for tensor in tensors_in([output]))


def product(
    func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], found: list[tuple[Tensor, View]]
) -> Product | None:
    """The call as a linear map of one weight by its rows; None if it is none."""
    if len(found) != 1 or found[0][1].rows is None:
        return None
    weight, view = found[0]
    name = getattr(func, "__name__", "")
    if name == "einsum":
        return _einsum(view, weight, args)
    bias = None
    if name in _SUMS_WITH and len(args) == 3 and not kwargs:
        bias, *args_left = args
        if bias.ndim != 1 or args_left[1] is not weight:
            return None
        args = tuple(args_left)
    elif name not in _PRODUCTS or kwargs or len(args) != 2:
        return None
    first, second = args
    if name == "__rmatmul__":
        first, second = second, first
    if weight is second and view.transposed:
        return Product(view, first, bias, _same, _same)
    if weight is first and not view.transposed and bias is None:
        if second.ndim == 1:
            return Product(view, second, None, _same, _same)
        return Product(view, second.transpose(-1, -2), None, _swapped, _swapped)
    return None


def _einsum(view: View, weight: Tensor, args: tuple[Any, ...]) -> Product | None:
    equation, *operands = args
    if len(operands) == 1 and isinstance(operands[0], list | tuple):
        operands = list(operands[0])
    if not isinstance(equation, str) or len(operands) != 2 or "->" not in equation or "." in equation:
        return None
    given, result = equation.replace(" ", "").split("->")
    letters = given.split(",")
    place = 0 if operands[0] is weight else 1
    of_weight, of_input, x = letters[place], letters[1 - place], operands[1 - place]
    if view.transposed:
        of_weight = of_weight[::-1]
    if len(of_weight) != 2 or any(len(set(part)) != len(part) for part in (of_weight, of_input, result)):
        return None
    out, inner = tuple(of_weight)
    others = [letter for letter in result if letter != out]
    if out in of_input or inner in result or out not in result or sorted([*others, inner]) != sorted(of_input):
        return None
    order = [of_input.index(letter) for letter in (*others, inner)]
    to = [result.index(letter) for letter in (*others, out)]
    back = [to.index(place) for place in range(len(to))]
    return Product(view, x.permute(order), None, lambda y: y.permute(to), lambda y: y.permute(back))


def _same(tensor: Tensor) -> Tensor:
    return tensor


def _swapped(tensor: Tensor) -> Tensor:
    return tensor.transpose(-1, -2)


def _place(tensor: Tensor) -> int:
    """The address of a tensor's memory; 0 for what has none of its own."""
    if is_functorch_wrapped_tensor(tensor) or tensor.layout != torch.strided or tensor.is_quantized:
        return 0
    return tensor.untyped_storage().data_ptr()


def _overlap(one: Tensor, other: Tensor) -> bool:
    spans = []
    for tensor in (one, other):
        reach = sum((size - 1) * step for size, step in zip(tensor.shape, tensor.stride(), strict=True))
        start = tensor.storage_offset() * tensor.itemsize
        spans.append((start, start + (reach + 1) * tensor.itemsize if tensor.numel() else start))
    return spans[0][0] < spans[1][1] and spans[1][0] < spans[0][1]


def _view(name: str, parameter: Tensor, tensor: Tensor) -> View:
    if tensor.shape == parameter.shape and tensor.stride() == parameter.stride():
        return View(name, parameter, slice(0, len(parameter)))
    if tensor.ndim == 2 == parameter.ndim and tensor.dtype == parameter.dtype:
        for transposed, (length, width), (step, unit) in (
            (False, tensor.shape, tensor.stride()), (True, tensor.shape[::-1], tensor.stride()[::-1]),
        ):  # fmt: skip
            start, left = divmod(
                int(tensor.storage_offset()) - int(parameter.storage_offset()), max(1, parameter.stride(0))
            )
            if (width, step, unit) == (parameter.shape[1], *parameter.stride()) and left == 0:
                return View(name, parameter, slice(start, start + length), transposed)
    return View(name, parameter, None)
