"""Claim C12: in each block the better of dropping and drawing."""

from typing import ClassVar

import numpy as np

from sipp_bench.compression import rounding
from theory_checks.cases.hard_cases import Array, Block
from theory_checks.evidence import drawn
from theory_checks.evidence.decided import Outcome
from theory_checks.evidence.finding import Effort, Kind
from theory_checks.subjects.subject import Subject

DELTA = 0.2
KEEP = 0.3
SUSPECTS = 4


class Hybrid(drawn.DrawnClaim):
    """Compare min(1, sum_P s) and eps(m), both from s alone; run the smaller one's branch; its own bound holds.

    Proof: the choice does not depend on the draws, so that claim C2 or C10 applies to the branch that is run.

    Trials: seeds of `sipp-hybrid` on a layer whose blocks go from even weights to heavy tails, so that both branches
    are run. For every seed the plan must be the same (draws, bounds, and what is dropped); a dropped block keeps the
    rest of its weights as they are and has error at most its bound, always; bounds are C2's and C10's by independent
    arithmetic, and the branch not run would have had a larger one; drawn blocks exceed theirs at most with delta at
    each point, by exact binomial tests at the points that a pilot run found hardest, on other seeds.
    """

    number = "C12"
    title = "Hybrid"
    statement = (
        "Compare min(1, sum_P s) and eps(m), both from s alone; run the smaller one's branch; its own bound holds."
    )
    kind = Kind.STATISTICAL
    rejects = ("branch chosen after the draw", "the other branch run", "bound halved")
    tests: ClassVar[int] = SUSPECTS

    def observe(self, subject: Subject, effort: Effort, level: float, seed: int) -> Outcome:
        rng = np.random.default_rng([seed, 12])
        layer, points = drawn.graded_layer(12, 160, 8, rng)
        seeds = max(effort.trials // 10, 50)
        runs = drawn.run_method(subject.fit, layer, points, KEEP, seeds, seed, method="sipp-hybrid", delta=DELTA)
        violations = [] if runs.same_plan else ["the plan differs between seeds"]
        pilot, cases, errors = seeds // 3, [], []
        branches = {"dropped": 0, "drawn": 0}
        for i, column, block, factors in runs.blocks():
            epsilon, draws = float(runs.epsilon[i, column]), int(runs.draws[i, column])
            check, name = (_drawn, "drawn") if draws else (_dropped, "dropped")
            branches[name] += 1
            violations += [f"{block.name}: {what}" for what in check(block, factors, draws, epsilon)]
            claimed = epsilon * subject.shrink
            error = np.abs(factors @ block.rows.T - 1)
            if draws:
                cases.append(drawn.case(block.name, block.total, draws, DELTA, claimed, max(block.total - 1, 1)))
                errors.append((block.name, claimed, error))
            elif not bool((error <= claimed + rounding.gamma(4 * len(block.s) + 16)).all()):
                violations.append(f"{block.name}: dropped, error {error.max():.4g} above {claimed:.4g}")
        decisions = drawn.confirm(errors, pilot, DELTA, level, SUSPECTS)
        return Outcome(decisions, violations=violations, data={"cases": cases, "branches": branches})


def _dropped(block: Block, factors: Array, draws: int, epsilon: float) -> list[str]:
    """The top of s is kept as it is in every draw set, the rest is 0, and drawing as many had a larger bound."""
    found = []
    kept = factors[0] != 0
    if not bool((factors == kept).all()):
        return ["dropped, but weights are changed, or differ between seeds"]
    bound = min(1.0, float(block.s[~kept].sum()))
    slack = rounding.gamma(2 * len(block.s) + 16)
    if abs(epsilon - bound) > slack:
        found.append(f"bound {epsilon:.6g}, not C2's {bound:.6g}")
    count = int((kept & (block.s > 0)).sum())
    if 0 < count < (block.s > 0).sum() and drawn.root(count, block.total, block.total, DELTA) < bound - slack:
        found.append(f"dropped, though {count} draws have a smaller bound")
    return found


def _drawn(block: Block, factors: Array, draws: int, epsilon: float) -> list[str]:
    """C10's bound, counts as in C9, and dropping all but as many weights had a larger bound."""
    found = []
    if not drawn.inverts(epsilon, draws, block.total, block.total, DELTA, roundings=2 * len(block.s) + 8):
        found.append("bound is not C10's")
    q = block.s / block.total
    if drawn.whole_counts(factors, q, draws)[1]:
        found.append("drawn, but the counts are not whole or don't add up to the draws")
    slack = rounding.gamma(2 * len(q) + 16)
    ordered = np.sort(block.s)
    better = (
        drawn.root(share, block.total, block.total, DELTA) <= min(1.0, ordered[: len(q) - share].sum()) + slack
        for share in drawn.asked(q, draws)
    )
    if not any(better):
        found.append("drawn, though dropping all but as many weights has a smaller bound")
    return found


CLAIM = Hybrid()
