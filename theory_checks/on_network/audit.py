"""The assumption audit of a real network: how often fresh points exceed K times the sensitivities measured on S.

The unit is one fresh point, i.i.d. and apart from S, with S held fixed: never a weight or a patch, of which one point
has many that share it.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from scipy import optimize, special
from torch import Tensor, nn

from sipp_bench.compression import rounding
from sipp_bench.errors import PointsError
from sipp_bench.network.points import Points
from sipp_bench.sensitivity.measure import Sensitivity
from theory_checks.evidence import statistics
from theory_checks.evidence.statistics import Interval
from theory_checks.evidence.wording import percent_up
from theory_checks.on_network.capture import BATCH
from theory_checks.on_network.held import Held
from theory_checks.subjects.subject import REFERENCE, Subject

FACTORS = (1.0, 2.0, 3.0, 5.0)
ALPHAS = (0.1, 0.05, 0.01)


@dataclass(frozen=True)
class Exceedance:
    """How often g > K s on `points` fresh points, S held fixed.

    any_weight: points at which at least one weight of the network exceeds, with its Clopper-Pearson interval; at_most:
    the exact upper confidence bound on that rate, by layer as well. per_weight: the share of weights that exceed,
    averaged over the points, which is what claim C14 bounds by 1/(n+1) on average over S; its interval is
    Hoeffding's (`mean_interval`), since a share is no count. never: the share of pairs (weight, point) with
    g > 0 = s, which no K can mend.
    """

    factor: float
    points: int
    any_weight: int
    any_interval: Interval
    at_most: float
    by_layer: Mapping[str, int]
    per_weight: float
    per_weight_interval: Interval
    never: float

    @property
    def supported_delta(self) -> float:
        """The smallest failure rate that so many points can support; nothing smaller is ever claimed."""
        return statistics.supported_delta(self.points, self.any_interval.confidence)

    def __str__(self) -> str:
        confidence = f"{self.any_interval.confidence:.0%} confidence"
        return (
            f"K = {self.factor:g}: some weight has g > K s at {self.any_weight} of {self.points} fresh points, at most "
            f"{percent_up(self.at_most)} of inputs, {confidence}; of a single weight on average "
            f"{self.per_weight:.2%}. {self.points} points can't support a failure rate below "
            f"{percent_up(self.supported_delta)}."
        )


@dataclass(frozen=True)
class Audit:
    """Claims C14 and C15 on data, with claim C16's K-hat, which needs no assumption, beside them.

    points_looked_at: n, of S. expected: 1/(n+1), claim C14's bound on `per_weight` at K = 1, on average over S.
    k_hat: by alpha, from all fresh points as calibration points; infinite where they are too few or where more than
    alpha of them use a weight that S never did. ratios: rho of each fresh point, largest g/s over all weights.
    inactive: share of the weights with s = 0. shared: fresh points that are in S as well.
    """

    points_looked_at: int
    points: int
    exceedances: Sequence[Exceedance]
    k_hat: Mapping[float, float]
    ratios: Tensor
    inactive: float
    shared: int

    @property
    def expected(self) -> float:
        """Claim C14: the share of weights that exceed at K = 1, on average over S."""
        return 1 / (self.points_looked_at + 1)

    @property
    def holds_for(self) -> float | None:
        """The least K audited that no fresh point exceeded; None if each was exceeded."""
        return next((e.factor for e in self.exceedances if e.any_weight == 0), None)

    def statement(self) -> str:
        """The audit in sentences."""
        lines = [str(exceedance) for exceedance in self.exceedances]
        infinite = int(self.ratios.isinf().sum())
        if infinite:
            lines.append(
                f"At {infinite} of {self.points} fresh points a weight is active whose sensitivity is 0: no K is "
                "enough there, and S can't tell whether claim C15's assumption holds. "
                f"{self.inactive:.1%} of the weights have s = 0."
            )
        for alpha, k in self.k_hat.items():
            value = "infinite" if math.isinf(k) else f"{k:.3g}"
            lines.append(
                f"Claim C16, no assumption: K-hat = {value} for all weights at once on {1 - alpha:.0%} of inputs."
            )
        if self.shared:
            lines.append(f"Warning: {self.shared} of the fresh points are in S as well, where nothing exceeds.")
        return "\n".join(lines)


def audit(
    model: nn.Module,
    points: "Points | Held",
    fresh: "Points | Held",
    *,
    factors: Sequence[float] = FACTORS,
    alphas: Sequence[float] = ALPHAS,
    confidence: float = 0.95,
    subject: Subject = REFERENCE,
) -> Audit:
    """How often g_j(x) > K s_j on fresh points, for each K, and the conformal K-hat.

    points: S. fresh: m points, apart from training and S. g_j(x) is the sensitivity measured on x alone.
    Exceeding means beyond rounding: by more than 2 gamma_(n+4) relative, n the weights of a block. One pass over S and
    one for every fresh point, each about as long as measuring one batch. Raises PointsError if there are no fresh
    points or all of them are in S.
    """
    points, fresh = Held.of(points, model), Held.of(fresh, model)
    shared = shared_points(points, fresh)
    if shared == len(fresh):
        raise PointsError("Every fresh point is in S as well: an audit needs points that the method did not look at.")
    # Wrong subjects take tensors, and are never given anything else.
    measure: Callable[[nn.Module, Points], Sensitivity] = subject.sensitivity  # type: ignore[assignment]
    s = measure(model, points.points(BATCH))
    looks = [_Look.at(s, measure(model, x.points(BATCH)), factors) for x in fresh.singles()]
    weights = sum(entry.values.numel() for entry in s.values())
    ratios = torch.tensor([max(look.ratios.values()) for look in looks], dtype=torch.float64)
    zero = sum(int((entry.values == 0).sum()) for entry in s.values())
    return Audit(
        points_looked_at=s.num_points,
        points=len(looks),
        exceedances=[_summary(looks, i, K, weights, confidence) for i, K in enumerate(factors)],
        k_hat={alpha: subject.conformal(ratios, alpha) for alpha in alphas},
        ratios=ratios,
        inactive=zero / weights,
        shared=shared,
    )


def shared_points(points: "Points | Held", fresh: "Points | Held") -> int:
    """How many fresh points are in S as well, bit for bit."""
    known = set(Held.of(points).digests())
    return sum(one in known for one in Held.of(fresh).digests())


@dataclass(frozen=True)
class _Look:
    """One fresh point: rho of every layer, and how many of its weights exceed, for each factor; never: g > 0 = s."""

    ratios: Mapping[str, float]
    counts: Mapping[str, Sequence[int]]
    never: int

    @classmethod
    def at(cls, s: Sensitivity, one: Sensitivity, factors: Sequence[float]) -> "_Look":
        ratios, counts, never = {}, {}, 0
        for name, entry in s.items():
            values = entry.values.double()
            # A weight that this point never reached contributes nothing.
            g = one[name].values.double() if name in one else torch.zeros_like(values)
            room = 1 + 2 * rounding.sensitivity_rounding(entry.values[0].numel(), entry.values.dtype)
            ratio = torch.where(g > 0, torch.where(values == 0, torch.inf, g / values), 0.0)
            ratios[name] = float(ratio.max())
            counts[name] = [int((ratio > K * room).sum()) for K in factors]
            never += int(ratio.isinf().sum())
        return cls(ratios, counts, never)


def _summary(looks: Sequence[_Look], i: int, factor: float, weights: int, confidence: float) -> Exceedance:
    m = len(looks)
    exceeding = [sum(counts[i] for counts in look.counts.values()) for look in looks]
    count = sum(number > 0 for number in exceeding)
    share = sum(exceeding) / (m * weights)
    return Exceedance(
        factor=factor,
        points=m,
        any_weight=count,
        any_interval=statistics.clopper_pearson(count, m, confidence),
        at_most=statistics.upper_bound(count, m, confidence),
        by_layer={name: sum(look.counts[name][i] > 0 for look in looks) for name in looks[0].counts},
        per_weight=share,
        per_weight_interval=mean_interval(share, m, confidence),
        never=sum(look.never for look in looks) / (m * weights),
    )


def mean_interval(mean: float, count: int, confidence: float = 0.95) -> Interval:
    """For the expectation of numbers within [0, 1], from the mean of `count` independent ones.

    All p with count KL(mean || p) <= ln(2 / (1 - confidence)), by Hoeffding's inequality in its relative-entropy form
    (Hoeffding 1963, theorem 1): valid for every count and any distribution, wider than Clopper-Pearson's.
    """
    room = math.log(2 / (1 - confidence)) / count

    def excess(p: float) -> float:
        return float(special.rel_entr(mean, p) + special.rel_entr(1 - mean, 1 - p)) - room

    tiny = 1e-300
    low = 0.0 if mean <= 0 or excess(tiny) <= 0 else float(optimize.brentq(excess, tiny, mean))
    high = 1.0 if mean >= 1 or excess(1 - 2**-53) <= 0 else float(optimize.brentq(excess, mean, 1 - 2**-53))
    return Interval(low, high, confidence)
