"""Claim C9: draws by sensitivity are unbiased, with a variance that is known exactly."""

from collections.abc import Iterator
from typing import ClassVar

import numpy as np
import torch
from scipy import stats

from sipp_bench.compression import rounding
from sipp_bench.machine.seeds import derived_seed
from theory_checks.cases import drawn_networks, hard_cases
from theory_checks.cases.hard_cases import Array, Block
from theory_checks.evidence import drawn, statistics
from theory_checks.evidence.decided import DecidedClaim, Decision, Outcome
from theory_checks.evidence.drawn import Counts
from theory_checks.evidence.finding import Effort, Kind
from theory_checks.subjects.subject import Subject

LARGE = 6
METHOD_BLOCKS = 4


class MeanVariance(DecidedClaim):
    """m >= 1 draws from an active block with q_j = s_j / T, what_j = n_j / (m q_j) w_j. For every x in S:

        E[Zhat] = Z,   Var(Zhat) / Z^2 = (T sum_j g_j^2 / s_j - 1) / m <= (T - 1) / m,
        Cov(Zhat^+, Zhat^-) = -Z^+ Z^- / m;   S of one active (x, p, tau): Zhat = Z on every draw.

    Proof: Zhat / Z is the mean of m i.i.d. g_j / q_j; E = sum g_j, E of the square = T sum g_j^2 / s_j <= T sum g_j,
    since g_j <= s_j. No weight adds to both signs' sums at once, so that E of their product is 0. One active row:
    s = g, T = 1, and every g_j / q_j is 1.

    Trials: draw sets. The counts n_j = what_j m q_j / w_j must be whole and add up to m on every draw; on small
    blocks the whole outcome has the multinomial law, tested over all outcomes, and mean, variance and covariance
    are sums over them; on large blocks the draws of all sets together are one multinomial sample, and one half's share
    of each set is binomial. The method itself is drawn as a whole, on a layer and on a network with several: each seed
    is one draw set, whose counts are read off the pruned weights of every block. q is the oracle's: other
    probabilities, unbiased or not, don't give whole counts.
    The bound (T - 1)/m is attained where g is 0 or s, so that no smaller factor is accepted.
    """

    number = "C9"
    title = "Mean and variance of the draws"
    statement = (
        "E[Zhat] = Z; Var(Zhat)/Z^2 = (T sum g^2/s - 1)/m <= (T - 1)/m; Cov(Zhat^+, Zhat^-) = -Z^+ Z^-/m; "
        "S of one active (x, p, tau): Zhat = Z on every draw."
    )
    kind = Kind.STATISTICAL
    rejects = (
        "no reweighting",
        "draws without replacement",
        "draws by magnitude",
        "draws uniformly",
        "dense if not smaller, after the draw",
        "one draw short",
        "one draw repeated",
        "later layers drawn too small",
        "larger of two draws",
        "layers drawn alike",
        "magnitudes for sensitivities",
        "mean over points",
        "first half of S only",
        "one sign zeroed",
        "first patch only",
        "sensitivities halved",
        "sensitivities of 1",
        "negative activations ignored",
        "padding ignored",
        "bound halved",
    )
    # Decisions: whole counts; outcomes of the small blocks; large blocks; a half's share; blocks of the whole method on
    # a layer; all of its blocks on a network.
    tests: ClassVar[int] = 1 + 3 + LARGE + 1 + METHOD_BLOCKS + 1

    def observe(self, subject: Subject, effort: Effort, level: float, seed: int) -> Outcome:
        rng = np.random.default_rng([seed, 9])
        sets = bad = 0
        violations: list[str] = []
        p_values: dict[str, float] = {}
        for block in _one_row_blocks(rng):
            violations += _one_row(subject, block, rng)
        for block, draws in _small_blocks(rng):
            s, total = block.measured(subject)
            q = block.s / block.total
            factors = hard_cases.draw_sets(subject, s, block.weight, draws, effort.trials // 2, rng)
            counts, wrong = drawn.whole_counts(factors, q, draws)
            sets, bad = sets + len(counts), bad + wrong
            law = [drawn.outcome_probability(c, q) for c in drawn.outcomes(len(q), draws)]
            found = drawn.outcome_counts(counts, len(q), draws)
            p_values[f"outcomes, {block.name}"] = statistics.multinomial_p_value(found, [*law, 0.0])
            violations += _moments(subject, block, dict(zip(map(tuple, counts.tolist()), factors, strict=True)), draws)
            violations += _variance_bound(subject, block, total, draws)
        for i, (block, draws) in enumerate(_large_blocks(rng)):
            s, total = block.measured(subject)
            factors = hard_cases.draw_sets(subject, s, block.weight, draws, max(effort.trials // 50, 20), rng)
            counts, wrong = drawn.whole_counts(factors, block.s / block.total, draws, block.weight.dtype)
            sets, bad = sets + len(counts), bad + wrong
            p_values[f"draws, large block {i}, {block.name}"] = _pooled(counts, wrong, block)
            violations += _variance_bound(subject, block, total, draws)
        p_values["a half's share of each set"] = _half_shares(subject, effort, rng)
        method_sets, method_bad, method_p, method_violations = _method(subject, effort, seed, rng)
        p_values |= method_p
        p_values["sipp-rand, a network"], network_violations = _network(subject, effort, seed, rng)
        violations += network_violations
        main = Decision("draw sets without whole counts", bad + method_bad, sets + method_sets, 0.0, level, False)
        detail = "Mean, variance and covariance agree with the closed forms in every enumerated case."
        return Outcome([main], p_values, violations + method_violations, detail)


def _one_row_blocks(rng: np.random.Generator) -> Iterator[Block]:
    for n in (2, 7, 40):
        w = rng.lognormal(0, 1, n)
        yield hard_cases.linear(w, rng.lognormal(0, 1, (1, n)), f"one point, {n} weights")
        yield hard_cases.linear(-w, -rng.lognormal(0, 1, (1, n)), f"one point, {n} negative weights", -1)


def _one_row(subject: Subject, block: Block, rng: np.random.Generator) -> list[str]:
    s, total = block.measured(subject)
    n, g = len(s), block.rows[0]
    # s and T have n + 4 roundings each, the reweighting 6, the sum over what is left n + 1.
    slack = rounding.gamma(3 * n + 16)
    found = []
    if abs(total - 1) > rounding.gamma(2 * n + 4):
        found.append(f"T = {total:.6g} for {block.name}")
    for draws in (1, 2, 5, 30):
        factors = hard_cases.draw_sets(subject, s, block.weight, draws, 5, rng)
        if not bool((np.abs(factors @ g - 1) <= slack).all()):
            found.append(f"Zhat differs from Z for {block.name}, {draws} draws")
    return found


def _small_blocks(rng: np.random.Generator) -> Iterator[tuple[Block, int]]:
    """Three, the first with the largest variance that there can be."""
    yield hard_cases.windows(3, 1, rng), 4
    yield hard_cases.windows(3, 2, rng), 3
    signed = rng.lognormal(0, 1, (3, 4)) * rng.permuted(np.tile([1.0, 1.0, -1.0, -1.0], (3, 1)), axis=1)
    yield hard_cases.linear(rng.lognormal(0, 1, 4), signed, "signed inputs"), 3


def _large_blocks(rng: np.random.Generator) -> Iterator[tuple[Block, int]]:
    for i in range(LARGE):
        if i < 2:
            yield hard_cases.convolution(rng), int(rng.integers(3, 40))
        else:
            dtype = torch.float32 if i == 2 else torch.float64
            yield hard_cases.generic(rng, dtype), int(rng.integers(3, 100))


def _moments(subject: Subject, block: Block, seen: dict[tuple[int, ...], Array], draws: int) -> list[str]:
    q = block.s / block.total
    moments = drawn.exact_moments(block, seen, q, draws)
    expected = (block.total * (block.pairs**2 / block.s[:, None]).sum(1) - 1) / draws
    laws = {
        "mean": drawn.close(moments.mean, 1.0, moments.slack),
        "variance": drawn.close(moments.variance, expected, moments.slack),
        "covariance": drawn.close(moments.covariance, -1 / draws, moments.slack),
    }
    return [f"{law} of {block.name}" for law, holds in laws.items() if not holds]


def _variance_bound(subject: Subject, block: Block, total: float, draws: int) -> list[str]:
    """The exact variance against (T - 1)/m, with T as the subject measures it."""
    allowed = subject.shrink * (total - 1) / draws
    slack = rounding.gamma(4 * (len(block.s) + 8), block.weight.dtype) * (1 + block.total) / draws
    worst = float(block.variance(draws).max())
    return [] if worst <= allowed + slack else [f"variance {worst:.4g} above {allowed:.4g} for {block.name}"]


def _pooled(counts: Counts, wrong: int, block: Block) -> float:
    """The p-value of all draws of independent sets together: multinomial with q = s / T. wrong: sets without counts."""
    found = np.append(counts.clip(min=0).sum(0), wrong)
    return statistics.multinomial_p_value(found, np.append(block.s / block.total, 0.0))


def _half_shares(subject: Subject, effort: Effort, rng: np.random.Generator) -> float:
    """Draws from the first half of a block's weights: Binomial(m, its mass) in each draw set."""
    block, draws = hard_cases.windows(40, 3, rng), 25
    s, _ = block.measured(subject)
    q = block.s / block.total
    factors = hard_cases.draw_sets(subject, s, block.weight, draws, effort.trials // 4, rng)
    counts, _ = drawn.whole_counts(factors, q, draws)
    half = counts[:, :20].sum(1).clip(0, draws + 1)
    law = np.append(stats.binom.pmf(np.arange(draws + 1), draws, q[:20].sum()), 0.0)
    return statistics.multinomial_p_value(np.bincount(half, minlength=draws + 2), law)


def _method(
    subject: Subject, effort: Effort, seed: int, rng: np.random.Generator
) -> tuple[int, int, dict[str, float], list[str]]:
    """`sipp-rand` as users run it: draw sets, how many without whole counts, p-values of the draws, violations."""
    layer, points = drawn.graded_layer(4, 30, 8, rng)
    runs = drawn.run_method(subject.fit, layer, points, 0.3, max(effort.trials // 40, 20), seed, method="sipp-rand")
    sets = bad = 0
    p_values: dict[str, float] = {}
    violations = [] if runs.same_plan else ["sipp-rand: draws or bounds differ between seeds"]
    for i, column, block, factors in runs.blocks():
        draws = int(runs.draws[i, column])
        if not draws:
            if not bool(((factors == 0) | (factors == 1)).all()):
                violations.append(f"sipp-rand: weights of {block.name} changed without a draw")
            continue
        counts, wrong = drawn.whole_counts(factors, block.s / block.total, draws)
        sets, bad = sets + len(counts), bad + wrong
        if len(p_values) < METHOD_BLOCKS:
            p_values[f"sipp-rand, {block.name}"] = _pooled(counts, wrong, block)
    if len(p_values) < METHOD_BLOCKS:
        violations.append(f"sipp-rand drew from {len(p_values)} blocks only")
        p_values |= {f"sipp-rand, not drawn {i}": 1.0 for i in range(METHOD_BLOCKS - len(p_values))}
    return sets, bad, p_values, violations


def _network(subject: Subject, effort: Effort, seed: int, rng: np.random.Generator) -> tuple[float, list[str]]:
    """`sipp-rand` on a network of several layers, two of them alike."""
    model, points = drawn_networks.branches(rng)
    fitted = subject.fit(model, points, method="sipp-rand")
    seeds = [derived_seed(seed, f"network, set of draws {i}") for i in range(max(effort.trials // 40, 20))]
    own = drawn_networks.draw_network(lambda s: fitted.prune(0.3, s), model, points, seeds, keeps_some=False)
    return own.p_value(), [f"sipp-rand, a network: {what}" for what in drawn_networks.wrong(own)]


CLAIM = MeanVariance()
