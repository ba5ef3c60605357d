"""Masks of pruned networks: whether they hold and nest, and random ones of the same size."""

import dataclasses
import math

import torch
from torch import nn

from sipp_bench.compression.changes import Masked
from sipp_bench.compression.pruned import Pruned
from sipp_bench.errors import ModelError
from sipp_bench.machine.seeds import generator
from sipp_bench.network.controls import require_other


def require_masks_held(pruned: Pruned) -> None:
    """Raise ModelError unless every weight that the masks leave out is 0."""
    parameters = dict(pruned.model.named_parameters())
    for name, mask in pruned.masks.items():
        weight = parameters[name].detach()
        # After every step: several times faster than picking out the weights under the mask. NaN counts as non-zero.
        leaked = int(torch.count_nonzero((weight != 0) > mask.to(weight.device)))
        if leaked:
            raise ModelError(f"{leaked} pruned weights of {name!r} came back during retraining: its mask did not hold.")


def require_nested(pruned: Pruned, before: Pruned) -> None:
    """Raise ModelError if `pruned` keeps a weight that `before` had pruned."""
    for name, mask in pruned.masks.items():
        if bool((mask & ~before.masks[name]).any()):
            raise ModelError(f"A later step of the cascade keeps weights of {name!r} that an earlier one had pruned.")


def random_control(pruned: Pruned, model: nn.Module, seed: int) -> Pruned | None:
    """A random subnetwork of `model` that keeps as many weights in each layer as `pruned`, without a guarantee.

    None where it would be the same one, as it must where layers keep everything or nothing: that is no control. Raises
    ModelError where it is the same though chance brings that about less than once in 2**32.
    """
    draws = generator(seed)
    masks = {
        name: mask.flatten()[torch.randperm(mask.numel(), generator=draws)].reshape(mask.shape)
        for name, mask in pruned.masks.items()
    }
    changes = {name: Masked(change.effective(), masks[name]) for name, change in pruned.changes.items()}
    control = dataclasses.replace(pruned, changes=changes).on(model)
    differing = {name for name, mask in pruned.masks.items() if not torch.equal(mask, control.masks[name])}
    if not differing and sum(_log2_choices(mask) for mask in masks.values()) <= 32:
        return None
    require_other(control.model, pruned.on(model).model, "The random subnetwork", differing or set(masks))
    return control


def _log2_choices(mask: torch.Tensor) -> float:
    """log2 of how many masks of this shape keep as many weights."""
    n, kept = mask.numel(), int(torch.count_nonzero(mask))
    return (math.lgamma(n + 1) - math.lgamma(kept + 1) - math.lgamma(n - kept + 1)) / math.log(2)
