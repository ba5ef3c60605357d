"""What a run ran on: machine, versions and commit; nothing that names its owner, since people publish it."""

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

_PACKAGES = (
    "sipp-bench",
    "torch",
    "torchvision",
    "numpy",
    "scipy",
    "pandas",
    "safetensors",
    "mlxtend",
    "scikit-learn",
)


def describe_system() -> dict[str, Any]:
    """Machine, python, package versions and the checkout's commit, as JSON-ready values. Never raises.

    No host name, user name or path is in it. What cannot be found out is None.
    """
    return {"machine": _machine(), "versions": _versions(), **_commit(Path(__file__).resolve().parents[1])}


def _machine() -> dict[str, Any]:
    return {
        "platform": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cpu": _cpu_model(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "memory_bytes": _memory_bytes(),
        "torch_threads": torch.get_num_threads(),
        "devices": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
    }


def _versions() -> dict[str, str | None]:
    versions: dict[str, str | None] = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:  # a checkout that is not installed
            versions[package] = None
    return versions


def _commit(package: Path) -> dict[str, Any]:
    """The commit of the checkout that `package` is the source of, and whether files in it differ from it."""
    checkout = package.parent
    top = _git(checkout, "rev-parse", "--show-toplevel")
    # An installed package may lie in a virtual environment inside some other project's checkout.
    if top is None or Path(top).resolve() != checkout:
        return {"commit": None, "dirty": None}
    status = _git(checkout, "status", "--porcelain")
    return {"commit": _git(checkout, "rev-parse", "HEAD"), "dirty": None if status is None else bool(status)}


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        command = ["git", "-C", str(folder), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return None


def _cpu_model() -> str | None:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:  # not Linux
        return platform.processor() or None
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or None


def _memory_bytes() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # not POSIX
        return None
