"""The authors' rule for how many points to look at (THEORY section 6)."""

import math

import torch
from torch import Tensor, nn

from sipp_bench.errors import ModelError, OptionError
from sipp_bench.network.points import call_model, model_device
from sipp_bench.network.tracing import Call, tracing


def sample_size(model: nn.Module, delta: float = 1e-16, *, example: Tensor | None = None) -> int:
    """|S| = ceil(3 ln(8 eta eta* / delta)).

    eta: output activations of all prunable layers for one point; eta*: those of the widest. example: one point with
    its batch dimension (1, ...), needed to know a convolution's output size; a network of Linear layers on vectors
    does without. LeNet-300-100 gives 152 and CIFAR's ResNet-20 183 at the authors' delta of 1e-16.
    """
    if not 0 < delta < 1:
        raise OptionError(f"delta is a failure probability: it must be above 0 and below 1, not {delta}.")
    if example is None:
        sizes = _linear_sizes(model)
    else:
        sizes = []

        def observe(call: Call, output: Tensor) -> None:
            sizes.append(output.numel())

        with torch.no_grad(), tracing(model, observe):
            call_model(model, example[:1].to(model_device(model)))
    if not sizes:
        raise ModelError(f"{type(model).__name__} has no Linear or ConvNd layer whose activations could be counted.")
    return math.ceil(3 * math.log(8 * sum(sizes) * max(sizes) / delta))


def _linear_sizes(model: nn.Module) -> list[int]:
    for module in model.modules():
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.MultiheadAttention):
            raise OptionError(
                f"The output size of a {type(module).__name__} depends on its input: give sample_size one point as "
                "`example`, a tensor (1, ...)."
            )
    return [module.out_features for module in model.modules() if isinstance(module, nn.Linear)]
