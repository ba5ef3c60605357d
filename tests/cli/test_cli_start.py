"""The beginning of the command line: --help without torch, and an interrupt at any moment as one line and code 130."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

SLOW = {
    "sklearn",
    "torch",
    "numpy",
    "scipy",
    "pandas",
    "matplotlib",
    "psutil",
    "torchvision",
    "theory_checks",
}


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["verify", "--help"], ["--version"], ["rum"]])
def test_help_and_mistakes_do_without_torch(arguments: list[str]) -> None:
    code = (
        "import atexit, sys; sys.argv[0] = 'sipp-bench'; from sipp_bench.__main__ import main; "
        f"atexit.register(lambda: print(*{SLOW!r} & sys.modules.keys(), file=sys.stderr)); main()"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == (2 if arguments == ["rum"] else 0)
    assert done.stderr.splitlines()[-1] == ""


def test_completion_does_without_torch() -> None:
    """The variable by which a shell asks for the names of commands."""
    code = "import sys, sipp_bench.cli.commands; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("where", ["torch", "pydantic", "typer"])
def test_an_interrupt_while_a_library_is_imported_is_one_line(tmp_path: Path, where: str) -> None:
    """The library is one that swallows what is raised in it, as some do."""
    (tmp_path / f"{where}.py").write_text(
        "import time\nprint('importing', flush=True)\n"
        "try:\n    time.sleep(60)\nexcept BaseException:\n    time.sleep(60)\n"
    )
    root = str(Path(__file__).parents[2])
    process = subprocess.Popen(
        [sys.executable, "-m", "sipp_bench", "list", "suites"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), root])},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "importing\n"
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=50)
    assert (process.returncode, said) == (130, "\nStopped.\n")


def test_an_interrupt_of_a_command_is_one_line() -> None:
    code = (
        "import signal, sipp_bench.cli.results as r; from sipp_bench import __main__\n"
        "from sipp_bench.store import export\n"
        "export.export_run = lambda *_: signal.raise_signal(signal.SIGINT)\n"
        "import sys; sys.argv[1:] = ['export', 'x', '-o', 'y']; __main__.main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (130, "\nStopped.\n")
