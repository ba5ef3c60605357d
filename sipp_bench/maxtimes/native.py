"""The max-times product by the C++ library that is built when the package is installed; float32 on a CPU.

Threads follow `torch.get_num_threads()`. The instruction set (SSE2, AVX2 or AVX-512; NEON on 64-bit ARM) is chosen
when the library is loaded.
"""

import ctypes
import functools
from importlib import metadata
from pathlib import Path

import torch
from torch import Tensor

from sipp_bench.errors import OptionError
from sipp_bench.network.patches import Windows

_VERSION = 1  # of the two structs, as in native/dispatch.cpp
_NAME = "libsipp_maxtimes.so"
_pointer, _number = ctypes.c_void_p, ctypes.c_int64


class _Problem(ctypes.Structure):
    """Mirror of native/problem.hpp."""

    _fields_ = (
        ("x", _pointer), ("starts", _pointer), ("runs", _number), ("length", _number), ("step", _number),
        ("columns", _pointer), ("n", _number), ("group_stride", _number),
        ("z", _pointer), ("sample_stride", _number), ("channel_stride", _number), ("spatial", _number),
        ("groups", _number), ("neurons", _number), ("positive", _pointer), ("out", _pointer), ("threads", _number),
    )  # fmt: skip


class _Survey(ctypes.Structure):
    """Mirror of native/problem.hpp."""

    _fields_ = (
        ("z", _pointer), ("samples", _number), ("channels", _number), ("sample_stride", _number),
        ("channel_stride", _number), ("spatial", _number), ("active", _pointer),
        ("smallest", ctypes.c_float), ("largest", ctypes.c_float), ("threads", _number),
    )  # fmt: skip


def unavailable(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why it can't be used, or None."""
    if device.type != "cpu":
        return "it computes on CPUs only."
    if dtype != torch.float32:
        return "it computes in float32 only."
    loaded = _library()
    return loaded if isinstance(loaded, str) else None


def detail() -> str:
    """The instruction set in use."""
    return variants()[0]


@functools.cache
def variants() -> tuple[str, ...]:
    """Instruction sets that this library has and this CPU runs, best first."""
    library = _loaded()
    runs = [v for v in range(library.sipp_variants()) if library.sipp_variant_runs(v)]
    return tuple(library.sipp_variant_name(v).decode() for v in runs)


def max_product(windows: Windows, z: Tensor, positive: Tensor, out: Tensor, variant: str | None = None) -> None:
    """See `sipp_bench.maxtimes`. float32; positive and out contiguous. Extra memory: about 1 MiB, and 128 KiB a thread.

    variant: one of `variants()`, default the best.
    """
    layout, z = windows.layout(), _dense(z)
    if not (positive.is_contiguous() and out.is_contiguous()):
        raise OptionError("The native max-times product needs contiguous signs and maxima.")
    groups, neurons, n = out.shape
    problem = _Problem(
        windows.x.data_ptr(), layout.starts.data_ptr(), layout.starts.numel(), layout.length, layout.step,
        layout.columns.data_ptr(), n, layout.group_stride,
        z.data_ptr(), z.stride(0), z.stride(2), z.shape[3],
        groups, neurons, positive.data_ptr(), out.data_ptr(), torch.get_num_threads(),
    )  # fmt: skip
    if _loaded().sipp_max_product(_index(variant), ctypes.byref(problem)):
        raise MemoryError("No memory left for the workspace of the max-times product.")


def survey(z: Tensor, active: Tensor) -> tuple[float, float]:
    """As `sipp_bench.network.blocks.survey`, in one pass over z."""
    z = _dense(z)
    counts = torch.zeros(z.shape[1] * z.shape[2], dtype=torch.int64)
    found = _Survey(
        z.data_ptr(), z.shape[0], counts.numel(), z.stride(0), z.stride(2), z.shape[3], counts.data_ptr(),
        0.0, 0.0, torch.get_num_threads(),
    )  # fmt: skip
    _loaded().sipp_survey(_index(None), ctypes.byref(found))
    active += counts.view_as(active)
    return found.smallest, found.largest


def _dense(z: Tensor) -> Tensor:
    """Positions beside each other, and the channels of all groups at one stride."""
    return z if z.stride(3) == 1 and (z.shape[1] == 1 or z.stride(1) == z.shape[2] * z.stride(2)) else z.contiguous()


def _index(variant: str | None) -> int:
    library = _loaded()
    name = variant or variants()[0]
    names = [library.sipp_variant_name(v).decode() for v in range(library.sipp_variants())]
    if name not in variants():
        raise OptionError(f"The instruction set {name!r} can't be used here; there are: {', '.join(variants())}.")
    return names.index(name)


def _loaded() -> ctypes.CDLL:
    library = _library()
    if isinstance(library, str):
        raise OptionError(f"The backend 'native' can't be used: {library}")
    return library


@functools.cache
def _library() -> ctypes.CDLL | str:
    """The library, or why there is none."""
    path = Path(__file__).with_name(_NAME)
    if not path.exists():
        # An editable installation keeps what was built apart from the sources.
        try:
            path = Path(str(metadata.distribution("sipp-bench").locate_file(f"sipp_bench/maxtimes/{_NAME}")))
        except metadata.PackageNotFoundError:
            return "the package is not installed, so that its C++ library was never built."
    if not path.exists():
        return (
            "it was not built when the package was installed: install GCC 12 or Clang, then install the package anew."
        )
    try:
        library = ctypes.CDLL(str(path))
        version = library.sipp_version()
    except (OSError, AttributeError) as error:
        return f"its library does not load: {error}."
    if version != _VERSION:
        return f"its library is of version {version}, not {_VERSION}: install the package anew."
    library.sipp_variant_name.restype = ctypes.c_char_p
    library.sipp_survey.restype = None
    return library
