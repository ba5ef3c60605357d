"""Claim C13: keep the largest sensitivities, draw from the rest or drop it."""

from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch

from sipp_bench.compression import rounding
from sipp_bench.machine.seeds import derived_seed
from theory_checks.cases import drawn_networks, hard_cases
from theory_checks.cases.hard_cases import Array, Block, Instance
from theory_checks.evidence import drawn, statistics
from theory_checks.evidence.decided import Decision, Outcome, trials_for
from theory_checks.evidence.finding import Effort, Kind
from theory_checks.subjects.subject import Subject

Mask = npt.NDArray[np.bool_]

EXACT = (0.5, 0.2, 0.1, 0.01)
SIMULATED = (0.1, 0.2)
SUSPECTS = 3
DELTA = 0.2
KEEP = 0.3
KEPT = 2


class Mixture(drawn.DrawnClaim):
    """Keep the k largest s of a block, 0 <= k <= min(m, weights); draw m - k >= 1 times from the rest R with
    q_j = s_j / T_R, or drop R (eps = min(1, T_R)). With v = T_R^2/4 if T_R <= 2 else T_R - 1:

        Pr(|Zhat - Z| > eps Z) <= 2 exp(-(m - k) eps^2 / (2 (v + T_R eps/3))).

    Proof: Zhat - Z is that of the rest, a mean of draws within [0, T_R Z] of mean rho Z, rho = sum_R g, and variance
    (T_R sum_R g^2/s - rho^2) Z^2 <= (T_R rho - rho^2) Z^2, whose maximum over rho <= min(1, T_R) is v Z^2: at
    rho = T_R / 2, or at 1. Then Bernstein's inequality. k depends on s alone.

    Trials: draw sets. As for C10: the bound is the root of its tail; exact failure probabilities in the family that
    attains v; its hardest members drawn by the subject. Beside them: the exact variance by enumeration, and its maximum
    v at rho = T_R / 2; the ends k = m (claim C2's bound) and k = 0 (at most C10's); and `sipp-mixture` as users run it:
    one plan for all seeds, the k largest s kept as they are, whole counts of the rest, no other k with a smaller bound.
    """

    number = "C13"
    title = "Mixture"
    statement = (
        "The k largest s kept, m - k draws from the rest R: Pr(|Zhat - Z| > eps Z) <= "
        "2 exp(-(m-k) eps^2/(2 (v + T_R eps/3))), v = T_R^2/4 if T_R <= 2 else T_R - 1; R dropped: eps = min(1, T_R)."
    )
    kind = Kind.STATISTICAL
    rejects = (
        "bound halved",
        "no reweighting",
        "draws without replacement",
        "one draw short",
        "one draw repeated",
        "mixture's variance halved",
        "mixture's log term of one side",
        "mixture reweights what it keeps",
        "later layers drawn too small",
        "larger of two draws",
        "layers drawn alike",
    )
    tests: ClassVar[int] = len(SIMULATED) + SUSPECTS + 2 + 1

    def observe(self, subject: Subject, effort: Effort, level: float, seed: int) -> Outcome:
        rng = np.random.default_rng([seed, 13])

        def bound(rest: float, draws: Any, delta: float) -> Array:
            return np.asarray(subject.mixture_epsilon(rest, draws, delta), dtype=np.float64) * subject.shrink

        exact, violations = drawn.exact_failures(bound, EXACT, hard_cases.PARTS)
        violations += _formula(subject) + _ends(subject)
        decisions, cases, p_values = [], [], {}
        for delta in SIMULATED:
            instance = next(i for i in exact if i.delta == delta)
            decision, row = _simulate(subject, instance, effort, level, rng)
            decisions.append(decision)
            cases.append(row)
        for members in ((2, 1, 0.5), (3, 1, 1.0)):
            p, found = _rest_law(subject, members, effort, rng)
            p_values[f"outcomes of the rest, {members[1]} of {members[0]} active, rho = {members[2]:g}"] = p
            violations += found
        p_values["sipp-mixture, a network"], found = _network(subject, effort, seed, rng)
        violations += found
        suspects, rows, found = _method(subject, effort, level, seed, rng)
        data = {"exact": [drawn.describe(i) for i in exact], "cases": cases + rows}
        detail = f"Largest exact failure probability: {max(i.ratio for i in exact):.3g} of delta."
        return Outcome(decisions + suspects, p_values, violations + found, detail, data)


def _formula(subject: Subject) -> list[str]:
    rest, draws, delta = (
        a.ravel()
        for a in np.meshgrid(
            [0.01, 0.7, 1.4, 2.0, 2.5, 80.0], [1, 3, 40, 10_000], [0.5, 0.1, 1e-4, 1e-9], indexing="ij"
        )
    )
    epsilon = subject.mixture_epsilon(rest, draws, delta)
    good = drawn.inverts(epsilon, draws, drawn.mixture_variance(rest), rest, delta, roundings=2)
    return [] if good else ["eps is not the root of the tail"]


def _ends(subject: Subject) -> list[str]:
    found = []
    for rest in (0.0, 0.3, 1.0, 4.0):
        s = torch.full((3,), rest / 3, dtype=torch.float64)
        dropped = float(subject.mixture_epsilon(rest, 0, 0.1))
        if abs(dropped - min(1.0, rest)) > rounding.gamma(4) or abs(dropped - subject.drop_epsilon(s)) > rounding.gamma(
            8
        ):
            found.append(f"without draws the bound is {dropped:.6g}, not min(1, T_R = {rest:g})")
    for total, draws, delta in ((1.0, 3, 0.5), (1.7, 20, 0.1), (6.0, 200, 0.01), (300.0, 10_000, 1e-4)):
        if subject.mixture_epsilon(total, draws, delta) > drawn.root(draws, total, total, delta) * (1 + 1e-12):
            found.append(f"with k = 0 the bound is above C10's (T = {total:g})")
    return found


def _draw_rest(
    subject: Subject, block: Block, kept: int, draws: int, trials: int, rng: np.random.Generator
) -> tuple[Array, float]:
    """what / w of the rest after keeping the k largest s, and T_R, as the subject measures them; (trials, n - k)."""
    s, _ = block.measured(subject)
    rest = torch.argsort(s, descending=True, stable=True)[kept:].sort().values
    factors = hard_cases.draw_sets(subject, s[rest], block.weight[rest], draws, trials, rng)
    return factors, float(s[rest].double().sum())


def _simulate(
    subject: Subject, instance: Instance, effort: Effort, level: float, rng: np.random.Generator
) -> tuple[Decision, dict[str, Any]]:
    block = hard_cases.kept_and_windows(KEPT, instance.weights, instance.active, instance.rho, rng)
    half = drawn.root(instance.draws, float(drawn.mixture_variance(instance.total)), instance.total, instance.delta) / 2
    wrong = float(
        hard_cases.violation_probability(instance.draws, half, instance.weights, instance.active, instance.rho)
    )
    trials = trials_for(effort, instance.delta, wrong, level) if wrong > 1.2 * instance.delta else effort.trials
    factors, rest = _draw_rest(subject, block, KEPT, instance.draws, trials, rng)
    epsilon = float(subject.mixture_epsilon(rest, instance.draws, instance.delta)) * subject.shrink
    row = int(rng.integers(instance.weights))
    count = hard_cases.failures(factors, block.rows[row, KEPT:], epsilon)
    name = f"hardest family, T_R = {instance.total:g}, delta = {instance.delta:g}"
    case = drawn.case(
        name, rest, instance.draws, instance.delta, epsilon, max(instance.total - instance.rho, instance.rho)
    )
    return Decision(name, count, trials, instance.delta, level, two_sided=False), case


def _rest_law(
    subject: Subject, members: tuple[int, int, float], effort: Effort, rng: np.random.Generator
) -> tuple[float, list[str]]:
    """The rest's draws are multinomial with q = s / T_R, and their exact variance is C13's."""
    weights, active, rho = members
    block, draws = hard_cases.kept_and_windows(KEPT, weights, active, rho, rng), 3
    s, rows = block.s[KEPT:], block.rows[:weights, KEPT:]
    total, q = float(s.sum()), s / s.sum()
    factors, _ = _draw_rest(subject, block, KEPT, draws, effort.trials // 4, rng)
    counts, wrong = drawn.whole_counts(factors, q, draws)
    law = [drawn.outcome_probability(c, q) for c in drawn.outcomes(weights, draws)]
    p = statistics.multinomial_p_value(drawn.outcome_counts(counts, weights, draws), [*law, 0.0])
    found = [f"{wrong} draw sets of a rest without whole counts"] if wrong else []
    seen = dict(zip(map(tuple, counts.tolist()), factors, strict=True))
    every = list(drawn.outcomes(weights, draws))
    sums = np.stack([seen.get(c, np.asarray(c) / (draws * q)) for c in every]) @ rows.T
    mean, second = np.array(law) @ sums, np.array(law) @ sums**2
    slack = rounding.gamma(2 * (len(every) + 4 * weights + 40)) * (1 + float(second.max()))
    exact = (total * (rows**2 / s).sum(1) - rho**2) / draws
    if not drawn.close(mean, rho, slack) or not drawn.close(second - mean**2, exact, slack):
        found.append("mean or variance of the rest")
    v = float(drawn.mixture_variance(total)) / draws
    if not bool((exact <= v + slack).all()) or (rho in (total / 2, 1.0) and float(exact.max()) < v - slack):
        found.append("the variance of the rest is not v in the family that attains it")
    return p, found


def _method(
    subject: Subject, effort: Effort, level: float, seed: int, rng: np.random.Generator
) -> tuple[list[Decision], list[dict[str, Any]], list[str]]:
    """`sipp-mixture` as users run it."""
    layer, points = drawn.graded_layer(5, 120, 8, rng)
    seeds = max(effort.trials // 20, 50)
    runs = drawn.run_method(subject.fit, layer, points, KEEP, seeds, seed, method="sipp-mixture", delta=DELTA)
    violations = [] if runs.same_plan else ["sipp-mixture: the plan differs between seeds"]
    cases, errors = [], []
    for i, column, block, factors in runs.blocks():
        epsilon, draws = float(runs.epsilon[i, column]), int(runs.draws[i, column])
        kept = (factors == 1).all(0)
        violations += [f"sipp-mixture, {block.name}: {what}" for what in _plan(block, kept, factors, draws, epsilon)]
        error, claimed = np.abs(factors @ block.rows.T - 1), epsilon * subject.shrink
        if draws:
            rest = float(block.s[~kept].sum())
            cases.append(drawn.case(block.name, rest, draws, DELTA, claimed, max(rest, 1.0)))
            errors.append((block.name, claimed, error))
        elif not bool((error <= claimed + rounding.gamma(4 * len(kept) + 16)).all()):
            violations.append(f"sipp-mixture, {block.name}: dropped, error {error.max():.4g} above {claimed:.4g}")
    return drawn.confirm(errors, seeds // 3, DELTA, level, SUSPECTS), cases, violations


def _network(subject: Subject, effort: Effort, seed: int, rng: np.random.Generator) -> tuple[float, list[str]]:
    """`sipp-mixture` on a network of several layers, two of them alike: what it draws from each is multinomial."""
    model, points = drawn_networks.branches(rng, 120, 120, 12)
    fitted = subject.fit(model, points, method="sipp-mixture", delta=DELTA)
    seeds = [derived_seed(seed, f"network, set of draws {i}") for i in range(max(effort.trials // 40, 20))]
    own = drawn_networks.draw_network(lambda s: fitted.prune(KEEP, s), model, points, seeds, keeps_some=True)
    return own.p_value(), [f"sipp-mixture, a network: {what}" for what in drawn_networks.wrong(own)]


def _plan(block: Block, kept: Mask, factors: Array, draws: int, epsilon: float) -> Iterator[str]:
    """kept: weights that are as they were after every draw."""
    s, rest = block.s, block.s[~kept]
    total, k = float(rest.sum()), int(kept.sum())
    if k and len(rest) and s[kept].min() < rest.max() * (1 - rounding.gamma(2 * len(s) + 8)):
        yield "not the largest s are kept"
    if not draws:
        if bool((factors[:, ~kept] != 0).any()):
            yield "weights are changed without a draw"
        if abs(epsilon - min(1.0, total)) > rounding.gamma(2 * len(s) + 16):
            yield f"bound {epsilon:.6g} of a dropped rest, not {min(1.0, total):.6g}"
        if not _is_best(s, k, k):
            yield f"the rest is dropped, but less than {k} kept and draws made would have a smaller bound"
        return
    if drawn.whole_counts(factors[:, ~kept], rest / total, draws)[1]:
        yield "the counts of the rest are not whole or don't add up to the draws"
    v = float(drawn.mixture_variance(total))
    if not drawn.inverts(epsilon, draws, v, total, DELTA, roundings=4 * len(s) + 16):
        yield "bound is not C13's"
    if not any(_is_best(s, k, k + distinct) for distinct in drawn.asked(rest / total, draws)):
        yield f"another k than {k} has a smaller bound"


def _is_best(s: Array, k: int, share: int) -> bool:
    """Whether keeping k has the smallest bound of all for this share."""
    rest = np.append(np.cumsum(np.sort(s))[::-1], 0.0)[: share + 1]
    bounds = [min(1.0, t) if i == share else _bound(share - i, float(t)) for i, t in enumerate(rest)]
    return bounds[k] <= min(bounds) * (1 + 1e-9)


def _bound(draws: int, rest: float) -> float:
    return drawn.root(draws, float(drawn.mixture_variance(rest)), rest, DELTA) if rest else 0.0


CLAIM = Mixture()
