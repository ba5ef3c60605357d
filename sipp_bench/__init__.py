"""sipp-bench: a reference implementation of SiPP and its peers, with bounds that are checked, not assumed.

What a name here needs is imported when the name is first used: `sipp-bench --help` does without torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

from sipp_bench import errors

if TYPE_CHECKING:
    from sipp_bench import bounds
    from sipp_bench.compression.pruned import Pruned
    from sipp_bench.methods import (
        Fitted,
        Method,
        Observation,
        Selection,
        check_options,
        fit,
        list_methods,
        make_method,
        prune,
        register_method,
    )
    from sipp_bench.methods.allocation import allocate
    from sipp_bench.sensitivity.measure import LayerSensitivity, Sensitivity, measure_sensitivity
    from sipp_bench.sensitivity.sample_size import sample_size

__all__ = [
    "Fitted",
    "LayerSensitivity",
    "Method",
    "Observation",
    "Pruned",
    "Selection",
    "Sensitivity",
    "allocate",
    "bounds",
    "check_options",
    "errors",
    "fit",
    "list_methods",
    "make_method",
    "measure_sensitivity",
    "prune",
    "register_method",
    "sample_size",
]

_ELSEWHERE = {
    "allocate": "methods.allocation",
    "Pruned": "compression.pruned",
    "LayerSensitivity": "sensitivity",
    "Sensitivity": "sensitivity",
    "measure_sensitivity": "sensitivity",
    "sample_size": "sensitivity.sample_size",
}
"""The module of each name that is not of `methods`."""


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name == "bounds":
        return importlib.import_module("sipp_bench.bounds")
    found = getattr(importlib.import_module(f"sipp_bench.{_ELSEWHERE.get(name, 'methods')}"), name)
    globals()[name] = found  # so that this is asked once
    return found


def __dir__() -> list[str]:
    return __all__
