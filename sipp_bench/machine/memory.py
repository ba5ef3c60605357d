"""How much memory there is."""

import errno
import os
from pathlib import Path

import psutil
import torch

from sipp_bench.errors import OptionError

# Of the memory that is free, left to a measurement. The rest is for the network's activations, and for others.
_SHARE = 0.75
_CGROUPS, _MEMBERSHIP = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def room(memory: int | None, device: torch.device, processes: int = 1) -> int:
    """Bytes that a measurement on `device` may take: `memory`, or three quarters of what is free, for each process.

    Raises OptionError for a `memory` that is no whole number of at least 1.
    """
    if memory is None:
        return int(free_bytes(device) * _SHARE) // processes
    if isinstance(memory, bool) or not isinstance(memory, int) or memory < 1:
        raise OptionError(f"memory is a whole number of bytes of at least 1, or None, not {memory!r}.")
    return memory


def free_bytes(device: torch.device) -> int:
    """Bytes that can be had on `device` without swapping.

    Of a CUDA device: what its driver says is free, and what torch has reserved but not given out. Else: what the system
    says is available, and no more than the process's control group (a container's limit) leaves.
    """
    if device.type == "cuda":
        free: int = torch.cuda.mem_get_info(device)[0]
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return min([int(psutil.virtual_memory().available), *_left_in_control_groups()])


def require_room(needed: int) -> None:
    """Raise OSError, as a file that cannot be read does, for `needed` bytes when there is no `room` for them."""
    there = room(None, torch.device("cpu"))
    if needed > there:
        raise OSError(errno.ENOMEM, f"it takes {needed / 1e9:.1f} GB of memory, and there are {there / 1e9:.1f} for it")


def processes_here() -> int:
    """Processes of this job on this machine, which share its memory: as torchrun says, else 1."""
    count = os.environ.get("LOCAL_WORLD_SIZE", "1")
    return max(1, int(count)) if count.isdecimal() else 1


def _left_in_control_groups() -> list[int]:
    """Bytes below the limit of each control group that this process is in, those without a limit left out."""
    try:
        lines = _MEMBERSHIP.read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        return []
    left = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":  # version 2
            root, names = _CGROUPS, ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            root = _CGROUPS / "memory"
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        # Within a container the path may be the host's, and the group itself be mounted as the root.
        folder = root / path.lstrip("/")
        found = [_left(place, *names) for place in (folder, *folder.parents) if place.is_relative_to(root)]
        left += [bytes_left for bytes_left in found if bytes_left is not None]
    return left


def _left(folder: Path, limit_name: str, usage_name: str, cache_name: str) -> int | None:
    """Limit less usage of one control group; files in the page cache can be dropped and do not count as used."""
    try:
        limit = (folder / limit_name).read_text(encoding="utf-8").strip()
        usage = int((folder / usage_name).read_text(encoding="utf-8"))
        statistics = (folder / "memory.stat").read_text(encoding="utf-8").split()
    except (OSError, ValueError):
        return None
    # Version 1 says "no limit" by a number beyond any memory.
    if not limit.isdecimal() or int(limit) >= 1 << 60:
        return None
    cache = int(statistics[statistics.index(cache_name) + 1]) if cache_name in statistics else 0
    return max(0, int(limit) - usage + cache)
