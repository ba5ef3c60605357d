"""A method drawn as a whole on a network with several layers, of which two are alike (claims C9, C13, conformance)."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sipp_bench.network.blocks import by_block
from sipp_bench.sensitivity.measure import measure_sensitivity
from theory_checks.evidence.own_draws import OwnDraws, always_kept, laws_of


class Branches(nn.Module):
    """A layer, two that have the same weights and inputs, and one more. Alike in all, the two are drawn by one law: a
    generator that is used for both alike shows."""

    def __init__(self, inputs: int, width: int, outputs: int) -> None:
        super().__init__()
        self.first = nn.Linear(inputs, width)
        self.left, self.right = nn.Linear(width, outputs), nn.Linear(width, outputs)
        self.last = nn.Linear(outputs, 4)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 4)."""
        x = self.first(x).relu()
        result: Tensor = self.last((self.left(x) + self.right(x)).relu())
        return result


def branches(
    rng: np.random.Generator, inputs: int = 40, width: int = 30, outputs: int = 12, dtype: torch.dtype = torch.float64
) -> tuple[Branches, Tensor]:
    """The network and 6 points for it. Weights of every second neuron are so even that drawing pays; of the others so
    uneven that it shows whether they are drawn by their sensitivities."""
    model = Branches(inputs, width, outputs).to(dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            size = rng.uniform(0.5, 1.5, tuple(parameter.shape))
            size[1::2] **= 4
            parameter.copy_(torch.from_numpy(size * rng.choice([-1, 1, 1], size.shape)))
        model.right.weight.copy_(model.left.weight)
    return model, torch.from_numpy(rng.uniform(0.5, 1.5, (6, inputs))).to(dtype)


def draw_network(
    prune: Callable[[int], Any], model: nn.Module, points: Tensor, seeds: Sequence[int], keeps_some: bool
) -> OwnDraws:
    """The method's own draws over these seeds.

    prune: seed -> something with `model` and `guarantee`, as `sipp_bench.Pruned`. keeps_some: whether weights of drawn
    blocks may stay as they are (claim C13); those are the ones that no seed changes.
    """
    weights = {name: p.detach() for name, p in model.named_parameters() if p.ndim > 1}
    guarantee = prune(seeds[0]).guarantee
    kept = {name: mask.flatten(1) for name, mask in always_kept(prune, weights, seeds).items()}
    if not keeps_some:
        for name, draws in guarantee.draws.items():
            kept[name] &= by_block(draws == 0, weights[name].flatten(1) > 0)
    own = OwnDraws(laws_of(weights, measure_sensitivity(model, points), guarantee, kept))
    for seed in seeds:
        own.add(prune(seed))
    return own


def wrong(own: OwnDraws) -> list[str]:
    """What is wrong with certainty, a sentence each; that fewer than three layers are drawn from as well."""
    few = [f"only {len(own.laws)} of the layers are drawn from"] if len(own.laws) < 3 else []
    return own.broken() + few
