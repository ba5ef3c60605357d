"""Disks that are full or cannot be written, and two runs at once: nothing is lost, and errors say what to do.

Kills are in test_runner.py; tests/reliability/faults.py does all of it a hundred times and records it.
"""

import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from run_folders import results

import sipp_bench
from sipp_bench.bench.suite import parse_suite
from sipp_bench.store.folder import load_run

SUITE = """
name = "tiny"
seeds = [0]
keep = [0.5, 0.1]
points = 16

[[target]]
network = "lenet-300-100"
data = "digits"

[[method]]
name = "sipp-det"

[[method]]
name = "random"
"""


def can_mount() -> bool:
    """Whether a process may have disks of its own: as root, or in a user namespace."""
    command = ["unshare", "-rm", "mount", "-t", "tmpfs", "none", "/mnt"]
    try:
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except OSError:
        return False


needs_mounts = pytest.mark.skipif(
    not can_mount(), reason="a disk of its own needs Linux, util-linux, and root or user namespaces"
)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with the suite, a run of it from beginning to end, and the networks that it trained."""
    place = tmp_path_factory.mktemp("done")
    (place / "tiny.toml").write_text(SUITE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SIPP_BENCH_CACHE", str(place / "cache"))
        assert run(place / "tiny.toml", place / "run")[0] == 0
        yield place


@pytest.fixture
def suite(done: Path) -> Path:
    return done / "tiny.toml"


def command(suite: Path, folder: Path) -> list[str]:
    return [sys.executable, "-m", "sipp_bench", "run", str(suite), "-o", str(folder), "--no-report"]


def run(suite: Path, folder: Path, before: str = "") -> tuple[int, str]:
    """Exit code and last line of the command; before: a shell's line that prepares a disk, in a namespace."""
    line = command(suite, folder)
    if before:
        line = ["unshare", "-rm", "sh", "-c", f'{before} && exec "$@"', "sh", *line]
    done = subprocess.run(line, capture_output=True, text=True, check=False, cwd=Path(sipp_bench.__file__).parents[1])
    assert "Traceback" not in done.stderr
    return done.returncode, done.stderr.rpartition("\r")[2].strip()


def ids() -> list[str]:
    return [cell.id for cell in parse_suite(SUITE, "x").cells()]


@needs_mounts
def test_a_full_disk_stops_the_run_and_more_room_lets_it_go_on(suite: Path, done: Path, tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "kept").mkdir()
    # The disk goes with the process: what is on it is copied away, as its owner would.
    small = f'mount -t tmpfs -o size=64k none {tmp_path}/disk && trap "" EXIT'
    script = f'{small}; "$@"; code=$?; cp -a {tmp_path}/disk/run {tmp_path}/kept/; exit $code'
    line = ["unshare", "-rm", "sh", "-c", script, "sh", *command(suite, tmp_path / "disk" / "run")]
    full = subprocess.run(line, capture_output=True, text=True, check=False, cwd=Path(sipp_bench.__file__).parents[1])
    assert full.returncode == 2, full.stderr
    assert "No space left on device. Choose a folder that you may write to and that has space left." in full.stderr
    assert "Traceback" not in full.stderr
    folder = tmp_path / "kept" / "run"
    assert 0 < len(load_run(folder).cells) < len(ids())
    assert run(suite, folder)[0] == 0
    assert results(folder) == results(done / "run")


@needs_mounts
def test_a_folder_that_cannot_be_written_is_refused_and_can_be_read(suite: Path, done: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(done / "run", tmp_path / "run"))
    (folder / "cells" / f"{ids()[0]}.json").unlink()
    before = results(folder)
    code, said = run(suite, folder, f"mount --bind {folder} {folder} && mount -o remount,ro,bind {folder}")
    assert code == 2
    assert said == f"Error: Cannot write to the run folder {folder}: Read-only file system. Choose another with -o."
    assert results(folder) == before
    assert len(load_run(folder).cells) == len(ids()) - 1


def test_files_that_may_not_grow_stop_the_run(suite: Path, done: Path, tmp_path: Path) -> None:
    """Without any privilege: a limit of the system on the size of a file, which arrays of bounds exceed."""
    limited = subprocess.run(
        command(suite, tmp_path / "run"), capture_output=True, text=True, check=False,
        cwd=Path(sipp_bench.__file__).parents[1],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (8000, 8000)),
    )  # fmt: skip
    assert limited.returncode == 2
    assert "File too large. Choose a folder" in limited.stderr
    assert "Traceback" not in limited.stderr
    assert not [file for file in (tmp_path / "run" / "cells").iterdir() if file.name.endswith(".tmp")]
    assert len(load_run(tmp_path / "run").cells) < len(ids())
    assert run(suite, tmp_path / "run")[0] == 0
    assert results(tmp_path / "run") == results(done / "run")


def test_of_two_runs_at_once_one_does_the_work(suite: Path, tmp_path: Path) -> None:
    place = Path(sipp_bench.__file__).parents[1]
    first = subprocess.Popen(command(suite, tmp_path / "run"), stderr=subprocess.DEVNULL, cwd=place)
    while first.poll() is None and not (tmp_path / "run" / "run.json").exists():
        time.sleep(0.01)
    if first.poll() is None:
        os.kill(first.pid, 19)  # SIGSTOP: it stays in the middle of its work, however slow the second is
        try:
            code, said = run(suite, tmp_path / "run")
        finally:
            os.kill(first.pid, 18)
        assert code == 2
        expected = f"Another process is running in {tmp_path / 'run'}. Wait for it, or choose another folder with -o."
        assert said == f"Error: {expected}"
    assert first.wait() == 0
    assert list(load_run(tmp_path / "run").cells["id"]) == ids()
