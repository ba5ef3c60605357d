"""C4: from relative errors of blocks to the error of the pre-activation."""

from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch import Tensor, nn

from sipp_bench.compression.rounding import error_rounding, gamma
from theory_checks.cases import oracle
from theory_checks.cases.strategies import LayerCase, random_layer_cases
from theory_checks.claims.c02_deterministic_error import block_signs, drop, dropped_sets
from theory_checks.evidence.finding import Effort
from theory_checks.evidence.identity import Comparison, IdentityClaim, close
from theory_checks.subjects.subject import Subject


class Recombination(IdentityClaim[LayerCase]):
    """If the blocks of neuron i have r <= eps: |yhat_i - y_i| <= eps sum_j |w_ij a_j|, which is
    eps (Delta_i |y_i + b_i| - |b_i|); for pure dropping, sharper: eps max(Z^{++} + Z^{--}, Z^{-+} + Z^{+-}).

    Proof: y = Z^{++} - Z^{-+} - Z^{+-} + Z^{--} and each sum moves by at most eps times itself. Dropping only lowers
    sums, so that what the two positive terms lose and what the two negative ones lose work against each other. The
    bias is the same in y and yhat.

    Looked for: weights dropped from the blocks of one sign alone, which attains the bound; both y and yhat come
    from the layer itself, bias included.
    """

    number = "C4"
    title = "Recombination of the blocks"
    statement = (
        "Where the blocks of neuron i have r <= eps: |yhat - y| <= eps sum |w a|; for pure dropping "
        "|yhat - y| <= eps max(Z^{++} + Z^{--}, Z^{-+} + Z^{+-})."
    )
    rejects = ("bound halved", "smaller side recombined", "recombined by the output")

    def cases(self, effort: Effort, rng: np.random.Generator) -> Iterable[LayerCase]:
        """All kinds of layers in turn."""
        return random_layer_cases(rng, effort.cases)

    def compare(self, subject: Subject, case: LayerCase) -> Iterator[Comparison]:
        """Weights dropped, and weights multiplied by factors of at least 0, whose bound is the sum of both sides."""
        exact, rng = case.in_float64(), case.rng
        layer, x = exact.layer, exact.points
        z = oracle.quadrant_sums(layer, x)
        plus, minus = z[..., 0, 0] + z[..., 1, 1], z[..., 1, 0] + z[..., 0, 1]
        y = outputs(layer, x)
        bias = 0.0 if layer.bias is None else layer.bias.detach().abs()
        # y is a sum of n products and the bias, whose rounding is relative to the sum of their magnitudes.
        slack = 2 * gamma(case.size + 2) * (plus + minus + bias) + error_rounding(case.size) * (plus + minus)
        with_bias = (plus - minus) + (0.0 if layer.bias is None else layer.bias.detach())
        yield close("y is the four sums and the bias", y, with_bias, slack)
        signs = block_signs(layer)
        sets = list(dropped_sets(layer, x, oracle.sensitivities(layer, x), rng))
        for dropped in [*sets, *signs, signs[0] & sets[-2], signs[1] & sets[-2]]:
            pruned = drop(layer, dropped)
            bound = subject.recombine(_largest_error(layer, x, pruned), plus, minus)
            yield Comparison("dropped", _change(layer, x, y, pruned), subject.shrink * torch.as_tensor(bound), slack)
        for _ in range(2):
            factors = torch.from_numpy(rng.choice([0, 0.5, 1, 1.5, 3], tuple(layer.weight.shape)))
            pruned = layer.weight.detach() * factors
            bound = subject.recombine(_largest_error(layer, x, pruned), plus + minus, torch.zeros_like(plus))
            # Factors of up to 3 make yhat's own rounding up to 3 times as large.
            change = _change(layer, x, y, pruned)
            yield Comparison("reweighted", change, subject.shrink * torch.as_tensor(bound), 3 * slack)


CLAIM = Recombination()


def outputs(layer: oracle.Layer, x: Tensor) -> Tensor:
    """y + b by the layer itself: (N, P, M)."""
    with torch.no_grad():
        y: Tensor = layer(x)
    return y.reshape(len(x), -1, y.shape[-1]) if isinstance(layer, nn.Linear) else y.flatten(2).transpose(1, 2)


def _change(layer: oracle.Layer, x: Tensor, y: Tensor, pruned: Tensor) -> Tensor:
    return (outputs(oracle.with_weight(layer, pruned), x) - y).abs()


def _largest_error(layer: oracle.Layer, x: Tensor, pruned: Tensor) -> Tensor:
    """eps of each (x, p, neuron): the largest r of its blocks and activation signs."""
    return oracle.relative_errors(layer, x, pruned).amax((3, 4))
