"""Loading checkpoints: all or nothing, and never anything that was damaged or made for another network."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

import sipp_bench as sb
from sipp_bench.errors import CheckpointError
from sipp_bench.zoo import checkpoints
from sipp_bench.zoo.training import load_checkpoint

KEY = "k" * 64


def network(seed: int, width: int = 4) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, width), nn.BatchNorm1d(width), nn.Linear(width, 2))


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def refuse(path: Path, message: str, key: str | None = None) -> None:
    """Loading raises CheckpointError with the file's name and `message`, and leaves the model as it was."""
    model = network(1)
    before = state(model)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_checkpoint(model, path, key)
    assert str(path) in str(caught.value)
    assert equal(state(model), before)


@pytest.fixture
def zoo_file(tmp_path: Path) -> Path:
    path = tmp_path / "net.safetensors"
    path.write_bytes(checkpoints.encode(network(0), KEY, {"network": "x", "seed": 0}))
    return path


SAVERS: dict[str, Callable[[dict[str, Any], Path], None]] = {
    "safetensors": lambda tensors, path: safetensors.torch.save_file(tensors, path),
    "torch": lambda tensors, path: torch.save(tensors, path),
    "old torch": lambda tensors, path: torch.save(tensors, path, _use_new_zipfile_serialization=False),
    "state_dict": lambda tensors, path: torch.save({"epoch": 3, "state_dict": tensors}, path),
    "model_state_dict": lambda tensors, path: torch.save({"model_state_dict": tensors}, path),
    "model": lambda tensors, path: torch.save({"model": tensors}, path),
    "parallel": lambda tensors, path: torch.save({f"module.{k}": v for k, v in tensors.items()}, path),
    "half": lambda tensors, path: torch.save({k: to_half(v) for k, v in tensors.items()}, path),
    "no counter": lambda tensors, path: torch.save(
        {k: v for k, v in tensors.items() if not k.endswith("num_batches_tracked")}, path
    ),
}


def to_half(tensor: Tensor) -> Tensor:
    return tensor.half() if tensor.is_floating_point() else tensor


@pytest.mark.parametrize("how", SAVERS)
def test_what_others_saved_is_loaded(tmp_path: Path, how: str) -> None:
    path = tmp_path / "checkpoint"
    saved = state(network(0))
    SAVERS[how](saved, path)
    model = network(1)
    assert load_checkpoint(model, path) == hashlib.sha256(path.read_bytes()).hexdigest()
    if how == "half":
        saved = {name: to_half(value).to(value.dtype) for name, value in saved.items()}
    assert equal(state(model), saved)


def test_what_pruning_saved_is_loaded(tmp_path: Path) -> None:
    pruned = sb.prune(network(0), torch.rand(5, 3), method="magnitude", keep=0.5)
    path = pruned.save(tmp_path / "pruned.safetensors", {"keep": 0.5})
    model = network(1)
    load_checkpoint(model, path)
    assert equal(state(model), state(pruned.model))


def test_a_model_whose_own_names_begin_with_module_keeps_them(tmp_path: Path) -> None:
    wrapped = nn.Sequential()
    wrapped.add_module("module", network(0))
    torch.save(wrapped.state_dict(), tmp_path / "x.pt")
    other = nn.Sequential()
    other.add_module("module", network(1))
    load_checkpoint(other, tmp_path / "x.pt")
    assert equal(state(other), state(wrapped))


def test_missing_unexpected_and_differing_tensors_are_all_listed(tmp_path: Path) -> None:
    tensors = state(network(0))
    tensors["extra.weight"] = tensors.pop("2.bias")
    tensors["0.weight"] = torch.zeros(5, 3)
    torch.save(tensors, tmp_path / "x.pt")
    refuse(
        tmp_path / "x.pt",
        r"missing: 2\.bias; unexpected: extra\.weight; different: 0\.weight \(file 5x3, network 4x3\)",
    )


def test_a_checkpoint_of_a_wider_network_is_refused(tmp_path: Path) -> None:
    safetensors.torch.save_file(network(0, width=5).state_dict(), tmp_path / "x.safetensors")
    refuse(tmp_path / "x.safetensors", "another network; nothing was loaded")


def test_integers_in_place_of_weights_are_refused(tmp_path: Path) -> None:
    tensors = state(network(0))
    tensors["0.weight"] = tensors["0.weight"].to(torch.int8)
    torch.save(tensors, tmp_path / "x.pt")
    refuse(tmp_path / "x.pt", r"0\.weight \(file 4x3 int8, network 4x3\)")


def test_files_that_are_missing_or_folders_are_refused(tmp_path: Path) -> None:
    refuse(tmp_path / "absent.safetensors", "No such file")
    refuse(tmp_path, "it is a folder, not a regular file")


@pytest.mark.parametrize("content", [b"", b"x", b"garbage" * 50, b"\x80\x02}q\x00.", b"PK\x03\x04 no archive"])
def test_garbage_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.pt").write_bytes(content)
    refuse(tmp_path / "x.pt", "cannot be read as a checkpoint|holds no state dict|another network")


@pytest.mark.parametrize("content", [[1, 2], {"epoch": 3}, {"state_dict": {"0.weight": 1.5}}, torch.ones(2)])
def test_files_that_hold_no_state_dict_are_refused(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "x.pt")
    refuse(tmp_path / "x.pt", "holds no state dict")


class Malicious:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.touch, (self.path,)


def test_code_in_a_pickle_is_refused_and_not_run(tmp_path: Path) -> None:
    torch.save({"state_dict": Malicious(tmp_path / "ran")}, tmp_path / "x.pt")
    refuse(tmp_path / "x.pt", "refused because loading would run its code")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("how", ["safetensors", "torch"])
@pytest.mark.parametrize("share", [0.01, 0.5, 0.99])
def test_truncated_files_are_refused(tmp_path: Path, how: str, share: float) -> None:
    path = tmp_path / "checkpoint"
    SAVERS[how](state(network(0)), path)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    refuse(path, "truncated")


def test_the_same_network_gives_the_same_bytes_and_every_part_counts() -> None:
    encode = checkpoints.encode
    content = encode(network(0), KEY, {"a": 1, "b": 2})
    assert encode(network(0), KEY, {"b": 2, "a": 1}) == content
    others = [encode(network(1), KEY, {"a": 1, "b": 2}), encode(network(0), KEY, {"a": 1, "b": 3})]
    assert all(other != content for other in others)


def test_a_zoo_checkpoint_is_plain_safetensors(zoo_file: Path) -> None:
    assert equal(safetensors.torch.load_file(zoo_file), state(network(0)))
    model = network(1)
    load_checkpoint(model, zoo_file, KEY)
    assert equal(state(model), state(network(0)))


def test_every_flipped_byte_of_a_zoo_checkpoint_is_noticed(zoo_file: Path) -> None:
    content = zoo_file.read_bytes()
    for position in range(0, len(content), 7):
        changed = bytearray(content)
        changed[position] ^= 0x04
        zoo_file.write_bytes(changed)
        refuse(zoo_file, "Delete that file", KEY)


def test_a_zoo_checkpoint_under_another_name_is_noticed(zoo_file: Path) -> None:
    refuse(zoo_file, "not the checkpoint that its name says", "another key")


def test_a_foreign_file_in_the_cache_is_noticed(zoo_file: Path) -> None:
    safetensors.torch.save_file(network(0).state_dict(), zoo_file)
    refuse(zoo_file, "Delete that file", KEY)
