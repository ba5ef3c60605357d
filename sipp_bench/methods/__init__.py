"""The registry of pruning methods, and the two calls that most people need: `fit` and `prune`."""

import inspect
from typing import Any

from torch import Tensor, nn

from sipp_bench.compression.pruned import Pruned
from sipp_bench.errors import OptionError, did_you_mean
from sipp_bench.methods.magnitude import Magnitude
from sipp_bench.methods.observers import Look, Observer, Sensitivities
from sipp_bench.methods.protocol import Fitted, Method, Observation, Selection, fit_look
from sipp_bench.methods.random import Random
from sipp_bench.methods.sipp_det import SippDet
from sipp_bench.methods.sipp_hybrid import SippHybrid
from sipp_bench.methods.sipp_mixture import SippMixture
from sipp_bench.methods.sipp_rand import SippRand
from sipp_bench.methods.snip import Snip
from sipp_bench.methods.svd import Svd
from sipp_bench.methods.wanda import Wanda
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

_REGISTRY: dict[str, type[Method]] = {
    cls.name: cls for cls in (SippDet, SippRand, SippHybrid, SippMixture, Magnitude, Random, Snip, Svd, Wanda)
}


def list_methods() -> list[str]:
    """Names of all registered methods, sorted."""
    return sorted(_REGISTRY)


def register_method(name: str, cls: type[Method]) -> None:
    """Make `cls` available as `method=name`. Raises OptionError for a name that is taken by another class."""
    if not (inspect.isclass(cls) and issubclass(cls, Method)):
        raise OptionError(f"{cls!r} is not a subclass of sipp_bench.methods.Method.")
    if _REGISTRY.get(name, cls) is not cls:
        raise OptionError(f"A method named {name!r} is registered already: choose another name.")
    _REGISTRY[name] = cls


def make_method(name: str, **options: Any) -> Method:
    """The method with these options; OptionError names what is allowed when the name or an option is not."""
    if name not in _REGISTRY:
        hint = did_you_mean(str(name), list_methods())
        raise OptionError(f"There is no method {name!r}.{hint} The methods are: {', '.join(list_methods())}.")
    cls = _REGISTRY[name]
    allowed = list(inspect.signature(cls).parameters)
    unknown = [option for option in options if option not in allowed]
    if unknown:
        raise OptionError(f"Method {name!r} has no option {unknown[0]!r}. Its options are: {', '.join(allowed)}.")
    try:
        return cls(**options)
    except TypeError as error:
        raise OptionError(f"Method {name!r} does not take the options {options}: {error}.") from error


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
