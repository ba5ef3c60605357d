"""What is recorded about a machine: enough to compare runs, nothing that names its owner."""

import getpass
import json
import platform
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from installed import lacking

from sipp_bench.machine import system


def test_describes_machine_versions_and_commit() -> None:
    description = system.describe_system()
    assert description["machine"]["torch_threads"] == torch.get_num_threads()
    assert description["machine"]["cores"] >= 1
    assert description["machine"]["memory_bytes"] > 2**28
    assert description["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert description["versions"]["python"] == platform.python_version()
    assert set(description) == {"machine", "versions", "commit", "dirty"}
    assert json.loads(json.dumps(description)) == description


def test_names_no_owner() -> None:
    text = json.dumps(system.describe_system())
    assert str(Path.home()) not in text
    assert platform.node() not in text
    assert f'"{getpass.getuser()}"' not in text


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A repository with one commit that the package `pkg` lies in."""
    if shutil.which("git") is None:
        lacking("no git on this machine")
    package = tmp_path / "pkg"
    package.mkdir()
    (package / "__init__.py").write_text("")
    identity = ["-c", "user.name=x", "-c", "user.email=x@example.org"]
    for command in (["init", "-q"], ["add", "."], [*identity, "commit", "-q", "-m", "first"]):
        subprocess.run(["git", "-C", str(tmp_path), *command], check=True)
    return package


def test_commit_and_dirty_flag(checkout: Path) -> None:
    found = system._commit(checkout)
    assert len(found["commit"]) == 40
    assert found["dirty"] is False
    (checkout / "__init__.py").write_text("changed = True")
    assert system._commit(checkout) == {"commit": found["commit"], "dirty": True}


def test_a_package_installed_inside_another_checkout_has_no_commit(checkout: Path) -> None:
    installed = checkout / "venv" / "site-packages" / "sipp_bench"
    installed.mkdir(parents=True)
    assert system._commit(installed) == {"commit": None, "dirty": None}


def test_no_git_and_no_proc_are_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*arguments: object, **options: object) -> None:
        raise FileNotFoundError("not here")

    monkeypatch.setattr(subprocess, "run", missing)
    monkeypatch.setattr(Path, "read_text", missing)
    monkeypatch.delattr(system.os, "sysconf")
    description = system.describe_system()
    assert (description["commit"], description["dirty"]) == (None, None)
    assert description["machine"]["memory_bytes"] is None
