"""The one place that imports torchvision."""

import functools
import importlib
import importlib.util
import re
from pathlib import Path
from types import ModuleType

import torch

from sipp_bench.errors import ModelError

_ADVICE = (
    "Install the torchvision release that belongs to your torch: pip install --upgrade torch torchvision."
)


@functools.cache
def torchvision() -> ModuleType:
    """Import torchvision, also where its compiled operators do not fit the installed torch.

    torchvision's ordinary build is linked against the CUDA build of torch. Beside a CPU-only torch its
    operator library cannot be loaded, and `import torchvision` then fails with "operator torchvision::nms
    does not exist", since it attaches shape functions to operators that were never declared. Classification
    networks call none of them (they serve detection), so we declare the names, without code, and import.
    Whoever does call one, through `torchvision.ops`, is told by torchvision that the compiled operators are
    missing.

    Returns the imported package. Raises ModelError when it is not installed, or fails to import for another
    reason.
    """
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        raise ModelError(f"torchvision is not installed. {_ADVICE}")
    try:
        root = Path(spec.origin).parent
        if not _operators_load(root):
            _declare_operators(root / "_meta_registrations.py")
        return importlib.import_module("torchvision")
    except Exception as error:  # a broken or mismatched installation may raise anything while it is imported
        raise ModelError(
            f"torchvision cannot be imported with torch {torch.__version__}: {error}. {_ADVICE}"
        ) from error


def _operators_load(root: Path) -> bool:
    """Whether the compiled operators of the torchvision in `root` are there and load beside this torch."""
    libraries = sorted([*root.glob("_C*.so"), *root.glob("_C*.pyd")])
    try:
        for library in libraries:
            torch.ops.load_library(library)  # type: ignore[no-untyped-call]  # torch gives it no types
    except OSError:
        return False
    return bool(libraries)


def _declare_operators(registrations: Path) -> None:
    """Declare, without code, each operator that the module `registrations` attaches a shape function to."""
    names = re.findall(
        r"register_fake\(\s*[\"']torchvision::(\w+)[\"']", registrations.read_text(encoding="utf-8")
    )
    for name in names:
        if not hasattr(torch.ops.torchvision, name):
            torch.library.define(f"torchvision::{name}", "(...) -> ...")
