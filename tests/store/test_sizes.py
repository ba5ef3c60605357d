"""Points, images and checkpoints that are no regular files or do not fit into memory: a sentence, at once."""

import io
import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from sipp_bench.bench.suite import load_suite
from sipp_bench.cli import main
from sipp_bench.compare.benchmarks import read
from sipp_bench.errors import CheckpointError, PointsError, SippBenchError, SuiteError
from sipp_bench.machine import memory
from sipp_bench.methods.snip import Snip
from sipp_bench.network.point_files import read_points
from sipp_bench.store.records import read_json
from sipp_bench.zoo.checkpoints import load_checkpoint


def checkpoint(path: Path) -> str:
    return load_checkpoint(nn.Linear(2, 2), path)


READERS: dict[str, Callable[[Path], object]] = {
    "x.npy": read_points,
    "x.npz": read_points,
    "x.safetensors": read_points,
    "x.pt": read_points,
    "images/x.png": lambda path: read_points(path.parent),
    "net.pt": checkpoint,
    "net.safetensors": checkpoint,
    "suite.toml": load_suite,
    "cell.json": read_json,
    "times.json": read,
}


@pytest.mark.parametrize("name", READERS)
def test_a_fifo_is_refused_at_once(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    os.mkfifo(path)
    with pytest.raises(SippBenchError, match="it is a FIFO, not a regular file") as caught:
        READERS[name](path)
    assert name in str(caught.value)


@pytest.mark.parametrize("name", ["x.npy", "suite.toml", "net.pt"])
def test_a_link_to_a_device_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).symlink_to("/dev/zero")
    with pytest.raises((PointsError, SuiteError, CheckpointError), match="it is a device, not a regular file"):
        READERS[name](tmp_path / name)


def small_memory(monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    monkeypatch.setattr(memory, "free_bytes", lambda device: free)


def test_a_huge_array_is_refused_and_its_first_points_are_read(tmp_path: Path) -> None:
    """51 GB, of which none is on the disk."""
    np.lib.format.open_memmap(tmp_path / "x.npy", mode="w+", dtype=np.float32, shape=(1_000_000_000, 13))
    if memory.room(None, torch.device("cpu")) < 100e9:
        with pytest.raises(PointsError, match=r"x\.npy cannot be read: it takes 104\.0 GB of memory.*limit"):
            read_points(tmp_path / "x.npy")
    assert read_points(tmp_path / "x.npy", limit=3).shape == (3, 13)


def test_what_unpacks_to_more_than_there_is_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.savez_compressed(tmp_path / "x.npz", points=np.zeros((1000, 1000)))
    torch.save(nn.Linear(2, 2).state_dict(), tmp_path / "plain.pt")
    with zipfile.ZipFile(tmp_path / "plain.pt") as plain, zipfile.ZipFile(tmp_path / "net.pt", "w", 8) as packed:
        for name in plain.namelist():
            packed.writestr(name, plain.read(name) + (bytes(8_000_000) if name.endswith("data/0") else b""))
    assert (tmp_path / "x.npz").stat().st_size < 100_000
    assert (tmp_path / "net.pt").stat().st_size < 100_000
    small_memory(monkeypatch, 4_000_000)
    with pytest.raises(PointsError, match=r"x\.npz cannot be read: it takes 0\.0 GB of memory.*fewer points"):
        read_points(tmp_path / "x.npz")
    with pytest.raises(CheckpointError, match=r"net\.pt cannot be read as a checkpoint: it takes 0\.0 GB of memory"):
        checkpoint(tmp_path / "net.pt")


def test_a_huge_image_is_refused_before_it_is_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    buffer = io.BytesIO()
    Image.new("1", (9000, 9000)).save(buffer, format="PNG")
    (tmp_path / "x.png").write_bytes(buffer.getvalue())
    small_memory(monkeypatch, 100_000_000)
    with pytest.raises(PointsError, match=r"x\.png cannot be read as an image: it takes 0\.6 GB of memory"):
        read_points(tmp_path)


def test_as_many_images_as_do_not_fit_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(3):
        Image.new("L", (2, 2)).save(tmp_path / f"{number}.png")
    small_memory(monkeypatch, 2_000_000)
    with pytest.raises(PointsError, match=r"The 3 images in .* cannot be read: it takes .* GB.*limit"):
        read_points(tmp_path)
    assert len(read_points(tmp_path, limit=1)) == 1


@pytest.mark.parametrize("content", ["print", "text"])
def test_a_wrong_checkpoint_is_refused_in_our_own_words(tmp_path: Path, content: str) -> None:
    """torch's say how to let the file run its code."""
    if content == "print":
        torch.save({"weight": print}, tmp_path / "net.pt")
    else:
        (tmp_path / "net.pt").write_text(content)
    for use in (checkpoint, read_points):
        with pytest.raises(SippBenchError) as caught:
            use(tmp_path / "net.pt")
        assert "weights_only" not in str(caught.value)
        assert ("it holds print" if content == "print" else "nothing that torch.save wrote") in str(caught.value)


@pytest.mark.parametrize("method", [Snip.name, "wanda"])
def test_snip_says_what_stands_for_labels(
    tmp_path: Path, method: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parents[2])
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(5, 6)))
    arguments = ["prune", "--model", "tests.cli.test_cli:tiny_network", "--keep", "0.5", "--method", method, "--points"]
    with pytest.raises(SystemExit) as caught:
        main([*arguments, str(tmp_path / "x.npy"), "-o", str(tmp_path / "out.pt")])
    assert (caught.value.code or 0) == 0
    assert ("the network's own predictions" in capsys.readouterr().err) == (method == "snip")
