"""The house: which package may import which, and that nobody inside it imports the face."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import sipp_bench

ROOT = Path(__file__).parents[1]
PACKAGE = Path(sipp_bench.__file__).parent


def test_the_contracts_are_kept() -> None:
    """Layers, readers apart from the bench, the library apart from the checks, no circles: see pyproject.toml."""
    command = "from importlinter.cli import lint_imports; raise SystemExit(lint_imports(is_debug_mode=False))"
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(PACKAGE.parent)!r}); {command}"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]


def test_nobody_inside_imports_the_face() -> None:
    for file in PACKAGE.rglob("*.py"):
        if file == PACKAGE / "__init__.py":
            continue
        for node in ast.walk(ast.parse(file.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            assert "sipp_bench" not in names, f"{file.name} imports the face: take names from where they are made"
            if isinstance(node, ast.ImportFrom) and node.module == "sipp_bench":
                inside = {path.stem for path in PACKAGE.iterdir()}
                assert {alias.name for alias in node.names} <= inside, f"{file.name}, line {node.lineno}"


def test_the_root_has_the_face_refusals_and_closed_forms_only() -> None:
    assert {path.name for path in PACKAGE.glob("*.py")} == {"__init__.py", "__main__.py", "errors.py", "bounds.py"}


@pytest.mark.parametrize("package", sorted(path.name for path in PACKAGE.iterdir() if (path / "__init__.py").exists()))
def test_every_package_says_what_it_is_for(package: str) -> None:
    doc = ast.get_docstring(ast.parse((PACKAGE / package / "__init__.py").read_text()))
    assert doc
    assert doc.splitlines()[0].endswith((".", ":"))
