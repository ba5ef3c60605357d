"""The package as users get it: the wheel, its contents, and what importing it costs."""

import os
import subprocess
import sys
from pathlib import Path

import sipp_bench


def test_tox_tests_the_installed_wheel() -> None:
    installed = "site-packages" in Path(sipp_bench.__file__).parts
    assert installed or "SIPP_BENCH_TEST_INSTALLED" not in os.environ


def test_importing_loads_no_heavy_library() -> None:
    code = "import torch, sys; before = set(sys.modules); import sipp_bench; print(*(set(sys.modules) - before))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    heavy = {"pandas", "scipy", "torchvision", "seaborn", "matplotlib", "pydantic", "typer", "sklearn", "hypothesis"}
    assert "sipp_bench.methods" in out
    assert not heavy & {name.partition(".")[0] for name in out}


def test_public_names_resolve() -> None:
    assert all(hasattr(sipp_bench, name) for name in sipp_bench.__all__)
    fixed = {"measure_sensitivity", "fit", "prune", "list_methods", "register_method", "bounds", "allocate"}
    assert fixed <= set(sipp_bench.__all__)
