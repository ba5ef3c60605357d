"""The one hot kernel: a matrix product over the (max, *) semiring, sign-merged.

`max_product(windows, z, positive, out)` folds every patch p of `windows` into `out` (groups, M, n):

    out[g, i, j] = max(out[g, i, j], max over p of a[g, p, j] / z[p, g, i or M + i]),   0 where z = 0,

the first M sums where `positive` (bool, (groups, M, n)) and the last M elsewhere. a >= 0 are the patches (see
`sipp_bench.network.patches.Windows`); z (samples, groups, 2M, positions) >= 0, whose samples times positions are the
patches in order. All of one float dtype and device, except where a backend says otherwise. Every backend is one file
beside this one with a function of that signature and `unavailable(device, dtype)`, the reason why it can't be used, or
None.
"""

import functools
import importlib
import os
import warnings
from collections.abc import Callable
from types import ModuleType
from typing import Literal

import torch
from torch import Tensor

from sipp_bench.errors import OptionError
from sipp_bench.network import blocks as quadrants
from sipp_bench.network.patches import Windows

Backend = Literal["auto", "reference", "torch", "native", "triton"]
MaxProduct = Callable[[Windows, Tensor, Tensor, Tensor], None]

# In the order of preference; `reference` is never chosen by itself.
_MODULES = {"triton": "triton_kernel", "native": "native", "torch": "chunked", "reference": "reference"}
BACKENDS = ("auto", *_MODULES)
VARIABLE = "SIPP_BENCH_BACKEND"


def max_product(windows: Windows, z: Tensor, positive: Tensor, out: Tensor, backend: str | None = None) -> None:
    """See `sipp_bench.maxtimes`; by the backend that `choose` gives for z's device and dtype."""
    module(choose(z.device, z.dtype, backend)).max_product(windows, z, positive, out)


def survey(z: Tensor, active: Tensor, backend: str | None = None) -> tuple[float, float]:
    """As `sipp_bench.network.blocks.survey`, by the backend where it has its own."""
    chosen = module(choose(z.device, z.dtype, backend))
    found: tuple[float, float] = getattr(chosen, "survey", quadrants.survey)(z, active)
    return found


def choose(device: torch.device, dtype: torch.dtype, backend: str | None = None) -> str:
    """The name of the backend for numbers of this device and dtype.

    backend: a name, or None for what the variable SIPP_BENCH_BACKEND says, or "auto": the fastest that can be used.
    float64 is left to torch by a backend that is asked for by name but lacks it: a few chunks that float32 can't hold
    are computed in it. Raises OptionError for a name that doesn't exist or that can't be used on this device.
    """
    name = requested(backend)
    if name == "auto":
        if device.type == "cpu" and dtype == torch.float32 and (why := module("native").unavailable(device, dtype)):
            _say_what_is_lost(why)
        usable = (name for name in _MODULES if module(name).unavailable(device, dtype) is None)
        # Triton's interpreter is for tests of its kernel only.
        return next(name for name in usable if name != "triton" or device.type == "cuda")
    lacks_double = dtype == torch.float64 and module(name).unavailable(device, dtype) is not None
    if why := module(name).unavailable(device, torch.float32 if lacks_double else dtype):
        raise OptionError(f"The backend {name!r} can't be used for {device.type} here: {why}")
    return "torch" if lacks_double else name


@functools.cache
def _say_what_is_lost(why: str) -> None:
    """Once a process."""
    warnings.warn(
        f"No native max-times kernel: {why} The torch backend is used: the same sensitivities, some 20 times slower.",
        stacklevel=2,
    )


def requested(backend: str | None) -> str:
    """The name that the argument or the environment asks for; raises OptionError if there is none such."""
    name = backend if backend is not None else os.environ.get(VARIABLE, "") or "auto"
    if name not in BACKENDS:
        origin = "backend" if backend is not None else f"The environment variable {VARIABLE}"
        raise OptionError(f"{origin} is one of {', '.join(BACKENDS)}, not {name!r}.")
    return name


@functools.cache
def module(name: str) -> ModuleType:
    """The module of a backend."""
    return importlib.import_module(f"sipp_bench.maxtimes.{_MODULES[name]}")


def describe(device: torch.device) -> list[tuple[str, str]]:
    """Every backend with "chosen", "available", or "not available" and why, on this device, for float32."""
    chosen = choose(device, torch.float32)
    lines = []
    for name in _MODULES:
        why = module(name).unavailable(device, torch.float32)
        detail = "" if why else getattr(module(name), "detail", lambda: "")()
        state = "not available: " + why if why else "chosen" if name == chosen else "available"
        lines.append((name, f"{state} ({detail})" if detail and not why else state))
    return lines
