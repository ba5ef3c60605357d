"""What the tests of the sampling claims share."""

from dataclasses import replace

from theory_checks.claims import Claim, Effort, Finding, Verdict
from theory_checks.subjects.known_bad import KNOWN_BAD
from theory_checks.subjects.subject import REFERENCE

# Enough to reject every known-bad subject; the trials that a power needs are derived, whatever the effort.
SMALL = Effort("small", cases=24, trials=400, tests=64)


def rejects(claim: Claim, name: str, seed: int = 3) -> bool:
    """Whether the claim rejects a known-bad subject."""
    return claim.check(KNOWN_BAD[name], SMALL, seed).verdict is Verdict.FALSIFIED


def shrunk(claim: Claim, factor: float, seed: int = 4) -> Finding:
    """What the claim finds for its own bounds times a factor."""
    return claim.check(replace(REFERENCE, shrink=factor), SMALL, seed)
