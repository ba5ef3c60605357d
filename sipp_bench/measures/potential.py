"""How much of a network can go before its error shows it."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from sipp_bench.errors import OptionError

# Differences of errors, which are counts over n, to the last bit are not what a margin is about.
_ROUNDING = 1e-12


@dataclass(frozen=True)
class PrunePotential:
    """Prune ratios, shares of weights removed; None where the error is never within the margin.

    first_failure: the largest ratio measured such that it and all smaller ones pass. last_pass: the largest one that
    passes at all. They differ where the error, beyond the margin once, comes back; first_failure <= last_pass.
    """

    first_failure: float | None
    last_pass: float | None


def prune_potential(curve: Iterable[tuple[float, float]], dense_error: float, margin: float) -> PrunePotential:
    """The largest prune ratio 1 - keep with error(keep) - dense_error <= margin (up to rounding, 1e-12).

    Liebenwein et al. 2021, "Lost in Pruning" (arXiv:2103.03014): P = max {ratio : error - dense error <= delta}. Taken
    literally that is last_pass, whatever happens at smaller ratios; first_failure is up to where nothing has failed.
    curve: (keep, error) pairs in any order, each keep once, errors being shares in [0, 1] of validation or of shifted
    data; only ratios in it are found. Raises OptionError for keeps or errors outside [0, 1], and for one that is twice
    there.
    """
    errors: dict[float, float] = {}
    for keep, error in curve:
        if not (0 <= keep <= 1 and 0 <= error <= 1) or keep in errors:
            raise OptionError(f"Pairs of keep and error in [0, 1], each keep once, are needed; not ({keep}, {error}).")
        errors[keep] = error
    if not (0 <= dense_error <= 1 and margin >= 0 and math.isfinite(margin)):
        raise OptionError(f"dense_error lies in [0, 1] and margin is at least 0; not {dense_error} and {margin}.")
    first_failure = last_pass = None
    failed = False
    for keep in sorted(errors, reverse=True):
        if errors[keep] - dense_error <= margin + _ROUNDING:
            last_pass = 1 - keep
            first_failure = first_failure if failed else last_pass
        else:
            failed = True
    return PrunePotential(first_failure, last_pass)
