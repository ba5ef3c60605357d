"""Checkpoint files: reading anyone's without trusting them, and writing the zoo's so that damage is noticed.

A checkpoint of the zoo is one safetensors file whose header carries, as JSON under one name, its key, what
it was trained from, and a SHA-256 over all of that and every tensor. One file, so that no reader can see
half of a pair.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from sipp_bench.errors import CheckpointError
from sipp_bench.machine.files import load_tensors, read_regular

FORMAT = 1
_HEADER = "sipp-bench"
_WRAPPERS = ("state_dict", "model_state_dict", "model")


def encode(model: nn.Module, key: str, description: Mapping[str, Any]) -> bytes:
    """The bytes of a zoo checkpoint: the model's state and, in the header, `key`, `description` and their
    digest.

    The same arguments give the same bytes.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    header = {"key": key, "description": description, "sha256": _digest(tensors, key, description)}
    # One entry only: the library writes several in an order that changes from run to run.
    return safetensors.torch.save(tensors, {_HEADER: json.dumps(header, sort_keys=True)})


def load_checkpoint(model: nn.Module, path: Path | str, key: str | None = None) -> str:
    """Load a checkpoint into `model`, all of it or nothing; returns the SHA-256 of the file's bytes.

    The file is safetensors, or what torch.save made of a state dict, bare or under "state_dict",
    "model_state_dict" or "model"; a "module." that DataParallel put before every name is taken off. Nothing
    in the file is executed (torch.load with weights_only=True). key: if given, the file must be the zoo's
    checkpoint of that key.

    Raises CheckpointError, with the model untouched, when the file is missing, truncated, changed since it
    was written (checkpoints of the zoo only), not a checkpoint, or of another network: then it lists what
    is missing, what is unexpected, and which shapes differ.
    """
    path = Path(path)
    try:
        content = read_regular(path)
    except (OSError, ValueError) as error:  # a name with a NUL byte is no OSError
        reason = getattr(error, "strerror", None) or error
        raise CheckpointError(
            f"Cannot read the checkpoint {path}: {reason}. Check its path and permissions."
        ) from error
    is_safetensors = content[8:9] == b"{"  # after eight bytes of length, its header is a JSON object
    tensors = _parse_safetensors(content, path, key) if is_safetensors else _parse_torch(content, path, key)
    own = model.state_dict()
    prefixed = all(name.startswith("module.") for name in tensors)
    if prefixed and not any(name.startswith("module.") for name in own):
        tensors = {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
    _check_fit(own, tensors, path)
    for name, tensor in tensors.items():
        if tensor.layout != torch.strided or tensor.is_meta or tensor.is_quantized or tensor.is_nested:
            raise CheckpointError(f"{path} holds {name} sparse, quantized or without numbers. Save a dense state dict.")
    model.load_state_dict(tensors)
    return hashlib.sha256(content).hexdigest()


def _digest(tensors: Mapping[str, Tensor], key: str, description: Mapping[str, Any]) -> str:
    digest = hashlib.sha256(json.dumps([key, description], sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name}{tensor.dtype}{tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _parse_safetensors(content: bytes, path: Path, key: str | None) -> dict[str, Tensor]:
    try:
        tensors = safetensors.torch.load(content)
        header_length = int.from_bytes(content[:8], "little")
        entry = (json.loads(content[8 : 8 + header_length]).get("__metadata__") or {}).get(_HEADER)
        header = None if entry is None else json.loads(entry)
        if isinstance(header, dict) and "sha256" not in header:
            header = None  # what `Pruned.save` writes has notes under that name, and no digest
        intact = header is None or header["sha256"] == _digest(tensors, header["key"], header["description"])
    except Exception as error:  # on damaged bytes the readers of header, tensors and notes raise about anything
        raise CheckpointError(f"{path} is truncated or damaged: {_sentence(error)} {_delete(key)}") from error
    if not intact:
        raise CheckpointError(f"{path} was changed after it was written: its digest does not fit. {_delete(key)}")
    if key is not None and (header is None or header["key"] != key):
        raise CheckpointError(f"{path} is not the checkpoint that its name says. {_delete(key)}")
    return tensors


def _parse_torch(content: bytes, path: Path, key: str | None) -> dict[str, Tensor]:
    if key is not None:
        raise CheckpointError(f"{path} is truncated or damaged: it is no safetensors file. {_delete(key)}")
    try:
        loaded = load_tensors(content)
    except OSError as error:
        raise CheckpointError(
            f"{path} cannot be read as a checkpoint: {error.strerror}. Save model.state_dict() instead."
        ) from error
    for wrapper in _WRAPPERS:
        if isinstance(loaded, Mapping) and isinstance(loaded.get(wrapper), Mapping):
            loaded = loaded[wrapper]
            break
    if not isinstance(loaded, Mapping) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in loaded.items()
    ):
        raise CheckpointError(f"{path} holds no state dict, names with tensors. Save model.state_dict().")
    return dict(loaded)


def _sentence(error: Exception) -> str:
    """The first line of what an error says, as text that can be printed, ending with a full stop."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:300].encode("utf-8", "replace").decode().rstrip(".") + "."


def _delete(key: str | None) -> str:
    return "Get the file again." if key is None else "Delete that file, and it will be trained again."


def _check_fit(own: Mapping[str, Any], tensors: Mapping[str, Tensor], path: Path) -> None:
    # Checkpoints from before PyTorch 0.4.1 lack this counter, and torch fills it in.
    missing = [name for name in own if name not in tensors and not name.endswith("num_batches_tracked")]
    unexpected = [name for name in tensors if name not in own]
    differing = [
        f"{name} (file {_kind(tensors[name])}, network {_kind(value)})"
        for name, value in own.items()
        if name in tensors and _kind(tensors[name]) != _kind(value)
    ]
    problems = (("missing", missing), ("unexpected", unexpected), ("different", differing))
    if found := [f"{title}: {_shortened(names)}" for title, names in problems if names]:
        raise CheckpointError(
            f"{path} is of another network; nothing was loaded. {'; '.join(found)}. "
            "Name the network that it was saved from."
        )


def _kind(value: Any) -> str:
    """The shape of a tensor, and its type unless that is floating point: torch converts between those."""
    if not isinstance(value, Tensor):
        return type(value).__name__
    shape = "x".join(map(str, value.shape)) or "scalar"
    return shape if value.is_floating_point() else f"{shape} {str(value.dtype).removeprefix('torch.')}"


def _shortened(names: list[str], most: int = 8) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
