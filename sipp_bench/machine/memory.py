"""How much memory there is, and how much measuring one weight takes."""

import errno
import os
from pathlib import Path

import psutil
import torch
from torch import Tensor

from sipp_bench.errors import OptionError
from sipp_bench.network.tracing import Call

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


def held_bytes(weight: Tensor) -> int:
    """What the running maximum of one weight holds: 13 bytes a weight of a float32 network, 25 of a float64 one.

    The magnitudes of the positive and of the negative weights (each of the weight's shape), the largest quotient
    so far, and a byte for the sign; and for each block a count (int64) and a scale (int32). Quotients, signs and counts
    stay as the result.
    """
    size = 8 if weight.dtype == torch.float64 else 4
    return weight.numel() * (3 * size + 1) + 24 * weight.shape[0]


def workspace_bytes(call: Call, weight: Tensor, limit: int, unfolded: bool, average: bool) -> int:
    """An upper estimate of what folding in one call takes for a moment, from the sizes of that call.

    In one chunk (see `sipp_bench.network.patches.windows`): the input, its positive and its negative part; for both
    activation signs the sums of both weight signs, for one of them their reciprocals or marks; for torch's own
    operations the unfolded patches, and 10 bytes a weight when its magnitudes are looked through; for a convolution the
    weights in the order that its library wants. A chunk that float32 can't hold is computed in float64, which takes up
    to 36 bytes a weight and twice the rest, and 4 bytes a weight for good; that is not counted.
    """
    size = 8 if weight.dtype == torch.float64 else 4
    weights, neurons = weight.numel(), weight.shape[0]
    n = weight[0].numel() * call.groups
    per_patch = 2 * neurons + (n if unfolded else 0)
    patches = call.count_patches()
    if call.geometry is None:
        chunk = min(patches, max(512, limit // per_patch))
        inputs = chunk * n
    else:
        points = max(1, call.input.shape[0])
        per_point = max(1, patches // points)
        taken = min(points, max(1, limit // max(1, per_point * per_patch)))
        # Padding adds less than the kernel's size along each dimension, rarely more than half of the input.
        chunk, inputs = taken * per_point, 2 * taken * call.input[0].numel()
    numbers = 4 * inputs + 12 * neurons * chunk
    if unfolded or size == 8:
        numbers += 3 * n * chunk
    if call.geometry is not None:
        numbers += 2 * weights
    if average:
        numbers += 2 * max(limit, 2 * weights) + 2 * weights
    if size == 8:
        numbers += 3 * weights
    if call.weight.shape != weight.shape:  # a part of attention's packed weight, whose magnitudes are copied
        numbers += 2 * call.weight.numel()
    beginning = weights * ((2 + 2 * size if unfolded else 0) + (size if weight.itemsize < size else 0))
    return max(numbers * size, beginning) + (1 << 20)


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
