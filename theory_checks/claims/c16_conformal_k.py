"""Claim C16: a factor K from calibration points, in place of the CDF assumption."""

import math
from fractions import Fraction

import numpy as np
import torch
from torch import Tensor, nn

from sipp_bench.compression import rounding
from theory_checks.cases import families
from theory_checks.cases.families import KERNEL
from theory_checks.evidence.decided import DecidedClaim, Decision, Outcome, trials_for
from theory_checks.evidence.finding import Effort, Kind
from theory_checks.subjects.subject import Subject

POINTS = 5
CALIBRATION, ALPHA = 9, "0.2"
RANK = math.ceil((CALIBRATION + 1) * (1 - Fraction(ALPHA)))
COVERAGE = RANK / (CALIBRATION + 1)
# Smallest violation to detect, in coverage; a rank too low costs 0.1.
STEP = 0.08
# Sets P of dropped weights that are tried in every trial, beside all single weights.
SETS = 6


class ConformalK(DecidedClaim):
    """n calibration points apart from training, S and every choice; rho(x) = max over j of g_j(x) / s_j, infinite where
    s_j = 0 < g_j(x). K-hat, the conformal quantile of rho (claim C17): with probability >= 1 - alpha, for all sets P
    at once, r(x) <= K-hat sum over P of s.

    Proof: g_j <= rho(x) s_j for all j, so that r(x) = sum over P of g_j <= rho(x) sum over P of s_j, whatever P; and
    rho of calibration points and a fresh one are exchangeable given S, whatever s is.

    Trials: one neuron with its own S, calibration points and fresh point (families.Family). Without ties the coverage
    is exactly k/(n+1), so that the test is two-sided; inputs that are often 0 give s_j = 0 < g_j and infinite rho,
    where coverage is bounded from one side. On every covered point r <= K-hat sum s is compared for random P,
    chosen by s as well: no probability is left there.
    """

    number = "C16"
    title = "Conformal K"
    statement = (
        "K-hat = conformal quantile of max_j g_j(x)/s_j over calibration points: with probability >= 1 - alpha, "
        "r(x) <= K-hat sum_P s for all P at once."
    )
    kind = Kind.STATISTICAL
    assumption = "calibration points and the fresh point are exchangeable, and apart from training, S and every choice"
    rejects = (
        "S reused as fresh",
        "bound halved",
        "conformal rank too low",
        "interpolated quantile",
    )
    tests = 3

    def observe(self, subject: Subject, effort: Effort, level: float, seed: int) -> Outcome:
        rng = np.random.default_rng([seed, 16])
        trials = max(trials_for(effort, COVERAGE, COVERAGE + step, level / 2) for step in (STEP, -STEP))
        decisions, exceeding, infinite = [], 0, {}
        for family in (families.SIGNED, families.NARROW, families.DEAD):
            layer = family.layer(trials, rng)
            sample, calibration = family.points(POINTS, layer, rng), family.points(CALIBRATION, layer, rng)
            s = subject.sensitivity(layer, sample)["weight"].values.flatten(1).double()
            rho = _largest_ratio(families.contributions(layer, subject.fresh(sample, calibration)), s)
            quantiles = np.array([subject.conformal(scores, float(ALPHA)) for scores in rho.T.numpy()])
            k_hat = torch.from_numpy(quantiles) * subject.shrink
            x = family.points(1, layer, rng)
            covered = _largest_ratio(families.contributions(layer, x), s)[0] <= k_hat
            exceeding += _exceeding_sets(layer, s, x, k_hat, covered & k_hat.isfinite(), rng)
            infinite[family.name] = int(k_hat.isinf().sum())
            count = int(covered.sum())
            if family.zeros:
                name = f"not covered, {family.name}"
                decisions.append(Decision(name, trials - count, trials, float(Fraction(ALPHA)), level, two_sided=False))
            else:
                decisions.append(Decision(f"covered, {family.name}", count, trials, COVERAGE, level, two_sided=True))
        broken = [f"r above K-hat sum_P s at {exceeding} covered points"] if exceeding else []
        detail = f"At every covered point r <= K-hat sum_P s for all {SETS + KERNEL} sets P that were tried."
        data = {"calibration_points": CALIBRATION, "alpha": float(Fraction(ALPHA)), "infinite": infinite}
        return Outcome(decisions, violations=broken, detail=detail, data=data)


def _largest_ratio(g: Tensor, s: Tensor) -> Tensor:
    """rho of every point and trial, from g (n, trials, KERNEL): 0 where g is 0, infinite where only s is."""
    # Not g / s alone: a sensitivity of -0.0 is 0 as well.
    return torch.where(g > 0, torch.where(s == 0, torch.inf, g / s), 0.0).amax(-1)


def _exceeding_sets(
    layer: nn.Conv1d, s: Tensor, x: Tensor, k_hat: Tensor, covered: Tensor, rng: np.random.Generator
) -> int:
    """Covered trials with r > K-hat sum_P s beyond rounding, summed over sets P: single weights, small s, random."""
    sets = [
        *torch.eye(KERNEL, dtype=torch.bool).expand(len(s), KERNEL, KERNEL).unbind(1),
        s <= s.median(1, True).values,
    ]
    sets += [torch.from_numpy(rng.random(s.shape) < rng.uniform(0.1, 0.9)) for _ in range(SETS - 1)]
    positive = layer.weight.detach()[:, 0] > 0
    count = 0
    for dropped in sets:
        sums = torch.stack([(s * dropped * block).sum(1) for block in (positive, ~positive)], 1)
        r = families.relative_errors(layer, x, dropped)[0]
        room = rounding.error_rounding(KERNEL) + sums * k_hat[:, None] * rounding.gamma(2 * KERNEL + 8)
        count += int((~(r <= sums * k_hat[:, None] + room)).any(1)[covered].sum())
    return count


CLAIM = ConformalK()
