"""Pruning methods, one file each, and the two calls that most people need: `fit` and `prune`."""

import sys
from typing import Any

from torch import Tensor, nn

from sipp_bench.compression.pruned import Pruned
from sipp_bench.errors import OptionError
from sipp_bench.machine.registry import Registry
from sipp_bench.methods.observers import Look, Observer, Sensitivities
from sipp_bench.methods.protocol import Fitted, Method, Observation, Selection, fit_look
from sipp_bench.network.point_sets import Points, PointSet, Positions
from sipp_bench.network.unmeasured import check_parameters
from sipp_bench.sensitivity.measure import Sensitivity

__all__ = [
    "Fitted",
    "Look",
    "Method",
    "Observation",
    "Observer",
    "Selection",
    "check_options",
    "fit",
    "list_methods",
    "make_method",
    "prune",
    "register_method",
]

_REGISTRY = Registry("method", Method, sys.modules[__name__])  # type: ignore[type-abstract]  # the base of all


def list_methods() -> list[str]:
    """Names of all registered methods, sorted."""
    return _REGISTRY.names()


def register_method(name: str, cls: type[Method]) -> None:
    """Make `cls` available as `method=name`. Raises OptionError for a name that is taken by another class."""
    _REGISTRY.add(name, cls)


def make_method(name: str, **options: Any) -> Method:
    """The method with these options; OptionError names what is allowed when the name or an option is not."""
    return _REGISTRY.make(name, **options)


def check_options(method: str, options: dict[str, Any]) -> None:
    """Raise OptionError unless the method exists and takes these options."""
    make_method(method, **options)


def fit(
    model: nn.Module,
    points: Points,
    method: str = "sipp-det",
    labels: Tensor | None = None,
    *,
    batch_size: int = 64,
    sensitivity: Sensitivity | None = None,
    labelled: bool | None = None,
    positions: Positions | None = None,
    **options: Any,
) -> Fitted:
    """Let a method look at the points once; then `fitted.prune(keep=0.1, seed=0)` as often as you like.

    points: as in `measure_sensitivity`, with labelled and positions, which all methods that look at activations heed.
    labels: only `snip` reads them, one for each point.
    sensitivity: for a SiPP method, what `measure_sensitivity` gave for all layers of this network on these points,
    measured for several methods at once, by several processes, or in little memory; it is not measured again.
    options: the method's own (see its class). The network is never changed. Raises OptionError for an unknown method
    or option, ModelError for a network with NaN weights or nothing to prune, PointsError for unusable points.
    """
    made = make_method(method, **options)
    look = Look(model, PointSet.of(points, labelled, positions), labels, batch_size)
    if sensitivity is not None:
        observers = [observer for observer in made.needs if isinstance(observer, Sensitivities)]
        if not observers:
            raise OptionError(f"Method {method!r} does not use sensitivities: leave out sensitivity.")
        check_parameters(model)
        for observer in observers:
            observer.require(model, sensitivity)
            look.put(observer, sensitivity)
    return fit_look(made, look)


def prune(
    model: nn.Module,
    points: Points,
    *,
    method: str = "sipp-det",
    keep: float,
    seed: int = 0,
    **options: Any,
) -> Pruned:
    """`fit` and `Fitted.prune` in one call; options: those of `fit` and of the method."""
    return fit(model, points, method, **options).prune(keep, seed)
