"""One look at every fresh point, for all the checks of claims C14 to C16 on a user's network."""

from dataclasses import replace

import torch
from torch import Tensor, nn

from sipp_bench.compression.rounding import sensitivity_rounding
from sipp_bench.network.points import Points
from sipp_bench.sensitivity.measure import Sensitivity, measure_sensitivity
from theory_checks.on_network.audit import Audit, audit
from theory_checks.on_network.held import Held
from theory_checks.subjects.subject import REFERENCE


class FreshLook:
    """The audit, and with it each weight's own number of exceedances over the fresh points, in one pass."""

    def __init__(self, model: nn.Module, points: Held, fresh: Held, alpha: float) -> None:
        self.counts: dict[str, Tensor] = {}
        self._s: Sensitivity | None = None
        subject = replace(REFERENCE, sensitivity=self._measure)
        self.audit: Audit = audit(model, points, fresh, alphas=(alpha,), confidence=1 - alpha, subject=subject)

    def _measure(self, model: nn.Module, points: Points) -> Sensitivity:
        found = measure_sensitivity(model, points)
        if self._s is None:  # the first one is S
            self._s = found
            self.counts = {name: torch.zeros_like(layer.values, dtype=torch.int64) for name, layer in found.items()}
            return found
        for name, layer in found.items():
            if name in self._s:
                room = 1 + 2 * sensitivity_rounding(layer.values[0].numel(), layer.values.dtype)
                self.counts[name] += layer.values.double() > self._s[name].values.double() * room
        return found
