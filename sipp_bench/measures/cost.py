"""What pruning saves in theory. Masks alone save nothing: a dense kernel multiplies by zeros as by anything else."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from sipp_bench.compression.changes import Change
from sipp_bench.measures.modes import eval_mode
from sipp_bench.network.points import call_model, model_device
from sipp_bench.network.tracing import Call, tracing


def compression_ratio(model: nn.Module, changes: Mapping[str, Change]) -> float:
    """Parameters of the whole network over those left by `changes` (by name); infinite where none is left.

    Original size over new size, as Blalock et al. 2020, "What is the state of neural network pruning?"
    (arXiv:2003.03033), ask for; biases and normalisation count, a tied weight once, indices and buffers not.
    """
    total = sum(parameter.numel() for parameter in model.parameters())
    left = total - sum(change.effective().numel() - change.numbers() for change in changes.values())
    return total / left if left else math.inf


def multiply_adds(model: nn.Module, example: Tensor, changes: Mapping[str, Change] | None = None) -> int:
    """Theoretical multiply-adds of all Linear and ConvNd layers for one point `example` (1, ...).

    Each application of a weight at a patch is one multiply-add, positions in the padding included; of a changed weight
    only what is stored counts, which supposes kernels that skip zeros for free. Dense kernels do not.
    """
    total = 0

    def observe(call: Call, output: Tensor) -> None:
        nonlocal total
        # count_patches is per call, over all samples: `example` holds one.
        patches, change = call.count_patches(), (changes or {}).get(call.name)
        total += patches * call.weight.numel() if change is None else change.multiply_adds(patches, call.rows)

    with torch.no_grad(), tracing(model, observe):
        call_model(model, example[:1].to(model_device(model)))
    return total


def operations(model: nn.Module, example: Tensor) -> int:
    """Multiply-adds of the dense network for one point `example` (1, ...), half of torch's FlopCounterMode.

    All matrix products and convolutions, those between activations within attention included; element-wise operations,
    such as activations, normalisation and biases, are not counted.
    """
    from torch.utils.flop_counter import FlopCounterMode  # slow to import

    # Fused attention would be counted as nothing.
    with eval_mode(model), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        call_model(model, example[:1].to(model_device(model)))
    return int(counter.get_total_flops()) // 2


def theoretical_speedup(model: nn.Module, example: Tensor, changes: Mapping[str, Change]) -> float:
    """Multiply-adds of the dense network over those left: total / (total - sum_l M_l (1 - nonzero_l / size_l)).

    total: `operations`; M_l: those of masked layer l, which its share of non-zero weights scales (`multiply_adds`,
    which counts row by row where attention applies parts of a weight). The ratio of Blalock et al. 2020
    (arXiv:2003.03033). It supposes kernels that skip every zero for free; dense kernels skip none, so that masks
    alone give no speed-up.
    """
    dense, pruned = multiply_adds(model, example), multiply_adds(model, example, changes)
    return speedup(operations(model, example), dense, pruned)


def speedup(total: int, dense: int, pruned: int) -> float:
    """`theoretical_speedup` from its counts: all `operations`; `multiply_adds` of weights, before and after pruning.

    Infinite where none is left.
    """
    left = total - dense + pruned
    return total / left if left else math.inf
