"""The hardest families known for the sampling claims, their exact failure probabilities, and a search for worse ones.

Family: contributions g in {0, s}. Weight j contributes s_j or nothing, and at each point the active ones of the rest
add up to rho (1 where all of the block is drawn). m draws then give Zhat_R / Z = (T_R / m) Bin(m, rho / T_R): C9's
variance is attained, C13's where rho = T_R / 2, and the failure probability is a binomial sum.
"""

import functools
import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy import stats
from torch import Tensor, nn

from theory_checks.cases import oracle
from theory_checks.cases.oracle import Layer
from theory_checks.subjects.subject import Subject

Array = npt.NDArray[np.float64]

# eps(m) of a block with total T, for an array of numbers of draws.
Bound = Callable[[float, npt.NDArray[np.int64], float], Any]

# (weights in the rest, active ones at each point, rho): T_R = rho * weights / active. C10's, with rho = 1.
WHOLE = ((3, 2, 1.0), (2, 1, 1.0), (5, 2, 1.0), (3, 1, 1.0), (10, 1, 1.0), (50, 1, 1.0), (200, 1, 1.0), (500, 1, 1.0))
# C13's, with T_R from 0.2 to 20.
PARTS = ((2, 1, 0.1), (2, 1, 0.25), (4, 2, 0.5), (2, 1, 0.5), (4, 1, 0.25), (2, 1, 1.0), (10, 2, 0.5), (40, 1, 0.5))

# What rounding may add to a relative error before it counts as a violation: far below any eps, far above gamma_1000.
ROUNDING = 1e-12


@dataclass(frozen=True)
class Block:
    """One block, as a layer with one neuron and points in float64. sign: +1 or -1, of the block's weights."""

    name: str
    layer: Layer
    points: Tensor
    sign: int = 1

    @functools.cached_property
    def mask(self) -> Tensor:
        """Which of the neuron's weights are the block's: (all weights,)."""
        return self.layer.weight.detach().flatten().sign() == self.sign

    @functools.cached_property
    def weight(self) -> Tensor:
        """w of the block: (n,)."""
        return self.layer.weight.detach().flatten()[self.mask]

    @functools.cached_property
    def pairs(self) -> Array:
        """g of every patch of every point, for both activation signs, by independent arithmetic: (patches, n, 2)."""
        if isinstance(self.layer, nn.Linear):
            a = self.points.double().numpy()[:, self.mask.numpy()]
            share = np.stack([np.maximum(a, 0), np.maximum(-a, 0)], -1) * self.weight.double().abs().numpy()[:, None]
            total = share.sum(1, keepdims=True)
            result: Array = np.divide(share, total, out=np.zeros_like(share), where=total > 0)
            return result
        g: Array = oracle.contributions(self.layer, self.points)[:, :, 0, self.mask].flatten(0, 1).numpy()
        return g

    @functools.cached_property
    def rows(self) -> Array:
        """g of every active (x, p, tau): (rows, n)."""
        rows = self.pairs.transpose(0, 2, 1).reshape(-1, len(self.weight))
        active: Array = rows[rows.sum(1) > 0]
        return active

    @functools.cached_property
    def s(self) -> Array:
        """Sensitivities, by independent arithmetic: (n,)."""
        largest: Array = self.rows.max(0)
        return largest

    @functools.cached_property
    def total(self) -> float:
        """T."""
        return float(self.s.sum())

    def variance(self, draws: int) -> Array:
        """Claim C9: Var(Zhat)/Z^2 at every active (x, p, tau), (T sum g^2/s - 1)/m."""
        live = self.s > 0
        exact: Array = (self.total * (self.rows[:, live] ** 2 / self.s[live]).sum(1) - 1) / draws
        return exact

    def measured(self, subject: Subject) -> tuple[Tensor, float]:
        """s of the block (n,) and its T, as the subject measures them."""
        entry = subject.sensitivity(self.layer, self.points)["weight"]
        return entry.values.flatten()[self.mask], float(entry.totals[0, 0 if self.sign > 0 else 1])


@dataclass(frozen=True)
class Instance:
    """A member of the family with its draws, its bound and its exact failure probability at a single point."""

    weights: int
    active: int
    rho: float
    draws: int
    delta: float
    epsilon: float
    probability: float

    @property
    def total(self) -> float:
        """T_R."""
        return self.rho * self.weights / self.active

    @property
    def ratio(self) -> float:
        """Failure probability by delta."""
        return self.probability / self.delta

    @property
    def false(self) -> bool:
        """Whether the bound fails more often than it says, without any statistics: binomial sums have no chance."""
        return self.probability > self.delta * (1 + 1e-9)


def linear(weight: Array, points: Array, name: str, sign: int = 1, dtype: torch.dtype = torch.float64) -> Block:
    """A block of a Linear layer with one neuron: weight (n,), points (N, n)."""
    layer = nn.Linear(len(weight), 1, bias=False, dtype=dtype)
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(weight)[None])
    return Block(name, layer, torch.from_numpy(points).to(dtype), sign)


def windows(weights: int, active: int, rng: np.random.Generator, dtype: torch.dtype = torch.float64) -> Block:
    """The family with rho = 1: point i has the inputs i, ..., i + active - 1 (cyclic), each with g = s = 1 / active.

    Magnitudes of the weights differ, so that draws by magnitude are not draws by sensitivity.
    """
    w = rng.lognormal(0, 1, weights)
    seen = (np.arange(weights)[:, None] + np.arange(active)) % weights
    points = np.zeros((weights, weights))
    np.put_along_axis(points, seen, 1 / w[seen], 1)
    return linear(w, points, f"{active} of {weights} weights active", dtype=dtype)


def kept_and_windows(kept: int, weights: int, active: int, rho: float, rng: np.random.Generator) -> Block:
    """The family for C13: the first `kept` weights make up 1 - rho of every window of the others.

    One more point shows each kept weight alone, so that their s is 1 and they are the k largest.
    """
    w = rng.lognormal(0, 1, kept + weights)
    g = np.zeros((weights + kept, kept + weights))
    seen = (np.arange(weights)[:, None] + np.arange(active)) % weights
    np.put_along_axis(g[:weights, kept:], seen, rho / active, 1)
    if kept:
        g[:weights, :kept] = (1 - rho) / kept
        g[weights:, :kept] = np.eye(kept)
    return linear(w, g / w, f"{kept} kept, {active} of {weights} others active with {rho:g} of Z")


def violation_probability(draws: Any, epsilon: Any, weights: int, active: int, rho: float = 1.0) -> Any:
    """Exact Pr(|Zhat - Z| > eps Z) in the family, |n / (m q) - 1| > eps / rho for n ~ Bin(m, q), q = active / weights.

    Errors above eps by less than ROUNDING do not count. draws, epsilon: numbers or arrays.
    """
    m, q = np.asarray(draws), active / weights
    limit = (np.asarray(epsilon, dtype=np.float64) + ROUNDING) / rho
    below = np.ceil(m * q * (1 - limit)) - 1  # the largest count that is too small
    above = np.floor(m * q * (1 + limit))  # the largest count that is not too large
    return stats.binom.cdf(below, m, q) + stats.binom.sf(above, m, q)


def hardest(
    bound: Bound, delta: float, members: Sequence[tuple[int, int, float]] = WHOLE, largest: float = 1e4
) -> Instance:
    """The member and the number of draws with the largest exact failure probability, among those with eps(m) < 1 if
    there are any.

    bound: (T_R, draws, delta) -> eps(m), of which the violation is looked for; the failure probability jumps with m,
    since counts are whole numbers, so that many m are tried, from C10's m* (8/3) T L to `largest` times as many.
    """
    best: Instance | None = None
    for weights, active, rho in members:
        total = rho * weights / active
        least = 8 / 3 * total * np.log(2 / delta)
        draws = np.unique(np.geomspace(max(least * 0.3, 1), least * largest, 2000).astype(np.int64))
        epsilon = np.asarray(bound(total, draws, delta), dtype=np.float64)
        if np.isnan(epsilon).any():
            raise ArithmeticError(f"the bound is NaN for T = {total}, delta = {delta}")
        p = violation_probability(draws, epsilon, weights, active, rho)
        i = int(np.lexsort((p, epsilon < 1))[-1])
        candidate = Instance(weights, active, rho, int(draws[i]), delta, float(epsilon[i]), float(p[i]))
        if best is None or (candidate.epsilon < 1, candidate.probability) > (best.epsilon < 1, best.probability):
            best = candidate
    assert best is not None
    return best


def random_blocks(count: int, rng: np.random.Generator) -> list[Block]:
    """Blocks of all sorts: few and many weights and points, heavy tails, zeros, both activation signs, convolutions."""
    return [(convolution if i % 4 == 3 else generic)(rng) for i in range(count)]


def generic(rng: np.random.Generator, dtype: torch.dtype = torch.float64) -> Block:
    """A block of a Linear layer, half of whose weights belong to the other sign."""
    n, points = int(rng.integers(4, 60)), int(rng.integers(1, 12))
    a = rng.lognormal(0, rng.choice([0.3, 1, 2]), (points, n)) * (rng.random((points, n)) < rng.choice([0.2, 0.6, 1]))
    a[0] += 0.1
    if rng.random() < 0.5:
        a *= rng.choice([-1, 1], a.shape)
    w = rng.lognormal(0, rng.choice([0.3, 1, 2]), n) * rng.permutation(np.resize([1, -1], n))
    return linear(w, a, f"{n} weights, {points} points", int(rng.choice([1, -1])), dtype)


def convolution(rng: np.random.Generator) -> Block:
    """A block of a convolution with stride and padding, on signed images."""
    layer = nn.Conv2d(2, 1, 3, stride=2, padding=1, bias=False, dtype=torch.float64)
    w = rng.lognormal(0, 1, (1, 2, 3, 3)) * rng.permutation(np.resize([1, -1], 18)).reshape(1, 2, 3, 3)
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(w))
    points = rng.normal(size=(int(rng.integers(1, 5)), 2, 6, 6)) * (rng.random((2, 6, 6)) < 0.7)
    return Block("a convolution, stride 2, padding 1", layer, torch.from_numpy(points), int(rng.choice([1, -1])))


@dataclass(frozen=True)
class Suspect:
    """A row (x, p, tau) of a block at which the error comes closest to the bound in a pilot run."""

    block: Block
    draws: int
    row: int
    score: float


def search(
    blocks: Iterable[Block], bound: Bound, delta: float, keep: int, rng: np.random.Generator, pilot: int = 400
) -> list[Suspect]:
    """The `keep` hardest blocks, with their hardest rows, by pilot draws that have nothing to do with the subject's.

    Score: the (1 - delta) quantile of |Zhat - Z| / (eps Z), the largest over rows: above 1 the bound would fail more
    often than delta. What is found is to be confirmed with fresh seeds.
    """
    found = []
    for block, factor in itertools.product(blocks, (1.1, 4.0)):
        draws = int(np.ceil(factor * 8 / 3 * block.total * np.log(2 / delta)))
        q = block.s / block.total
        counts = rng.multinomial(draws, q / max(q.sum(), 1), size=pilot)
        factors = np.divide(counts, draws * q, out=np.zeros(counts.shape), where=q > 0)
        error = np.abs(factors @ block.rows.T - 1)
        score = np.quantile(error, 1 - delta, axis=0, method="higher") / float(
            bound(block.total, np.array([draws]), delta)[0]
        )
        found.append(Suspect(block, draws, int(score.argmax()), float(score.max())))
    return sorted(found, key=lambda suspect: suspect.score, reverse=True)[:keep]


def draw_sets(subject: Subject, s: Tensor, weight: Tensor, draws: int, trials: int, rng: np.random.Generator) -> Array:
    """what / w of independent draw sets by the subject: (trials, n) float64."""
    w = weight.double().numpy()
    drawn = [subject.draw(s, weight, draws, rng).double().numpy() / w for _ in range(trials)]
    return np.stack(drawn)


def failures(factors: Array, g: Array, epsilon: float) -> int:
    """Draw sets (trials, n) with |Zhat - Z| > eps Z at one point with contributions g (n,); NaN fails."""
    error = np.abs(factors @ g - g.sum())
    return int((~(error <= epsilon + ROUNDING * (1 + epsilon))).sum())
