"""Claim C10: how far one draw set can be off, at one point."""

from typing import Any, ClassVar

import numpy as np

from theory_checks.cases import hard_cases
from theory_checks.cases.hard_cases import Array, Instance
from theory_checks.evidence import drawn
from theory_checks.evidence.decided import Decision, Outcome, trials_for
from theory_checks.evidence.finding import Effort, Kind
from theory_checks.subjects.subject import Subject

# Failure probabilities of the exact search; those of the simulations, the main one first.
EXACT = (0.5, 0.2, 0.1, 0.01, 1e-4)
SIMULATED = (0.1, 0.2, 0.01)
# Members small enough to be drawn thousands of times, and how many blocks of the random search.
DRAWN = hard_cases.WHOLE[:-1]
SUSPECTS = 2


class Bernstein(drawn.DrawnClaim):
    """For one active (x, p, tau) of S and m draws, L = ln(2/delta):

        Pr(|Zhat - Z| > eps Z) <= delta   for   eps(m) = (T L/3 + sqrt((T L/3)^2 + 2 T L m)) / m.

    Proof: Zhat is the mean of m i.i.d. draws within [0, T Z], of mean Z and variance at most (T - 1) Z^2 (claim C9);
    Bernstein's inequality with T for both gives 2 exp(-m eps^2 / (2 T (1 + eps/3))), and eps(m) is where that is delta.

    Trials: draw sets, of each of which one (x, p, tau) chosen before is looked at. (1) eps(m) is the root of that tail,
    by independent arithmetic. (2) In the hardest family known (`hard_cases`) the failure probability is a binomial sum,
    searched over T up to 500 and m; above delta the bound is false, without any statistics. (3) The hardest members are
    drawn by the subject, and (4) so are random blocks, the hardest of a pilot search with fresh seeds.

    Power: the inequality is not tight. Shrunk by 0.99 or 0.9 it is still true in every case known; it is false from
    0.67 on at delta = 0.1, from 0.78 at 0.01 and 0.87 at 1e-4. `data["exact"]` has the failure probabilities. A bound
    of max(T - 1, 1) or more can't fail, and one of 1 or more says nothing; neither counts as a pass (`data["cases"]`).
    """

    number = "C10"
    title = "Bernstein bound"
    statement = (
        "Pr(|Zhat - Z| > eps Z) <= delta for each active (x, p, tau) of S, with "
        "eps(m) = (T L/3 + sqrt((T L/3)^2 + 2 T L m))/m, L = ln(2/delta)."
    )
    kind = Kind.STATISTICAL
    rejects = ("bound halved", "range term left out", "log term of one side", "mean over points", "one draw repeated")
    tests: ClassVar[int] = len(SIMULATED) + SUSPECTS

    def observe(self, subject: Subject, effort: Effort, level: float, seed: int) -> Outcome:
        search_rng, rng = (np.random.default_rng([seed, 10, stage]) for stage in (0, 1))

        def bound(total: float, draws: Any, delta: float) -> Array:
            return np.asarray(subject.draw_epsilon(total, draws, delta), dtype=np.float64) * subject.shrink

        exact, violations = drawn.exact_failures(bound, EXACT, hard_cases.WHOLE)
        violations += _formula(subject)
        decisions, cases = [], _small_cases(subject)
        for delta in SIMULATED:
            decision, row = _simulate(subject, hard_cases.hardest(bound, delta, DRAWN), effort, level, rng)
            decisions.append(decision)
            cases.append(row)
        blocks = hard_cases.random_blocks(max(effort.cases // 3, 8), search_rng)
        for suspect in hard_cases.search(blocks, bound, 0.1, SUSPECTS, search_rng):
            s, total = suspect.block.measured(subject)
            epsilon = float(bound(total, suspect.draws, 0.1))
            factors = hard_cases.draw_sets(subject, s, suspect.block.weight, suspect.draws, effort.trials, rng)
            count = hard_cases.failures(factors, suspect.block.rows[suspect.row], epsilon)
            decisions.append(Decision(suspect.block.name, count, effort.trials, 0.1, level, two_sided=False))
            cases.append(_case(suspect.block.name, total, suspect.draws, 0.1, epsilon))
        detail = f"Largest exact failure probability: {max(i.ratio for i in exact):.3g} of delta."
        data = {"exact": [drawn.describe(i) for i in exact], "cases": cases}
        return Outcome(decisions, violations=violations, detail=detail, data=data)


def _formula(subject: Subject) -> list[str]:
    """eps(m) is where the tail is delta; as given, without `shrink`."""
    total, draws, delta = (
        a.ravel()
        for a in np.meshgrid([1.0, 1.5, 7.0, 500.0], [1, 3, 40, 10_000, 10**7], [0.5, 0.1, 1e-4, 1e-9], indexing="ij")
    )
    epsilon = subject.draw_epsilon(total, draws, delta)
    return [] if drawn.inverts(epsilon, draws, total, total, delta) else ["eps(m) is not the root of the tail"]


def _case(name: str, total: float, draws: int, delta: float, epsilon: float) -> dict[str, Any]:
    return drawn.case(name, total, draws, delta, epsilon, max(total - 1, 1.0))


def _small_cases(subject: Subject) -> list[dict[str, Any]]:
    """Few draws: bounds that say nothing, as the report should show."""
    return [
        _case("few draws", total, draws, 0.1, float(subject.draw_epsilon(total, draws, 0.1)) * subject.shrink)
        for total, draws in ((1.5, 2), (2.0, 8), (20.0, 40), (20.0, 120))
    ]


def _simulate(
    subject: Subject, instance: Instance, effort: Effort, level: float, rng: np.random.Generator
) -> tuple[Decision, dict[str, Any]]:
    """The subject's own draws from a member of the family; enough to see a bound halved there."""
    block = hard_cases.windows(instance.weights, instance.active, rng)
    s, total = block.measured(subject)
    epsilon = float(subject.draw_epsilon(total, instance.draws, instance.delta)) * subject.shrink
    half = drawn.root(instance.draws, instance.total, instance.total, instance.delta) / 2
    wrong = float(hard_cases.violation_probability(instance.draws, half, instance.weights, instance.active))
    # Where half the bound is true as well, it can't be seen, and need not be.
    trials = trials_for(effort, instance.delta, wrong, level) if wrong > 1.2 * instance.delta else effort.trials
    factors = hard_cases.draw_sets(subject, s, block.weight, instance.draws, trials, rng)
    row = int(rng.integers(len(block.rows)))
    count = hard_cases.failures(factors, block.rows[row], epsilon)
    name = f"hardest family, T = {instance.total:g}, delta = {instance.delta:g}"
    decision = Decision(name, count, trials, instance.delta, level, two_sided=False)
    return decision, _case(name, total, instance.draws, instance.delta, epsilon)


CLAIM = Bernstein()
