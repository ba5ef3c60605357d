"""Claim C17: a split-conformal certificate for any score."""

import math
from collections.abc import Iterator
from fractions import Fraction

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from theory_checks.cases import families
from theory_checks.evidence import statistics
from theory_checks.evidence.decided import DecidedClaim, Decision, Outcome, trials_for
from theory_checks.evidence.finding import Effort, Kind
from theory_checks.subjects.subject import Subject

# (n, alpha as written): in the second, (n + 1)(1 - alpha) is 3 exactly and a little more in floating point.
PLAIN, EXACT, LAW = (9, "0.2"), (9, "0.7"), (19, "0.1")
POOL = 10
NAN_RATE = 0.3
# Smallest violation to detect: a rank, or a reused point, that moves the coverage by this much at least.
STEP = 0.08


class SplitConformal(DecidedClaim):
    """n calibration scores and a fresh one, exchangeable; NaN counts as infinity. With k = ceil((n + 1)(1 - alpha)) and
    q the k-th smallest score (infinity if k > n): Pr(r(x) <= q) >= 1 - alpha.

    Proof: the fresh score's rank among the n + 1 is uniform, up to ties, which can only help; it is at most k with
    probability k/(n+1) >= 1 - alpha. So without ties the coverage is exactly k/(n+1); given the calibration set it is
    F(q), which is Beta(k, n + 1 - k) as the k-th of n uniform numbers; and of m fresh points of one pool the number
    covered is BetaBinomial(m, k, n + 1 - k).

    Trials: one calibration set, with one fresh point or one pool of them, each from an independent draw. The scores are
    the relative errors of a neuron that lost a weight of each block, or uniform within 1 % of each other, so that a
    quantile that is 1 % too small covers nothing. Scores that are often NaN have ties: there coverage is bounded from
    one side. The quantile itself is compared with the k-th smallest by fractions, where k is near a whole number,
    beyond n, or among infinities.
    """

    number = "C17"
    title = "Split-conformal certificate"
    statement = (
        "q = the ceil((n+1)(1-alpha))-th smallest calibration score: Pr(r(x) <= q) >= 1 - alpha for a fresh x; given "
        "the calibration set the coverage is Beta(k, n+1-k) without ties."
    )
    kind = Kind.STATISTICAL
    assumption = "calibration points and the fresh point are exchangeable, and apart from training, S and every choice"
    rejects = (
        "S reused as fresh",
        "bound halved",
        "conformal rank too low",
        "conformal rank in floats",
        "interpolated quantile",
        "largest score where none is large enough",
        "NaN scores left out",
    )
    tests = 6

    def observe(self, subject: Subject, effort: Effort, level: float, seed: int) -> Outcome:
        rng = np.random.default_rng([seed, 17])
        trials = max(trials_for(effort, rate, rate + STEP, level / 2) for rate in (0.8, 0.3))
        decisions = [
            self._block_errors(subject, PLAIN, trials, level, rng),
            self._block_errors(subject, EXACT, trials, level, rng),
            self._narrow(subject, trials, level, rng),
            self._with_nan(subject, trials, level, rng),
        ]
        p_values = self._laws(subject, trials, rng)
        violations = list(_wrong_quantiles(subject, rng, effort.cases))
        detail = f"Coverage agrees with k/(n+1), its Beta law and its BetaBinomial law over {trials} calibration sets."
        return Outcome(decisions, p_values, violations, detail, {"pool": POOL})

    @staticmethod
    def _block_errors(
        subject: Subject, setting: tuple[int, str], trials: int, level: float, rng: np.random.Generator
    ) -> Decision:
        """Coverage of the relative errors of pruned neurons."""
        n, alpha = setting
        layer = families.SIGNED.layer(trials, rng)
        dropped = families.one_of_each_block(layer, rng)
        calibration, fresh = families.SIGNED.points(n, layer, rng), families.SIGNED.points(1, layer, rng)
        x = subject.fresh(calibration, fresh)[:1]
        scores, score = (
            families.relative_errors(layer, points, dropped).amax(2).numpy() for points in (calibration, x)
        )
        covered = score[0] <= _quantiles(subject, scores, alpha)
        name = f"coverage of block errors, n = {n}, alpha = {alpha}"
        return Decision(name, int(covered.sum()), trials, _coverage(n, alpha), level, two_sided=True)

    @staticmethod
    def _narrow(subject: Subject, trials: int, level: float, rng: np.random.Generator) -> Decision:
        """Scores that are 1 and a little more: a quantile that is a little too small covers none."""
        n, alpha = PLAIN
        calibration, fresh = _uniform(n, trials, rng), _uniform(1, trials, rng)
        score = subject.fresh(calibration, fresh)[0].numpy()
        covered = score <= _quantiles(subject, calibration.numpy(), alpha)
        rate = _coverage(n, alpha)
        return Decision("coverage of scores within 1 %", int(covered.sum()), trials, rate, level, two_sided=True)

    @staticmethod
    def _with_nan(subject: Subject, trials: int, level: float, rng: np.random.Generator) -> Decision:
        """Points not covered, where a NaN counts as infinity and is covered by an infinite quantile alone."""
        n, alpha = PLAIN
        scores = _uniform(n + 1, trials, rng).numpy()
        scores[rng.random(scores.shape) < NAN_RATE] = np.nan
        calibration, fresh = (torch.from_numpy(part) for part in (scores[:n], scores[n:]))
        score = subject.fresh(calibration, fresh)[0].numpy()
        missed = ~(np.where(np.isnan(score), np.inf, score) <= _quantiles(subject, calibration.numpy(), alpha))
        rate = float(Fraction(alpha))
        return Decision("scores that may be NaN, missed", int(missed.sum()), trials, rate, level, two_sided=False)

    @staticmethod
    def _laws(subject: Subject, trials: int, rng: np.random.Generator) -> dict[str, float]:
        """Of the coverage given the calibration set, in tenths of its Beta law; and of the number covered in a pool."""
        n, alpha = LAW
        k = _rank(n, alpha)
        calibration, fresh = _uniform(n, trials, rng), _uniform(POOL, trials, rng)
        quantiles = _quantiles(subject, calibration.numpy(), alpha)
        edges = stats.beta.ppf(np.arange(1, 10) / 10, k, n + 1 - k)
        tenths = np.bincount(np.searchsorted(edges, (quantiles - 1) / 0.01), minlength=10)
        covered = (subject.fresh(calibration, fresh)[:POOL].numpy() <= quantiles).sum(0)
        numbers = np.bincount(covered, minlength=POOL + 1)
        law = stats.betabinom.pmf(np.arange(POOL + 1), POOL, k, n + 1 - k)
        return {
            "Beta law of the coverage": statistics.multinomial_p_value(tenths, np.full(10, 0.1)),
            "BetaBinomial law in a pool": statistics.multinomial_p_value(numbers, law),
        }


def _rank(n: int, alpha: str) -> int:
    """ceil((n + 1)(1 - alpha)) by fractions."""
    return math.ceil((n + 1) * (1 - Fraction(alpha)))


def _coverage(n: int, alpha: str) -> float:
    return _rank(n, alpha) / (n + 1)


def _uniform(count: int, trials: int, rng: np.random.Generator) -> Tensor:
    """Scores within [1, 1.01], (count, trials)."""
    return torch.from_numpy(1 + 0.01 * rng.random((count, trials)))


def _quantiles(
    subject: Subject, scores: "np.typing.NDArray[np.float64]", alpha: str
) -> "np.typing.NDArray[np.float64]":
    """The subject's quantile of each trial's scores (n, trials)."""
    return np.array([subject.conformal(column, float(alpha)) for column in scores.T]) * subject.shrink


def _wrong_quantiles(subject: Subject, rng: np.random.Generator, cases: int) -> Iterator[str]:
    """Cases whose quantile is not the k-th smallest: by fractions, infinity where k > n, NaN as infinity."""
    for case in range(cases):
        n, hundredths = int(rng.integers(1, 60)), int(rng.integers(1, 100))
        if case % 3 == 1:
            n = 10 * int(rng.integers(1, 40)) - 1  # (n + 1)(1 - alpha) is often whole
        elif case % 3 == 2:
            hundredths = 1  # k > n for all these n
        alpha = f"{hundredths / 100:.2f}"
        scores = rng.permutation(n).astype(float)
        scores[rng.random(n) < rng.choice([0, 0.2])] = np.nan
        scores[rng.random(n) < rng.choice([0, 0.1])] = np.inf
        ordered = [*sorted(math.inf if math.isnan(score) else float(score) for score in scores), math.inf]
        expected = ordered[min(_rank(n, alpha), n + 1) - 1]
        found = subject.conformal(scores, float(alpha))
        if found != expected:
            yield f"quantile {found} for {expected} (n = {n}, alpha = {alpha})"
            return


CLAIM = SplitConformal()
