"""What the claims about draws (C9-C13) share: counts behind reweighted weights, exact moments, whole methods."""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from sipp_bench.compression import rounding
from sipp_bench.machine.seeds import derived_seed
from theory_checks.cases import hard_cases
from theory_checks.cases.hard_cases import Block, Bound, Instance
from theory_checks.evidence.decided import DecidedClaim, Decision, Outcome
from theory_checks.evidence.finding import Effort, Finding, Verdict

Array = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]


class DrawnClaim(DecidedClaim):
    """A claim whose cases have verdicts of their own: bounds that say nothing, or cannot fail, are no passes.

    `Outcome.data["cases"]` has a row for each, with its verdict.
    """

    def _finding(self, outcome: Outcome, effort: Effort) -> Finding:
        finding = super()._finding(outcome, effort)
        if finding.verdict is Verdict.FALSIFIED or "cases" not in outcome.data:
            return finding
        verdicts = {Verdict(case["verdict"]) for case in outcome.data["cases"]}
        telling = (Verdict.NOT_FALSIFIED, Verdict.USELESS, Verdict.CANNOT_FAIL)
        return replace(finding, verdict=next(v for v in telling if v in verdicts))


def case(name: str, total: float, draws: int, delta: float, epsilon: float, reach: float) -> dict[str, Any]:
    """A row for the report. reach: the largest relative error that any draws can give."""
    telling = Verdict.NOT_FALSIFIED if epsilon < 1 else Verdict.USELESS
    verdict = telling if epsilon < reach else Verdict.CANNOT_FAIL
    row = {"case": name, "total": total, "draws": int(draws), "delta": delta, "epsilon": float(epsilon)}
    return {**row, "verdict": verdict.value}


def log_tail(epsilon: Any, draws: Any, variance: Any, reach: Any) -> Array:
    """ln of 2 exp(-m eps^2 / (2 (v + reach eps / 3))): what C10 (v = reach = T) and C13 say that eps fails with."""
    eps, m, v, b = (np.asarray(x, dtype=np.float64) for x in (epsilon, draws, variance, reach))
    result: Array = math.log(2) - m * eps**2 / (2 * (v + b * eps / 3))
    return result


def inverts(epsilon: Any, draws: Any, variance: Any, reach: Any, delta: Any, roundings: int = 0) -> bool:
    """Whether eps is the root of "tail = delta" up to rounding, wherever delta is split or not.

    eps takes at most 16 roundings, and `roundings` of T; the exponent, which is L = ln(2/delta) there, moves by at
    most twice as much relatively, and its own evaluation by 10 more.
    """
    log_delta = np.log(np.asarray(delta, dtype=np.float64))
    allowed = rounding.gamma(64 + 4 * roundings) * (math.log(2) - log_delta + 1)
    difference = np.abs(log_tail(epsilon, draws, variance, reach) - log_delta)
    return bool((difference <= allowed).all())


def root(draws: int, variance: float, reach: float, delta: float) -> float:
    """The eps at which the tail is delta, by bisection."""
    low, high = 0.0, 1.0
    while log_tail(high, draws, variance, reach) > math.log(delta):
        low, high = high, 2 * high
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if log_tail(middle, draws, variance, reach) > math.log(delta) else (low, middle)
    return high


def exact_failures(
    bound: Bound, deltas: Sequence[float], members: Sequence[tuple[int, int, float]]
) -> tuple[list[Instance], list[str]]:
    """The largest exact failure probability in the hardest family at each delta, and a sentence where it is above."""
    exact = [hard_cases.hardest(bound, delta, members) for delta in deltas]
    false = [
        f"exact failure probability {i.probability:.3g} above delta = {i.delta:g} (T = {i.total:g}, m = {i.draws})"
        for i in exact
        if i.false
    ]
    return exact, false


def describe(instance: Instance) -> dict[str, float]:
    """An exact failure probability, for the report. false: whether the bound that was given is false there."""
    return {
        "delta": instance.delta,
        "total": instance.total,
        "draws": instance.draws,
        "epsilon": instance.epsilon,
        "probability": instance.probability,
        "ratio": instance.ratio,
        "false": instance.false,
    }


def mixture_variance(rest_total: Any) -> Array:
    """Claim C13's v."""
    t = np.asarray(rest_total, dtype=np.float64)
    return np.where(t <= 2, t * t / 4, t - 1)


def whole_counts(factors: Array, q: Array, draws: int, dtype: torch.dtype = torch.float64) -> tuple[Counts, int]:
    """n_j = what_j m q_j / w_j of draw sets (trials, n), and how many sets are no counts: not whole, or sum not m.

    q_j is within 2 (n + 4) roundings of the subject's own, and what_j takes 6 more, so that n_j is whole to within
    n_j gamma of that many.
    """
    raw = factors * (draws * q)
    counts = np.rint(np.nan_to_num(raw, nan=-1, posinf=-1, neginf=-1)).astype(np.int64)
    whole = np.abs(raw - counts) <= counts * rounding.gamma(2 * (len(q) + 4) + 6, dtype)
    good = whole.all(1) & (counts.sum(1) == draws) & (counts >= 0).all(1)
    return counts, int((~good).sum())


def outcomes(weights: int, draws: int) -> Iterator[tuple[int, ...]]:
    """All count vectors of `draws` draws."""
    return (c for c in itertools.product(range(draws + 1), repeat=weights) if sum(c) == draws)


def outcome_probability(counts: tuple[int, ...], q: Array) -> float:
    """Of the multinomial law."""
    ways = math.factorial(sum(counts)) // math.prod(math.factorial(n) for n in counts)
    return ways * math.prod(float(p) ** n for p, n in zip(q, counts, strict=True))


def outcome_counts(counts: Counts, weights: int, draws: int) -> Counts:
    """How often each outcome occurred, in the order of `outcomes`, and last anything else."""
    places = {outcome: i for i, outcome in enumerate(outcomes(weights, draws))}
    return np.bincount([places.get(tuple(row), len(places)) for row in counts.tolist()], minlength=len(places) + 1)


@dataclass(frozen=True)
class Moments:
    """Exact moments of Zhat / Z over all outcomes, by enumeration: (patches, 2) by activation sign, and between them.

    NaN where a block is not active. slack: room for rounding, in units of the second moment.
    """

    mean: Array
    variance: Array
    covariance: Array
    slack: float


def exact_moments(block: Block, seen: dict[tuple[int, ...], Array], q: Array, draws: int) -> Moments:
    """By enumerating the multinomial. seen: what / w by outcome, as the subject gave it; the others by the definition.

    Sums of non-negative numbers, one for each outcome and weight, of factors with 2 (n + 4) + 6 roundings each.
    """
    n = len(q)
    every = list(outcomes(n, draws))
    p = np.array([outcome_probability(c, q) for c in every])
    factors = np.stack([seen.get(c, np.divide(c, draws * q, out=np.zeros(n), where=q > 0)) for c in every])
    ratios = np.einsum("on,rnt->ort", factors, block.pairs)
    mean = np.einsum("o,ort->rt", p, ratios)
    second = np.einsum("o,ort->rt", p, ratios**2)
    cross = np.einsum("o,or->r", p, ratios.prod(2))
    active = block.pairs.sum(1) > 0
    slack = rounding.gamma(2 * (len(every) + 4 * n + 40)) * (1 + float(second.max()))
    return Moments(
        np.where(active, mean, np.nan),
        np.where(active, second - mean**2, np.nan),
        np.where(active.all(1), cross - mean.prod(1), np.nan),
        slack,
    )


def close(found: Array, expected: Any, slack: float) -> bool:
    """Equal up to rounding wherever there is something to compare."""
    difference = np.abs(found - expected)
    return bool((difference[~np.isnan(found)] <= slack).all())


@dataclass(frozen=True)
class Runs:
    """A whole method's results for one layer and many seeds. weights: (seeds, neurons, n); the rest: (neurons, 2)."""

    layer: nn.Linear
    points: Tensor
    weights: Array
    epsilon: Array
    draws: Counts
    same_plan: bool

    def blocks(self) -> Iterator[tuple[int, int, Block, Array]]:
        """Neuron, column (0 for positive weights), the block, and what / w of its weights (seeds, n)."""
        rows, points = self.layer.weight.detach().numpy(), self.points.numpy()
        for i, (column, sign) in itertools.product(range(len(rows)), ((0, 1), (1, -1))):
            block = hard_cases.linear(rows[i], points, f"neuron {i}, {'+-'[column]}", sign)
            yield i, column, block, (self.weights[:, i] / rows[i])[:, block.mask.numpy()]


def run_method(fit: Any, layer: nn.Linear, points: Tensor, keep: float, seeds: int, seed: int, **options: Any) -> Runs:
    """Fit once, prune with many seeds, which follow from `seed`; each is one independent draw set."""
    fitted = fit(layer, points, **options)
    weights, epsilon, draws = [], [], []
    for number in range(seeds):
        pruned = fitted.prune(keep, derived_seed(seed, f"set of draws {number}"))
        weights.append(dict(pruned.model.named_parameters())["weight"].detach().double().numpy())
        epsilon.append(pruned.guarantee.epsilon["weight"].numpy())
        draws.append(pruned.guarantee.draws["weight"].numpy())
    same = all(np.array_equal(d, draws[0]) for d in draws) and all(np.array_equal(e, epsilon[0]) for e in epsilon)
    return Runs(layer, points, np.stack(weights), epsilon[0], draws[0], same)


def expected_distinct(q: Array, draws: int) -> float:
    """Claim C6, by its sum."""
    return float((1 - (1 - q) ** draws).sum())


def asked(q: Array, draws: int) -> set[int]:
    """The whole numbers of distinct weights that these draws can have been made for.

    Draws are solved for and then rounded down or up by one, which moves what is expected by less than one weight; the
    equation itself is solved to 1e-9 relative.
    """
    distinct = expected_distinct(q, draws)
    slack = 1e-8 * max(distinct, 1)
    return {max(math.floor(distinct - slack), 1), math.ceil(distinct + slack)}


def confirm(
    errors: Sequence[tuple[str, float, Array]], pilot: int, delta: float, level: float, keep: int
) -> list[Decision]:
    """Exact tests of "fails with at most delta" at the `keep` rows that come closest to their bounds in a pilot run.

    errors: of each drawn block its name, bound and errors (seeds, rows); the first `pilot` seeds choose, the others
    are counted. Fewer than `keep` rows are made up with tests of nothing, so that the level is split as announced.
    """
    rows = []
    for name, bound, error in errors:
        scores = np.quantile(error[:pilot], 1 - delta, axis=0, method="higher") / bound
        counted = error[pilot:]
        failed = (~(counted <= bound + hard_cases.ROUNDING * (1 + bound))).sum(0)
        rows += [(float(s), name, int(f), len(counted)) for s, f in zip(scores, failed, strict=True)]
    rows.sort(key=lambda row: row[0], reverse=True)
    rows += [(0.0, "nothing drawn", 0, 1)] * (keep - len(rows))
    return [Decision(name, failed, trials, delta, level, two_sided=False) for _, name, failed, trials in rows[:keep]]


def graded_layer(neurons: int, inputs: int, points: int, rng: np.random.Generator) -> tuple[nn.Linear, Tensor]:
    """A layer whose neurons go from even weights, where drawing pays, to heavy tails, where dropping does."""
    layer = nn.Linear(inputs, neurons, bias=False, dtype=torch.float64)
    scale = np.linspace(0, 2, neurons)[:, None]
    w = np.exp(scale * rng.normal(size=(neurons, inputs))) * rng.choice([-1, 1], (neurons, inputs))
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(w))
    return layer, torch.from_numpy(rng.uniform(0.7, 1.3, (points, inputs)))
