"""Kinds of processor: what decides in which order sums are taken, and with it the last digits of a result."""

from collections.abc import Mapping
from typing import Any

from sipp_bench.store.folder import Run


def machines(run: Run) -> list[Any]:
    """The machines of a run, each once; a resumed one may have several, and so may one with workers elsewhere."""
    found: list[Any] = []
    for system in (run.meta, *run.meta["resumed"]):
        if system.get("machine") not in found:
            found.append(system.get("machine"))
    return found + list((run.meta.get("workers") or {}).values())


def other_kind(base: Run, new: Run) -> str | None:
    """ "`Another kind of processor (A, B)` where the two runs, or parts of one, were on more than one; else None.

    A kind is the processor's model, the instructions that torch uses of it, and the device. What a run does not say
    counts as the same: only what is known to differ excuses a difference.
    """
    described = [_kind(machine) for run in (base, new) for machine in machines(run) if isinstance(machine, dict)]
    for number in range(3):
        if len({kind[number] for kind in described} - {None}) > 1:
            names = [" ".join(part for part in kind if part) for kind in described]
            return f"Another kind of processor ({', '.join(dict.fromkeys(names))})"
    return None


def _kind(machine: Mapping[str, Any]) -> tuple[str | None, str | None, str | None]:
    cpu, instructions, device = (machine.get(key) for key in ("cpu", "instructions", "device"))
    return (
        str(cpu) if cpu else None,
        f"with {instructions}" if instructions else None,
        str(device) if device else None,
    )
