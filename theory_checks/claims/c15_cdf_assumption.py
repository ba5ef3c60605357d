"""Claim C15: one factor K for all fresh points, under the CDF assumption."""

import itertools
import math
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import torch
from torch import Tensor, nn

from sipp_bench.compression import rounding
from theory_checks.evidence.decided import DecidedClaim, Decision, Outcome, trials_for
from theory_checks.evidence.finding import Effort, Kind, Verdict
from theory_checks.subjects.subject import Subject

DELTA_S = DELTA = 0.1
DRAWS = 200
# Smallest violation to detect: S fails half as often again.
WRONG = 0.15


@dataclass(frozen=True)
class UniformBlock:
    """One neuron with weights w > 0 and independent inputs uniform on [low, 1], with everything about g in closed form.

    All numbers are fractions that float64 holds exactly. supremum: M_j = w_j / (w_j + low sum of the other w).
    """

    weights: tuple[int, ...]
    low: Fraction
    K: Fraction

    def supremum(self, j: int) -> Fraction:
        w = self.weights
        return Fraction(w[j]) / (w[j] + self.low * (sum(w) - w[j]))

    def cdf(self, j: int, t: Fraction) -> Fraction:
        """F_j(t) = Pr(g_j <= t), exactly.

        g_j <= t means (1 - t) w_j a_j - t sum of the other w_k a_k <= 0: with a = low + (1 - low) u, and 1 - u for u
        where the coefficient is negative, a sum of c_k u_k with c > 0 that is at most b. Its probability is
        sum over subsets V of (-1)^|V| (b - sum_V c)_+^n / (n! prod c).
        """
        if t >= self.supremum(j):
            return Fraction(1)
        slopes = [(1 - t) * w if k == j else -t * w for k, w in enumerate(self.weights)]
        scaled = [slope * (1 - self.low) for slope in slopes]
        b = -self.low * sum(slopes) - sum(c for c in scaled if c < 0)
        c, n = [abs(slope) for slope in scaled], len(scaled)
        volume = sum(
            (-1) ** size * max(b - sum(subset), Fraction(0)) ** n
            for size in range(n + 1)
            for subset in itertools.combinations(c, size)
        )
        return Fraction(volume) / (math.factorial(n) * math.prod(c))

    @property
    def worst_cdf(self) -> float:
        """The largest F_j(M_j / K) over the weights: the assumption is that this is at most exp(-1/K')."""
        return float(max(self.cdf(j, self.supremum(j) / self.K) for j in range(len(self.weights))))

    @property
    def points(self) -> int:
        """n >= K' ln(N / delta_S), for the smallest K' that the assumption allows."""
        return math.ceil(-math.log(len(self.weights) / DELTA_S) / math.log(self.worst_cdf))

    def layer(self, trials: int) -> nn.Conv1d:
        """The same neuron `trials` times, each with inputs of its own: see `families` on why these are independent."""
        n = len(self.weights)
        layer = nn.Conv1d(trials, trials, n, groups=trials, bias=False, dtype=torch.float64)
        with torch.no_grad():
            layer.weight.copy_(torch.tensor(self.weights, dtype=torch.float64).expand(trials, 1, n))
        return layer

    def draw(self, count: int, trials: int, rng: np.random.Generator) -> Tensor:
        """`count` i.i.d. points for every trial: (count, trials, N)."""
        low = float(self.low)
        return torch.from_numpy(low + (1 - low) * rng.random((count, trials, len(self.weights))))

    def contributions(self, a: Tensor) -> Tensor:
        """g of every weight at inputs (..., N)."""
        products = a * torch.tensor(self.weights, dtype=torch.float64)
        return products / products.sum(-1, keepdim=True)

    def corners(self) -> Tensor:
        """Points with a_P = 1 and the lowest value elsewhere, for every P but the empty one: (2^N - 1, N)."""
        sets = torch.tensor(list(itertools.product([False, True], repeat=len(self.weights)))[1:])
        return torch.where(sets, 1.0, float(self.low)).double()


BLOCKS = (
    UniformBlock((1, 1, 1), Fraction(0), Fraction(2)),
    UniformBlock((1, 2, 4), Fraction(1, 4), Fraction(3, 2)),
    UniformBlock((3, 1), Fraction(1, 2), Fraction(9, 8)),
)


class CdfAssumption(DecidedClaim):
    """M_j > 0 the essential supremum of g_j, F_j its CDF. If F_j(M_j / K) <= exp(-1/K') for all N weights and
    n >= K' ln(N / delta_S): with probability >= 1 - delta_S over S, g_j(x) <= K s_j almost surely for all N weights.

    Proof: Pr(s_j < M_j / K) <= F_j(M_j / K)^n <= exp(-n/K') <= delta_S / N; else g_j(x) <= M_j <= K s_j. Claim C2's
    proof then gives r <= K sum_P s; claim C10's needs g_j T / s_j <= K T (range) and T sum g^2/s - 1 <= K T - 1
    (variance), claim C13's the same of T_R with T_R sum_R g^2/s - rho^2 <= K T_R min(K T_R, 1).

    Trials: one neuron with its own S, n the least that the claim allows. A trial fails if M_j > K s_j for any j: a
    rate of at most delta_S, of which the union bound gives away little here. At fresh points and at the corners of the
    support, where the suprema of all sums of g are attained, the consequences hold on every S that did not fail: they
    are compared one by one. Drawn blocks on fresh points fail with at most delta_S + delta.
    """

    number = "C15"
    title = "Fresh points, CDF assumption"
    statement = (
        "If F_j(M_j/K) <= exp(-1/K') and n >= K' ln(N/delta_S): with probability >= 1 - delta_S over S, "
        "g_j(x) <= K s_j almost surely for all N weights."
    )
    kind = Kind.CONDITIONAL
    assumption = "F_j(M_j/K) <= exp(-1/K') for every weight: contributions near their supremum are not too rare"
    rejects = (
        "bound halved",
        "first half of S only",
        "mean over points",
        "sensitivities halved",
    )
    tests = 2 * len(BLOCKS) + 1
    verdict = Verdict.CONDITIONAL

    def observe(self, subject: Subject, effort: Effort, level: float, seed: int) -> Outcome:
        rng = np.random.default_rng([seed, 15])
        trials = trials_for(effort, DELTA_S, WRONG, level)
        failures, assumptions, violations, how = [], [], [], []
        for block in BLOCKS:
            layer, name = block.layer(trials), f"w = {block.weights}, K = {block.K}"
            sample = block.draw(block.points, trials, rng)
            s = subject.sensitivity(layer, sample)["weight"].values.flatten(1).double() * subject.shrink
            fresh = subject.fresh(sample, block.draw(1, trials, rng))[0]
            suprema = torch.tensor([float(block.supremum(j)) for j in range(len(block.weights))], dtype=torch.float64)
            failed = ~(suprema <= float(block.K) * s * (1 + rounding.gamma(2 * len(block.weights) + 12))).all(1)
            failures.append(Decision(f"S fails, {name}", int(failed.sum()), trials, DELTA_S, level, two_sided=False))
            below = block.contributions(fresh)[:, 0] <= float(block.supremum(0) / block.K)
            rate = float(block.cdf(0, block.supremum(0) / block.K))
            assumptions.append(Decision(f"g <= M/K, {name}", int(below.sum()), trials, rate, level, two_sided=True))
            violations += [f"{law}, {name}" for law in _broken_laws(subject, block, s[~failed], fresh[~failed])]
            how.append({"weights": block.weights, "K": float(block.K), "F(M/K)": block.worst_cdf, "n": block.points})
        drawn = _drawn(
            subject, BLOCKS[0], trials_for(effort, DELTA_S + DELTA, 2 * (DELTA_S + DELTA), level), level, rng
        )
        worst = max(block.worst_cdf for block in BLOCKS)
        detail = (
            f"Here the assumption holds, with F_j(M_j/K) up to {worst:.3f}, known exactly and counted; on data it can "
            "only be audited."
        )
        return Outcome([*failures, *assumptions, drawn], violations=violations, detail=detail, data={"blocks": how})


def _broken_laws(subject: Subject, block: UniformBlock, s: Tensor, fresh: Tensor) -> list[str]:
    """What must hold wherever g <= K s does, and did not at some fresh point or corner. s, fresh: (trials, N)."""
    n, K = len(block.weights), float(block.K)
    g = block.contributions(torch.cat([fresh[None], block.corners()[:, None].expand(-1, len(fresh), n)]))
    room = 1 + rounding.gamma(4 * n + 20)
    broken = [] if bool((g <= K * s * room).all()) else ["g > K s"]
    for dropped in itertools.product([False, True], repeat=n):
        P = torch.tensor(dropped)
        rho, T = g[..., P].sum(-1), s[:, P].sum(-1)
        variance = T * (g[..., P] ** 2 / s[:, P]).sum(-1) - rho**2
        v = K * T * (K * T).clamp(max=1)
        # The difference cancels: room relative to its first term, which is at most K T rho.
        if not bool((variance <= v * room + K * T * (room - 1)).all()):
            broken.append("variance of a mixture's rest")
        if not bool((rho <= (K * T).clamp(max=1) * room).all()):
            broken.append("r > K sum_P s")
        few = slice(0, 20)
        epsilon = torch.tensor([subject.drop_epsilon(K * row[P]) for row in s[few]], dtype=torch.float64)
        if not bool((rho[:, few] <= epsilon * room).all()):
            broken.append("r > epsilon of K s")
    return sorted(set(broken))


def _drawn(subject: Subject, block: UniformBlock, trials: int, level: float, rng: np.random.Generator) -> Decision:
    """Drawn blocks at a fresh point, with K T for T in claim C10's bound: S or the draws may fail."""
    sample, w = block.draw(block.points, trials, rng), torch.tensor(block.weights, dtype=torch.float64)
    s = subject.sensitivity(block.layer(trials), sample)["weight"].values.flatten(1).double()
    g = block.contributions(subject.fresh(sample, block.draw(1, trials, rng))[0])
    kept = torch.stack([subject.draw(row, w, DRAWS, rng) for row in s])
    error = ((kept / w * g).sum(1) - 1).abs()
    epsilon = subject.draw_epsilon(float(block.K) * s.sum(1), DRAWS, DELTA) * subject.shrink
    count = int((~(error <= epsilon)).sum())
    return Decision("drawn blocks fail at a fresh point", count, trials, DELTA_S + DELTA, level, two_sided=False)


CLAIM = CdfAssumption()
