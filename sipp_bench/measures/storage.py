"""How many bytes a pruned network takes in a file."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import safetensors.numpy
import safetensors.torch
import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class FileSizes:
    """Bytes of a safetensors file, uncompressed, its header included.

    dense: every number, zeros too. csr: each masked weight as the compressed sparse rows of its (rows, rest) matrix:
    non-zero values, their int32 columns, and rows + 1 int32 offsets. bitmap: the non-zero values and one bit a weight.
    """

    dense: int
    csr: int
    bitmap: int


def file_sizes(model: nn.Module, masks: Mapping[str, Tensor]) -> FileSizes:
    """The sizes of `model`, already pruned, whose weights are 0 where `masks` (by name, bool) is False.

    Parameters and saved buffers, a tied weight once; without a mask they are stored dense in every encoding. Shapes are
    the architecture's, as for any state dict. Nothing is quantised, and no entropy coding is used.
    """
    state = _state(model)
    return FileSizes(
        dense=_size(state),
        csr=_size(_replaced(state, masks, csr)),
        bitmap=_size(_replaced(state, masks, bitmap)),
    )


def csr(weight: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """`values` (nnz,), `columns` (nnz,) int32 and `offsets` (rows + 1,) int32, row by row."""
    kept = mask.flatten(1)
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), kept.sum(1).cumsum(0)])
    return {
        "values": weight.flatten(1)[kept],
        "columns": kept.nonzero()[:, 1].to(torch.int32),
        "offsets": offsets.to(torch.int32),
    }


def bitmap(weight: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """`values` (nnz,) and `bits` (ceil(weights / 8),) uint8, in the order of the flat weight."""
    return {"values": weight[mask], "bits": torch.from_numpy(np.packbits(mask.numpy()))}


def _state(model: nn.Module) -> dict[str, Tensor]:
    saved = model.state_dict().keys()
    own = [*model.named_parameters(), *((name, buffer) for name, buffer in model.named_buffers() if name in saved)]
    return {name: tensor.detach().cpu() for name, tensor in own}


def _replaced(
    state: Mapping[str, Tensor], masks: Mapping[str, Tensor], encode: Callable[[Tensor, Tensor], dict[str, Tensor]]
) -> dict[str, Tensor]:
    stored: dict[str, Tensor] = {}
    for name, tensor in state.items():
        parts = encode(tensor, masks[name].cpu()) if name in masks else {"": tensor}
        stored |= {f"{name}.{part}" if part else name: content for part, content in parts.items()}
    return stored


def _size(state: Mapping[str, Tensor]) -> int:
    tensors = {name: tensor.contiguous() for name, tensor in state.items()}
    try:
        # Through numpy: for every length that is new to it, safetensors.torch keeps some memory for good (an array type
        # of ctypes), and pruned weights have new lengths in each cell of a long run.
        return len(safetensors.numpy.save({name: tensor.numpy() for name, tensor in tensors.items()}))
    except TypeError:  # a type that numpy has not, such as bfloat16
        return len(safetensors.torch.save(tensors))
