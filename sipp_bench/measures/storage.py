"""How many bytes a pruned network takes in a file."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

import safetensors.numpy
import safetensors.torch
from torch import Tensor, nn

from sipp_bench.compression.changes import Change, Dense


@dataclass(frozen=True)
class FileSizes:
    """Bytes of a safetensors file, uncompressed, its header included.

    dense: every number, zeros too. csr: each masked weight as the compressed sparse rows of its (rows, rest) matrix:
    non-zero values, their int32 columns, and rows + 1 int32 offsets. bitmap: the non-zero values and one bit a weight.
    """

    dense: int
    csr: int
    bitmap: int


def file_sizes(model: nn.Module, changes: Mapping[str, Change]) -> FileSizes:
    """The sizes of `model`, already pruned, whose weights became what `changes` (by name) say.

    Parameters and saved buffers, a tied weight once; without a change they are stored dense in every encoding. Shapes
    are the architecture's, as for any state dict. Nothing is quantised, and no entropy coding is used.
    """
    state, parameters = _state(model), dict(model.named_parameters())
    stored: dict[str, dict[str, Tensor]] = {encoding: {} for encoding in ("dense", "csr", "bitmap")}
    for name, tensor in state.items():
        # At the values that the network has now, which may have been retrained.
        now = dataclasses.replace(changes[name], weight=parameters[name].detach()) if name in changes else Dense(tensor)
        for encoding, parts in now.encodings().items():
            stored[encoding] |= {f"{name}.{part}" if part else name: content for part, content in parts.items()}
    return FileSizes(**{encoding: _size(tensors) for encoding, tensors in stored.items()})


def _state(model: nn.Module) -> dict[str, Tensor]:
    saved = model.state_dict().keys()
    own = [*model.named_parameters(), *((name, buffer) for name, buffer in model.named_buffers() if name in saved)]
    return {name: tensor.detach().cpu() for name, tensor in own}


def _size(state: Mapping[str, Tensor]) -> int:
    tensors = {name: tensor.contiguous() for name, tensor in state.items()}
    try:
        # Through numpy: for every length that is new to it, safetensors.torch keeps some memory for good (an array type
        # of ctypes), and pruned weights have new lengths in each cell of a long run.
        return len(safetensors.numpy.save({name: tensor.numpy() for name, tensor in tensors.items()}))
    except TypeError:  # a type that numpy has not, such as bfloat16
        return len(safetensors.torch.save(tensors))
