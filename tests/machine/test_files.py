"""Atomic writes: the old file or the new one, and nothing beside it."""

import os
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sipp_bench.errors import StoreError
from sipp_bench.machine import memory
from sipp_bench.machine.files import making, open_regular, read_regular, sweep, write_atomically


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


HANG = """
import os, sys
from sipp_bench.machine import files
os.fsync = lambda _: (print("writing", flush=True), sys.stdin.read())
"""


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[Callable[[], subprocess.Popen[str]]]:
    """Start a process that is in the middle of writing `x` until its input ends."""
    code = f"{HANG}files.write_atomically({str(tmp_path / 'x')!r}, 'slow')"
    started: list[subprocess.Popen[str]] = []

    def start() -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "writing\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_what_a_killed_writer_left_goes_with_the_next_one(
    tmp_path: Path, writer: Callable[[], subprocess.Popen[str]]
) -> None:
    for process in (writer(), writer()):
        process.kill()
        process.wait()
    assert sorted(path.name for path in tmp_path.iterdir()) != []
    write_atomically(tmp_path / "x", "new")
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_what_a_living_writer_has_stays(tmp_path: Path, writer: Callable[[], subprocess.Popen[str]]) -> None:
    alive, dead = writer(), writer()
    dead.kill()
    dead.wait()
    before = {path.name for path in tmp_path.iterdir()}
    assert len(before) == 2
    write_atomically(tmp_path / "x", "fast")
    sweep(tmp_path)
    assert len({path.name for path in tmp_path.iterdir()} & before) == 1
    assert (tmp_path / "x").read_text() == "fast"
    alive.communicate()
    assert alive.returncode == 0
    assert (tmp_path / "x").read_text() == "slow"
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_many_writers_of_one_file_at_once(tmp_path: Path) -> None:
    texts = [str(number) * 10_000 for number in range(6)]
    errors: list[BaseException] = []

    def write(text: str) -> None:
        try:
            for _ in range(20):
                write_atomically(tmp_path / "x", text)
                assert (tmp_path / "x").read_text() in texts
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=write, args=(text,)) for text in texts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_a_sweep_takes_nothing_but_temporaries(tmp_path: Path) -> None:
    kept = ["x", ".hidden", ".x.tmp", "x.0.tmp", ".editor.swp.tmp", ".x.12.tmp", "outside"]
    gone = [".x.0.tmp", ".run.json.k3_x9abc.tmp"]
    for name in (*kept, *gone):
        (tmp_path / name).write_text(name)
    (tmp_path / ".folder.1.tmp").mkdir()
    (tmp_path / ".link.2.tmp").symlink_to(tmp_path / "outside")
    os.mkfifo(tmp_path / ".pipe.3.tmp")
    sweep(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} - {".pipe.3.tmp"} == {*kept, ".folder.1.tmp", ".link.2.tmp"}
    assert (tmp_path / "outside").read_text() == "outside"
    sweep(tmp_path / "absent")


def test_names_that_are_taken_by_other_things_are_passed_over(tmp_path: Path) -> None:
    (tmp_path / ".x.0.tmp").symlink_to(tmp_path / "outside")
    (tmp_path / ".x.1.tmp").mkdir()
    write_atomically(tmp_path / "x", "new")
    assert (tmp_path / "x").read_text() == "new"
    assert not (tmp_path / "outside").exists()
    for slot in range(2, 8):
        (tmp_path / f".x.{slot}.tmp").mkdir()
    with pytest.raises(StoreError, match="8 others are writing it"):
        write_atomically(tmp_path / "x", "newer")


@pytest.mark.parametrize("kind", ["FIFO", "socket", "folder", "device"])
def test_what_is_no_regular_file_is_neither_read_nor_replaced(tmp_path: Path, kind: str) -> None:
    path = strange(tmp_path / "x", kind)
    for use in (open_regular, read_regular):
        with pytest.raises(OSError, match=f"it is a {kind}, not a regular file"):
            use(path)
    with pytest.raises(StoreError, match=f"it is a {kind}"):
        write_atomically(path, "new")
    (tmp_path / ".y.lock").symlink_to(path)
    with pytest.raises(StoreError, match=f"it is a {kind}"), making(tmp_path / "y"):
        pass
    assert {entry.name for entry in tmp_path.iterdir()} <= {"x", ".y.lock"}


def strange(path: Path, kind: str) -> Path:
    """Something that is no regular file: at `path`, or elsewhere."""
    if kind == "FIFO":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind(str(path))
    elif kind == "folder":
        path.mkdir()
    else:
        return Path("/dev/zero")
    return path


def test_a_file_beyond_memory_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (tmp_path / "huge").open("wb") as file:
        file.truncate(51 * 10**9)  # a hole: no disk is used
    monkeypatch.setattr(memory, "free_bytes", lambda device: 10**9)
    with pytest.raises(OSError, match=r"it takes 51\.0 GB of memory, and there are 0\.8 for it"):
        read_regular(tmp_path / "huge")
