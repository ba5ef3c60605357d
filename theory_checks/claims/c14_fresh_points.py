"""Claim C14: how often a fresh point exceeds a sensitivity, without assumption."""

import numpy as np
import torch
from scipy import stats
from torch import Tensor, nn

from sipp_bench.compression import rounding
from theory_checks.cases import families
from theory_checks.cases.families import KERNEL, Family
from theory_checks.evidence.decided import DecidedClaim, Decision, Outcome, trials_for
from theory_checks.evidence.finding import Effort, Kind
from theory_checks.subjects.subject import Subject

POINTS = 5
DELTA = 0.1
RATE = 1 / (POINTS + 1)
# Smallest violations to detect: two of five points lost, and a maximum over two points too many.
TOO_MANY, TOO_FEW = 1 / 4, 1 / 8


class FreshPoints(DecidedClaim):
    """S of n i.i.d. points, x one more: Pr(g_j(x) > s_j) <= 1/(n+1), with equality where g_j(x) has no ties.

    Proof: of n + 1 exchangeable values without ties each is the largest with probability 1/(n+1); ties can only lower
    that. Wilks: s_j is the largest of n values with a continuous CDF F, so that Pr(F(s_j) < t) = t^n; the
    rate Pr_x(g_j > s_j) = 1 - F(s_j) exceeds 1 - delta^(1/n) with probability exactly delta. All N weights at once:
    with delta / N for each, by a union bound.

    Trials: one neuron, one S, one x and one weight chosen before; no two trials share anything (families.Family). The
    tests are two-sided, since without ties the rates are equalities: no exceedance at all means that S was used again.
    A fresh g_j exceeds beyond rounding only, which moves the rate by the probability of a near tie, about 1e-14.
    """

    number = "C14"
    title = "Fresh points, no assumption"
    statement = (
        "Pr(g_j(x) > s_j) <= 1/(n+1) over S and a fresh x, with equality without ties; with probability >= 1 - delta "
        "over S, Pr_x(g_j > s_j) <= 1 - delta^(1/n)."
    )
    kind = Kind.STATISTICAL
    assumption = "S and the fresh point are independent draws from one distribution"
    rejects = (
        "S reused as fresh",
        "bound halved",
        "first half of S only",
        "mean over points",
        "magnitudes for sensitivities",
        "one sign zeroed",
        "first patch only",
        "sensitivities halved",
        "sensitivities of 1",
        "negative activations ignored",
        "bias inside Z",
        "stride ignored",
        "padding ignored",
        "delta not split",
        "Wilks for one point more",
        "Wilks with the confidence for delta",
    )
    tests = len(families.FAMILIES) + 2

    def observe(self, subject: Subject, effort: Effort, level: float, seed: int) -> Outcome:
        rng = np.random.default_rng([seed, 14])
        trials = max(trials_for(effort, RATE, wrong, level / 2) for wrong in (TOO_MANY, TOO_FEW))
        decisions = [self._exceedances(subject, family, trials, level, rng) for family in families.FAMILIES]
        decisions += self._wilks(subject, trials, level, rng)
        detail = (
            f"With S used again there would be none; each rate is exact, over {trials} independent pairs of S and x."
        )
        return Outcome(decisions, detail=detail, data={"n": POINTS})

    def _exceedances(
        self, subject: Subject, family: Family, trials: int, level: float, rng: np.random.Generator
    ) -> Decision:
        layer = family.layer(trials, rng)
        sample, fresh = family.points(POINTS, layer, rng), family.points(1, layer, rng)
        g = families.contributions(layer, subject.fresh(sample, fresh)[:1])[0]
        chosen = torch.arange(trials), torch.arange(trials) % KERNEL
        limit = self._sensitivities(subject, layer, sample) * subject.shrink
        count = int((~(g <= limit * (1 + 2 * rounding.gamma(KERNEL + 4))))[chosen].sum())
        return Decision(family.name, count, trials, RATE, level, two_sided=True)

    def _wilks(self, subject: Subject, trials: int, level: float, rng: np.random.Generator) -> list[Decision]:
        """The rates 1 - F(s_j) themselves, F being a Beta distribution: of one weight, and of all of a neuron."""
        layer = families.SMOOTH.layer(trials, rng)
        s = self._sensitivities(subject, layer, families.SMOOTH.points(POINTS, layer, rng))
        rates = np.asarray(stats.beta.sf(s.numpy() * subject.shrink, *families.beta_parameters(layer)))
        one = subject.wilks(POINTS, DELTA) * subject.shrink
        each = subject.wilks(POINTS, subject.split_delta(DELTA, KERNEL)) * subject.shrink
        above = int(np.count_nonzero(~(rates[np.arange(trials), np.arange(trials) % KERNEL] <= one)))
        any_above = int(np.count_nonzero((~(rates <= each)).any(1)))
        return [
            Decision("Wilks' rate of one weight", above, trials, DELTA, level, two_sided=True),
            Decision("Wilks' rates of all weights of a neuron", any_above, trials, DELTA, level, two_sided=False),
        ]

    @staticmethod
    def _sensitivities(subject: Subject, layer: nn.Conv1d, sample: Tensor) -> Tensor:
        return subject.sensitivity(layer, sample)["weight"].values.flatten(1).double()


CLAIM = FreshPoints()
