"""Exact tests, intervals and sample sizes. The unit is one independent trial: one draw set, or one independent S.

Nothing here pools trials that share a draw set, a sample or a pool of points: the caller counts independent trials.
"""

import math
from dataclasses import dataclass

import numpy as np
from scipy import special, stats

from sipp_bench.errors import OptionError

# False alarms over a whole run of the checks, by design; every statistical decision spends a share of it.
RUN_ALPHA = 1e-6


@dataclass(frozen=True)
class Interval:
    """An exact two-sided Clopper-Pearson interval for a rate."""

    low: float
    high: float
    confidence: float


@dataclass(frozen=True)
class Design:
    """A one-sided exact binomial test of "rate <= rate0", with what it can see.

    trials: n; critical: the smallest count that rejects; alpha: the exact false-alarm rate at rate0, at most the one
    asked for; beta: the exact probability to miss a true rate of rate1.
    """

    trials: int
    critical: int
    rate0: float
    rate1: float
    alpha: float
    beta: float

    def rejects(self, count: int) -> bool:
        """Whether `count` violations in `trials` trials falsify the claimed rate."""
        return count >= self.critical


def critical_count(trials: int, rate: float, alpha: float) -> int:
    """Smallest c with Pr(Binomial(trials, rate) >= c) <= alpha; trials + 1 if no count is that rare."""
    _check_rate(rate)
    _check_level(alpha)
    # isf is off by one at ties of the discrete distribution: step to the exact place.
    c = max(int(stats.binom.isf(alpha, trials, rate)), 0)
    while c <= trials and stats.binom.sf(c - 1, trials, rate) > alpha:
        c += 1
    while c > 0 and stats.binom.sf(c - 2, trials, rate) <= alpha:
        c -= 1
    return c


def design(rate0: float, rate1: float, alpha: float, beta: float, most: int = 10_000_000) -> Design:
    """The fewest trials with which an exact test of "rate <= rate0" at level alpha misses rate1 at most with beta.

    Exact power is not monotone in the number of trials (a saw-tooth): the number returned is one from which the
    requirement holds, found by doubling and bisection, then lowered as long as the next smaller one holds too.
    Raises OptionError unless 0 <= rate0 < rate1 <= 1, or where more than `most` trials would be needed.
    """
    _check_level(alpha)
    _check_level(beta)
    if not 0 <= rate0 < rate1 <= 1:
        raise OptionError(f"A test needs 0 <= rate0 < rate1 <= 1, not {rate0} and {rate1}.")
    high = 1
    while not _enough(high, rate0, rate1, alpha, beta):
        high *= 2
        if high > most:
            raise OptionError(
                f"Telling {rate1} from {rate0} needs more than {most} trials: ask for a larger violation."
            )
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if _enough(middle, rate0, rate1, alpha, beta) else (middle, high)
    while high > 1 and _enough(high - 1, rate0, rate1, alpha, beta):
        high -= 1
    return describe(high, rate0, rate1, alpha)


def describe(trials: int, rate0: float, rate1: float, alpha: float) -> Design:
    """The exact test with a given number of trials."""
    c = critical_count(trials, rate0, alpha)
    return Design(
        trials,
        c,
        rate0,
        rate1,
        float(stats.binom.sf(c - 1, trials, rate0)),
        float(stats.binom.cdf(c - 1, trials, rate1)),
    )


def smallest_detectable(trials: int, rate0: float, alpha: float, beta: float) -> float:
    """The smallest true rate that the test with these trials misses at most with beta; 1 if there is none."""
    c = critical_count(trials, rate0, alpha)
    if c > trials:
        return 1.0
    # Pr(Binomial(n, p) <= c - 1) = beta  <=>  p is the 1 - beta quantile of Beta(c, n - c + 1).
    return float(stats.beta.ppf(1 - beta, c, trials - c + 1))


def p_value(count: int, trials: int, rate: float) -> float:
    """Exact Pr(Binomial(trials, rate) >= count)."""
    return float(stats.binom.sf(count - 1, trials, rate))


def beta_binomial_p_value(count: int, trials: int, a: int, b: int) -> float:
    """Exact Pr(BetaBinomial(trials, a, b) >= count), a sum of its terms.

    Not scipy's `betabinom.sf`, which is 1 - cdf and never falls below its rounding, 1e-13 and more.
    """
    if count > trials:
        return 0.0
    terms = stats.betabinom.logpmf(np.arange(max(count, 0), trials + 1), trials, a, b)
    return min(1.0, float(np.exp(special.logsumexp(terms))))


def clopper_pearson(count: int, trials: int, confidence: float = 0.95) -> Interval:
    """Exact interval for the rate behind `count` of `trials`."""
    if not 0 <= count <= trials or trials < 1:
        raise OptionError(f"{count} of {trials} is not a count of trials.")
    result = stats.binomtest(count, trials).proportion_ci(confidence, method="exact")
    return Interval(float(result.low), float(result.high), confidence)


def upper_bound(count: int, trials: int, confidence: float = 0.95) -> float:
    """Exact one-sided upper confidence bound for the rate behind `count` of `trials`."""
    if not 0 <= count <= trials or trials < 1:
        raise OptionError(f"{count} of {trials} is not a count of trials.")
    return 1.0 if count == trials else float(stats.beta.ppf(confidence, count + 1, trials - count))


def supported_delta(trials: int, confidence: float = 0.95) -> float:
    """The smallest failure rate that this many clean trials can support at this confidence: 1 - (1-conf)^(1/n)."""
    return upper_bound(0, trials, confidence)


def multinomial_p_value(counts: "np.typing.ArrayLike", probabilities: "np.typing.ArrayLike") -> float:
    """A valid p-value for counts being multinomial with these probabilities.

    Bonferroni over two-sided exact binomial tests of the cells: each cell's count is exactly binomial, whatever its
    size, where chi-squared would be an approximation for rare cells. A count in a cell of probability 0 gives 0.
    """
    observed, p = np.asarray(counts, dtype=np.int64), np.asarray(probabilities, dtype=np.float64)
    n = int(observed.sum())
    if (observed[p == 0] > 0).any():
        return 0.0
    cells = p > 0
    observed, p = observed[cells], np.minimum(p[cells], 1.0)
    tail = np.minimum(stats.binom.sf(observed - 1, n, p), stats.binom.cdf(observed, n, p))
    return float(min(1.0, 2 * cells.sum() * tail.min()))


def share(decisions: int, alpha: float = RUN_ALPHA) -> float:
    """The level of each of `decisions` tests so that a false alarm in any has probability at most alpha."""
    if decisions < 1:
        raise OptionError("There must be at least one decision.")
    return alpha / decisions


def _enough(trials: int, rate0: float, rate1: float, alpha: float, beta: float) -> bool:
    c = critical_count(trials, rate0, alpha)
    return c <= trials and bool(stats.binom.cdf(c - 1, trials, rate1) <= beta)


def _check_rate(rate: float) -> None:
    if not 0 <= rate <= 1:
        raise OptionError(f"A rate is within [0, 1], not {rate}.")


def _check_level(level: float) -> None:
    if not 0 < level < 1 or math.isnan(level):
        raise OptionError(f"A level is above 0 and below 1, not {level}.")
