"""sipp-bench: a reference implementation of SiPP and its peers, with bounds that are checked, not assumed."""

from sipp_bench import bounds, errors
from sipp_bench.allocation import allocate
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
from sipp_bench.pruned import Pruned
from sipp_bench.sample_size import sample_size
from sipp_bench.sensitivity import LayerSensitivity, Sensitivity, measure_sensitivity

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
