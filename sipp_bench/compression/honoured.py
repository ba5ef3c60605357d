"""Is a promise kept? Every bound compared with its own measured quantity: for runs, the pytest fixture and `verify`."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from sipp_bench.compression.changes import Masked
from sipp_bench.compression.guarantee import Bound, Guarantee
from sipp_bench.compression.pruned import Pruned
from sipp_bench.compression.quantities import BlockError, Measured, Meter
from sipp_bench.errors import ModelError
from sipp_bench.network.blocks import block_sums, median
from sipp_bench.network.forward import each_call
from sipp_bench.network.point_sets import Points, count_points
from sipp_bench.network.tracing import Call
from sipp_bench.sensitivity import measure_sensitivity

Where = Literal["S", "fresh"]


@dataclass(frozen=True, eq=False)
class Honoured:
    """One weight's bound beside its measured quantity. limit: epsilon with the room that rounding needs."""

    bound: Bound
    measured: Measured
    limit: Tensor

    @property
    def above(self) -> Tensor:
        """Parts whose quantity is above its limit."""
        return self.measured.largest > self.limit

    @property
    def broken(self) -> Tensor:
        """Parts whose bound holds with certainty, and does not: on inputs that it speaks of, a bug or a false claim."""
        return self.above & self.bound.certain

    @property
    def telling(self) -> Tensor:
        """Parts whose bound holds with certainty, and could be broken."""
        return self.bound.certain & (self.bound.epsilon > 0) & ~self.bound.vacuous


def honoured(model: nn.Module, pruned: Pruned, points: Points, batch_size: int = 64) -> dict[str, Honoured]:
    """By weight name, its bound and what its quantity was on these points; empty without a guarantee in force.

    model: the dense network, whose inputs to each layer are taken. Raises ModelError where a quantity does not speak of
    what became of a weight.
    """
    guarantee = pruned.guarantee
    if guarantee is None or guarantee.void:
        return {}
    dense, left = dict(model.named_parameters()), dict(pruned.model.named_parameters())
    limits = {
        name: bound.quantity.limit(bound.epsilon, ~bound.certain, dense[name])
        for name, bound in guarantee.bounds.items()
    }
    meters = {name: bound.quantity.meter(left[name].detach(), limits[name]) for name, bound in guarantee.bounds.items()}
    found = measure(model, points, meters, batch_size)
    return {name: Honoured(bound, found[name], limits[name]) for name, bound in guarantee.bounds.items()}


def measure(model: nn.Module, points: Points, meters: Mapping[str, Meter], batch_size: int = 64) -> dict[str, Measured]:
    """What each meter reads while `model` passes over the points; by weight name."""

    def observe(call: Call, output: Tensor) -> None:
        if call.name in meters:
            meters[call.name].add(call.only_counted())

    each_call(model, points, observe, batch_size)
    return {name: meter.result() for name, meter in meters.items()}


def block_errors(
    model: nn.Module,
    pruned: nn.Module,
    points: Points,
    names: Iterable[str],
    limits: Mapping[str, Tensor] | None = None,
    *,
    per_patch: bool = True,
    batch_size: int = 64,
) -> dict[str, Measured]:
    """`BlockError` of every block of these weights, whatever was promised. limits: by name (neurons, 2)."""
    left = dict(pruned.named_parameters())
    meters: dict[str, Meter] = {}
    for name in names:
        limit = torch.full((len(left[name]), 2), torch.inf) if limits is None else limits[name]
        meters[name] = BlockError(per_patch).meter(left[name].detach(), limit)
    return measure(model, points, meters, batch_size)


def check_rows(
    model: nn.Module, pruned: Pruned, points: Points, where: Where
) -> tuple[list[dict[str, Any]], dict[str, dict[str, Tensor]]]:
    """What a run stores: rows (one a weight) and arrays by weight name; both empty without a guarantee in force.

    On "S" a part without draws must stay at or below its epsilon: one that exceeds it beyond rounding is "violated".
    Drawn blocks exceed theirs with probability at most delta for each (x, p, tau) (claims C10, C13): a single draw set
    is one trial, so that "not falsified" here says little; `exceeding_rate` has the share. Bounds that say nothing for
    all of a weight are "useless". A bound that is about S says nothing of fresh points without more: "measured".
    """
    rows, arrays = [], {}
    for name, one in honoured(model, pruned, points).items():
        bound = one.bound
        about = where == "S" or bound.inputs == "any"
        row = _row(one) | {"claim": bound.claim, "on": where, "layer": name, "delta": bound.delta}
        rows.append(row | {"verdict": _verdict(one, about)})
        arrays[name] = {"epsilon": bound.epsilon, "draws": bound.draws, f"error_{where}": one.measured.largest}
    return rows, arrays


def _row(one: Honoured) -> dict[str, Any]:
    epsilon, measured, draws = one.bound.epsilon, one.measured, one.bound.draws
    said = ~one.bound.vacuous & (epsilon > 0)
    ratios = measured.largest[said] / epsilon[said]
    return {
        "blocks": epsilon.numel(),
        "drawn": int((draws > 0).sum()),
        "vacuous": int(one.bound.vacuous.sum()),
        "bound_median": median(epsilon),
        "bound_max": float(epsilon.max()),
        "error_median": median(measured.largest),
        "error_max": float(measured.largest.max()),
        "ratio_max": float(ratios.max()) if ratios.numel() else float("nan"),
        "exceeding": int(one.above.sum()),
        "exceeding_certain": int(one.broken.sum()),
        "exceeding_rate": float(measured.exceeding[draws > 0].sum() / measured.active[draws > 0].sum().clamp(min=1)),
        "active": int(measured.active.sum()),
    }


def _verdict(one: Honoured, about: bool) -> str:
    if about and bool(one.broken.any()):
        return "violated"
    if bool(one.bound.vacuous.all()):
        return "useless"
    if not about:
        return "measured"
    return "holds" if bool(one.bound.certain.all()) else "not falsified"


def bound_problems(model: nn.Module, pruned: Pruned | nn.Module, points: Points) -> list[str]:
    """What is wrong, a sentence each: one a layer with a broken bound, or one that says why nothing was checked.

    A `Pruned` is held to its guarantee on the points that its method looked at, which must be given. Blocks that were
    drawn may exceed theirs now and then, so that one draw decides nothing: `theory_checks.verify` is for those. A
    plain network is held to claim C2 for what it dropped: each block has relative error at most the sum of the dropped
    sensitivities, measured here, always; a network whose kept weights changed after pruning breaks it.
    """
    if isinstance(pruned, Pruned):
        if why := _no_guarantee(pruned, points):
            return [f"Nothing was checked: {why}"]
    else:
        try:
            pruned = _as_dropped(model, pruned, points)
        except ModelError as error:
            return [f"Nothing was checked: {error}"]
    try:
        found = honoured(model, pruned, points)
    except ModelError as error:  # a changed sign
        return [f"The bounds do not hold: {error}"]
    problems = [_broken(name, one) for name, one in found.items() if bool(one.broken.any())]
    if not problems and not any(bool(one.telling.any()) for one in found.values()):
        problems = [
            "Nothing was checked: every block that lost weights was drawn, or has a bound of 1 or more, which any "
            "pruning keeps. Keep more weights, or use theory_checks.verify for bounds of drawn blocks."
        ]
    return problems


def _no_guarantee(pruned: Pruned, points: Points) -> str | None:
    guarantee = pruned.guarantee
    if guarantee is None:
        return "this method gives no guarantee. Give the network, pruned.model, to hold it to claim C2."
    if guarantee.void:
        return f"the guarantee is void, {guarantee.void}."
    given = count_points(points)
    if given is not None and given != guarantee.num_points:
        return f"the bounds speak of the {guarantee.num_points} points that the method looked at; {given} were given."
    return None


def _as_dropped(model: nn.Module, pruned: nn.Module, points: Points) -> Pruned:
    """A plain network with the guarantee of claim C2 for what it dropped of `model`."""
    sensitivity = measure_sensitivity(model, points)
    dense, left = dict(model.named_parameters()), dict(pruned.named_parameters())
    changes: dict[str, Masked] = {}
    bounds: dict[str, Bound] = {}
    for name, layer in sensitivity.items():
        if name not in left or left[name].shape != dense[name].shape:
            raise ModelError(
                f"the pruned network has no {name!r} of shape {tuple(dense[name].shape)}. "
                "Masks of torch.nn.utils.prune must be made permanent first (prune.remove)."
            )
        changes[name] = Masked.of(left[name].detach())
        dropped = ~changes[name].kept.to(layer.values.device)
        epsilon = block_sums(torch.where(dropped, layer.values, 0.0), layer.positive).clamp(max=1)
        bounds[name] = Bound("C2", BlockError(), epsilon)
    requests = {name: change.numbers() for name, change in changes.items()}
    guarantee = Guarantee(("C2",), 0.0, False, bounds, sensitivity.num_points)
    return Pruned(pruned, changes, sum(requests.values()), requests, guarantee)


def _broken(name: str, one: Honoured) -> str:
    """The layer's part that is furthest above its bound."""
    above = (one.measured.largest - one.bound.epsilon).masked_fill(~one.bound.certain, -torch.inf)
    place = tuple(int(i) for i in torch.unravel_index(above.argmax(), above.shape))
    error, bound = float(one.measured.largest[place]), float(one.bound.epsilon[place])
    return (
        f"{name} breaks its bound of claim {one.bound.claim}: {one.bound.quantity.name(place)} has error {error:.6g}, "
        f"its bound is {bound:.6g} ({int(one.broken.sum())} of {above.numel()} {one.bound.quantity.unit}s are above)."
    )
