"""The claims of THEORY.md, one file each. A module here defines `CLAIM`; the registry finds it by its file."""

import functools
import importlib
import pkgutil

from theory_checks.evidence.finding import FULL, QUICK, Claim, Effort, Finding, Kind, Verdict

__all__ = ["FULL", "QUICK", "Claim", "Effort", "Finding", "Kind", "Verdict", "claims"]


@functools.cache
def claims() -> dict[str, Claim]:
    """All claims by number ("C2"), in order."""
    modules = sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name.startswith("c"))
    found = [importlib.import_module(f"{__name__}.{name}").CLAIM for name in modules]
    return {claim.number: claim for claim in found}
