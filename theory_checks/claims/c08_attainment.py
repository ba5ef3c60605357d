"""C8: the deterministic bound is attained."""

from collections.abc import Iterable, Iterator

import numpy as np
import torch

from sipp_bench.compression.rounding import error_rounding, gamma, sensitivity_rounding, sensitivity_underflow
from theory_checks.cases import oracle
from theory_checks.cases.strategies import LayerCase, random_layer_cases
from theory_checks.claims.c02_deterministic_error import block_signs, drop, drop_epsilons, dropped_sets
from theory_checks.evidence.finding import Effort
from theory_checks.evidence.identity import Comparison, IdentityClaim, close
from theory_checks.subjects.subject import Subject


class Attainment(IdentityClaim[LayerCase]):
    """For every set P dropped from a block: max_P s <= max over S, p, tau of r <= min(1, sum_P s); a single weight j
    dropped gives max r = s_j exactly.

    Proof idea: r = sum_P g is at least each g_j of P, also where g_j is largest, and there g_j = s_j. So C2 cannot
    be sharpened weight by weight, and sensitivities that are too large are wrong as well: C2 alone would accept them.
    """

    number = "C8"
    title = "Attainment of the deterministic bound"
    statement = "max_P s <= max over S, p, tau of r <= min(1, sum_P s); dropping weight j alone gives max r = s_j."
    rejects = (
        "magnitudes for sensitivities",
        "mean over points",
        "first half of S only",
        "first batch of S only",
        "one sign zeroed",
        "first patch only",
        "sensitivities halved",
        "sensitivities of 1",
        "negative activations ignored",
        "bias inside Z",
        "small sums are zero",
        "stride ignored",
        "padding ignored",
        "bound halved",
        "bound not capped",
    )

    def cases(self, effort: Effort, rng: np.random.Generator) -> Iterable[LayerCase]:
        """All kinds of layers in turn."""
        return random_layer_cases(rng, effort.cases)

    def compare(self, subject: Subject, case: LayerCase) -> Iterator[Comparison]:
        """Each weight of a row dropped alone, in all rows at once; then larger sets."""
        exact, dtype, n = case.in_float64(), case.layer.weight.dtype, case.size
        layer, x = exact.layer, exact.points
        s = subject.sensitivity(case.layer, case.points)["weight"].values.flatten(1).double()
        relative, absolute = sensitivity_rounding(n, dtype), error_rounding(n) + n * sensitivity_underflow(dtype)
        for j in range(n):
            alone = torch.zeros_like(s, dtype=torch.bool)
            alone[:, j] = True
            r = oracle.relative_errors(layer, x, drop(layer, alone)).amax((0, 1, 3, 4))
            yield close("one weight dropped: max r = s", r, s[:, j], s[:, j] * relative + absolute)
        for dropped in dropped_sets(layer, x, s, case.rng):
            r = oracle.relative_errors(layer, x, drop(layer, dropped)).amax((0, 1, 4))
            gone = torch.where(dropped & block_signs(layer), s, 0.0)
            largest, total = gone.amax(2).T, gone.sum(2).T
            yield Comparison("max_P s <= max r", largest, r, largest * relative + absolute)
            epsilon = drop_epsilons(subject, layer, s, dropped)
            bound = subject.shrink * epsilon
            yield Comparison("max r <= eps", r, bound, bound * relative + absolute)
            yield Comparison("eps <= min(1, sum_P s)", epsilon, total.clamp(max=1), total * gamma(n))


CLAIM = Attainment()
