"""Masks of pruned networks: whether they hold and nest, on other weights, and shuffled."""

import copy
import dataclasses

import torch
from torch import nn

from sipp_bench.errors import ModelError
from sipp_bench.pruned import Pruned


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


def with_weights(pruned: Pruned, model: nn.Module) -> Pruned:
    """The masks of `pruned` on a copy of `model`, without a guarantee."""
    result = dataclasses.replace(pruned, model=copy.deepcopy(model), guarantee=None)
    result.apply_masks()
    return result


def shuffled(pruned: Pruned, seed: int) -> Pruned:
    """`pruned` with its masks replaced by random ones that keep as many weights in each layer."""
    generator = torch.Generator().manual_seed(seed)
    masks = {
        name: mask.flatten()[torch.randperm(mask.numel(), generator=generator)].reshape(mask.shape)
        for name, mask in pruned.masks.items()
    }
    return dataclasses.replace(pruned, masks=masks)
