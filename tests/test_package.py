"""The package as users get it: the wheel, its contents, and what importing it costs."""

import ast
import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

import sipp_bench


def test_tox_tests_the_installed_wheel() -> None:
    installed = "site-packages" in Path(sipp_bench.__file__).parts
    assert installed or "SIPP_BENCH_TEST_INSTALLED" not in os.environ


def test_importing_loads_no_heavy_library() -> None:
    code = "import torch, sys; old = {*sys.modules}; import sipp_bench as sb; sb.fit; print(*{*sys.modules} - old)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    heavy = {"pandas", "scipy", "torchvision", "seaborn", "matplotlib", "pydantic", "typer", "sklearn", "hypothesis"}
    assert "sipp_bench.methods" in out
    assert not heavy & {name.partition(".")[0] for name in out}


def test_names_are_imported_when_they_are_used_and_are_what_type_checkers_take_them_for() -> None:
    tree = ast.parse(Path(sipp_bench.__file__).read_text(encoding="utf-8"))
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module.startswith("sipp_")]
    said = {alias.name: node.module for node in imports for alias in node.names}
    for name in sipp_bench.__all__:
        module = importlib.import_module(said[name])
        expected = getattr(module, name) if hasattr(module, name) else importlib.import_module(f"{said[name]}.{name}")
        assert getattr(sipp_bench, name) is expected, name
    with pytest.raises(AttributeError, match="nothing"):
        sipp_bench.nothing  # noqa: B018  # the access is the test
    assert set(dir(sipp_bench)) == set(sipp_bench.__all__)


def test_public_names_resolve() -> None:
    assert all(hasattr(sipp_bench, name) for name in sipp_bench.__all__)
    fixed = {"measure_sensitivity", "fit", "prune", "list_methods", "register_method", "bounds", "allocate"}
    assert fixed <= set(sipp_bench.__all__)
