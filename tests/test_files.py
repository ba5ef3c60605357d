"""Atomic writes: the old file or the new one, and nothing beside it."""

import os
import stat
import threading
import time
from pathlib import Path

import pytest

from sipp_bench.errors import StoreError
from sipp_bench.files import making, write_atomically


def test_writes_text_and_bytes_into_new_folders(tmp_path: Path) -> None:
    path = write_atomically(tmp_path / "a" / "b" / "c.txt", "Zürich\n")
    assert path.read_bytes() == "Zürich\n".encode()
    assert write_atomically(str(path), b"\x00\xff") == path
    assert path.read_bytes() == b"\x00\xff"
    assert [p.name for p in path.parent.iterdir()] == ["c.txt"]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt(), MemoryError()])
@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_an_interrupted_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, error: BaseException
) -> None:
    path = tmp_path / "result.json"
    write_atomically(path, "old")

    def interrupted(*arguments: object) -> None:
        raise error

    monkeypatch.setattr(os if step == "fsync" else Path, step, interrupted)
    expected = StoreError if isinstance(error, OSError) else type(error)
    with pytest.raises(expected) as raised:
        write_atomically(path, "new")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["result.json"]
    if expected is StoreError:
        assert str(path) in str(raised.value)
        assert "No space left" in str(raised.value)


def test_the_new_file_is_complete_before_it_has_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "result.json"
    write_atomically(path, "old")
    replace, seen = Path.replace, []

    def watched(self: Path, target: Path) -> Path:
        seen.append((path.read_text(), self.read_text(), self.parent == path.parent))
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", watched)
    write_atomically(path, "new")
    assert seen == [("old", "new", True)]


def test_a_folder_that_is_a_file_and_a_file_that_is_a_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("kept")
    with pytest.raises(StoreError, match="file"):
        write_atomically(tmp_path / "file" / "x.txt", "new")
    assert (tmp_path / "file").read_text() == "kept"
    (tmp_path / "folder" / "full").mkdir(parents=True)
    with pytest.raises(StoreError, match="folder"):
        write_atomically(tmp_path / "folder", "new")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder"]
    with pytest.raises(StoreError):
        write_atomically(tmp_path / ("x" * 300), "new")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission(tmp_path: Path) -> None:
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    with pytest.raises(StoreError, match="locked"):
        write_atomically(locked / "x.txt", "new")


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_permissions_are_those_of_the_umask(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        path = write_atomically(tmp_path / "x.txt", "text")
        assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask
    finally:
        assert os.umask(before) == umask


def test_one_maker_at_a_time_and_no_lock_left_behind(tmp_path: Path) -> None:
    path, made = tmp_path / "folder" / "network", list[int]()

    def make() -> None:
        with making(path):
            if not path.exists():
                made.append(1)
                time.sleep(0.05)
                path.touch()

    threads = [threading.Thread(target=make) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert made == [1]
    assert list(path.parent.iterdir()) == [path]
