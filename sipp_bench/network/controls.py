"""Controls: networks that must not be the one that they are compared with."""

from collections.abc import Container

import torch
from torch import nn

from sipp_bench.errors import ModelError


def require_other(control: nn.Module, network: nn.Module, what: str, names: Container[str] | None = None) -> None:
    """Raise ModelError if a weight of `control` is the same as in `network`, which it is there to be compared with.

    Weights: the trainable parameters of at least two dimensions, of those in `names` if that is given. what: the
    control, for people. Two networks that must differ are compared, not trusted to differ: a control that is the
    network itself agrees with it perfectly, and turns what it is compared for round.
    """
    own = dict(network.named_parameters())
    same = [
        name
        for name, weight in control.named_parameters()
        if weight.ndim > 1 and weight.requires_grad and (names is None or name in names)
        if torch.equal(weight.cpu(), own[name].cpu())
    ]
    if same:
        raise ModelError(
            f"{what} has the very weights of the network that it is a control of in {', '.join(same)}: a comparison "
            "with it says nothing. It must be trained or masked by a seed of its own."
        )
