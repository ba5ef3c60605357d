"""The one place that imports torchvision."""

import functools
import importlib
import importlib.util
import re
from pathlib import Path
from types import ModuleType

import torch

from sipp_bench.errors import ModelError

_ADVICE = "Install the torchvision release that belongs to your torch: pip install --upgrade torch torchvision."


@functools.cache
def torchvision() -> ModuleType:
    """Import torchvision, also where its compiled operators do not fit the installed torch.

    Returns the imported package. Raises ModelError when it is not installed, or fails to import for another
    reason than the one that `declare_missing_operators` cures.
    """
    if importlib.util.find_spec("torchvision") is None:
        raise ModelError(f"torchvision is not installed. {_ADVICE}")
    try:
        declare_missing_operators()
        return importlib.import_module("torchvision")
    except Exception as error:  # a broken or mismatched installation may raise anything while it is imported
        raise ModelError(
            f"torchvision cannot be imported with torch {torch.__version__}: {error}. {_ADVICE}"
        ) from error


@functools.cache
def declare_missing_operators() -> None:
    """Make `import torchvision` work beside a CPU-only torch; does nothing where it works anyway.

    torchvision's ordinary build is linked against the CUDA build of torch. Beside a CPU-only torch its
    operator library cannot be loaded, and `import torchvision` then fails with "operator torchvision::nms
    does not exist", since it attaches shape functions to operators that were never declared. Classification
    networks call none of them (they serve detection), so we declare the names, without code. Whoever does
    call one, through `torchvision.ops`, is told by torchvision that the compiled operators are missing.
    """
    spec = importlib.util.find_spec("torchvision")
    if spec is not None and spec.origin is not None and not _operators_load(Path(spec.origin).parent):
        _declare_operators(Path(spec.origin).with_name("_meta_registrations.py"))


def _operators_load(root: Path) -> bool:
    """Whether the compiled operators of the torchvision in `root` are there and load beside this torch."""
    libraries = sorted([*root.glob("_C*.so"), *root.glob("_C*.pyd")])
    try:
        for library in libraries:
            torch.ops.load_library(library)
    except OSError:
        return False
    return bool(libraries)


def _declare_operators(registrations: Path) -> None:
    """Declare, without code, each operator that the module `registrations` attaches a shape function to."""
    names = re.findall(r"register_fake\(\s*[\"']torchvision::(\w+)[\"']", registrations.read_text(encoding="utf-8"))
    for name in names:
        if not hasattr(torch.ops.torchvision, name):
            torch.library.define(f"torchvision::{name}", "(...) -> ...")
