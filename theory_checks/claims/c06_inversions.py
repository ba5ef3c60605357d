"""C6: inversions and monotonicity of the sampling bound; expected distinct weights."""

import itertools
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from sipp_bench.compression.rounding import gamma
from theory_checks.evidence.finding import Effort
from theory_checks.evidence.identity import Comparison, IdentityClaim, close
from theory_checks.subjects.subject import Subject


@dataclass(frozen=True)
class Setting:
    """A block's total T, m draws and delta; a target eps; and small q and m whose draws can all be listed."""

    total: float
    draws: int
    delta: float
    epsilon: float
    q: tuple[float, ...]
    few: int

    @property
    def log_term(self) -> float:
        """L = ln(2 / delta)."""
        return math.log(2 / self.delta)

    def bound(self, draws: float) -> float:
        """eps(m) of C10, from its own quadratic: the positive root of m eps^2 = 2 T L (1 + eps / 3)."""
        half = self.total * self.log_term / 3
        return (half + math.sqrt(half * half + 2 * self.total * self.log_term * draws)) / draws


class Inversions(IdentityClaim[Setting]):
    """m(eps) is the least integer with eps(m) <= eps (up to 1e-12 relative, the room for a ceil in floats); eps(m)
    falls in m, rises in T and as delta falls; the expected number of distinct weights in m draws is
    sum_j 1 - (1 - q_j)^m.

    Proof idea: m eps^2 = 2 T L (1 + eps / 3) defines both, and its right side over eps^2 falls in eps. Weight j is
    missed by all of m independent draws with probability (1 - q_j)^m.

    Trial: neighbours of m by an independent formula, round trips, and all sequences of a few draws listed.
    """

    number = "C6"
    title = "Inversions"
    statement = (
        "m(eps) is the least integer with eps(m) <= eps; eps falls in m, rises in T and as delta falls; expected "
        "distinct weights in m draws are sum 1 - (1 - q)^m."
    )
    rejects = (
        "draws rounded down",
        "one draw more than needed",
        "one-sided logarithm",
        "distinct draws counted as draws",
    )

    def cases(self, effort: Effort, rng: np.random.Generator) -> Iterable[Setting]:
        """T from 1 to 1e4, m from 1 to 1e9, delta from 1e-16 to .9, eps from 1e-3 to 10."""
        for _ in range(effort.cases):
            total = float(10 ** max(0.0, rng.uniform(-2, 4)))
            draws = int(10 ** rng.uniform(0, 9) if rng.random() < 0.5 else rng.integers(1, 20))
            size = int(rng.integers(1, 5))
            q = rng.dirichlet(np.full(size, 0.7)) if size > 1 else np.ones(1)
            yield Setting(
                total,
                draws,
                float(10 ** rng.uniform(-16, -0.05)),
                float(10 ** rng.uniform(-3, 1)),
                tuple(float(x) for x in np.minimum(q, 1)),
                int(rng.integers(0, 6)),
            )

    def compare(self, subject: Subject, case: Setting) -> Iterator[Comparison]:
        """The bound, its inverse, its monotonicity, and the count of distinct weights."""
        t, m, delta = case.total, case.draws, case.delta
        found = subject.draw_epsilon(t, m, delta)
        yield close("eps(m) solves its quadratic", found, case.bound(m), found * gamma(16))
        least = subject.draws_for(t, case.epsilon, delta)
        # The room that the claim gives for rounding, and the rounding of this file's own bound.
        room = 1e-12 + gamma(16)
        yield Comparison("eps(m(eps)) <= eps", case.bound(least), case.epsilon, case.epsilon * room)
        if least > 1:
            fewer = case.bound(least - 1)
            yield Comparison("m(eps) is the least", case.epsilon, fewer, fewer * room)
        # eps changes by at least 1 / (2 m) relative from m to m + 1: far more than the room, up to 1e9 draws.
        yield close("m(eps(m)) = m", subject.draws_for(t, found, delta), m, 0)
        neighbours = {
            "eps falls in m": (subject.draw_epsilon(t, m + 1, delta), found),
            "eps rises in T": (found, subject.draw_epsilon(t * (1 + 1e-6), m, delta)),
            "eps rises as delta falls": (found, subject.draw_epsilon(t, m, delta * (1 - 1e-6))),
        }
        for law, (lower, higher) in neighbours.items():
            yield Comparison(law, lower, math.nextafter(higher, 0))
        expected = _expected_distinct(case.q, case.few)
        slack = expected * gamma(4 * case.few + len(case.q) + 8)
        yield close("expected distinct weights", subject.distinct(np.array(case.q), case.few), expected, slack)


CLAIM = Inversions()


def _expected_distinct(q: tuple[float, ...], draws: int) -> float:
    """By listing every sequence of draws."""
    sequences = itertools.product(range(len(q)), repeat=draws)
    return math.fsum(math.prod(q[j] for j in sequence) * len(set(sequence)) for sequence in sequences)
