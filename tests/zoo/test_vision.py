"""torchvision imports beside any torch; with operators that cannot load, their names alone are declared."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sipp_bench.errors import ModelError
from sipp_bench.zoo import vision


def test_the_import_is_the_real_package_and_is_kept() -> None:
    package = vision.torchvision()
    assert package.__name__ == "torchvision"
    assert "resnet18" in package.models.list_models()
    assert vision.torchvision() is package


def test_operators_are_declared_from_the_registrations(tmp_path: Path) -> None:
    registrations = tmp_path / "registrations.py"
    registrations.write_text('@torch.library.register_fake("torchvision::zoo_test_operator")\ndef f(): ...\n')
    assert not hasattr(torch.ops.torchvision, "zoo_test_operator")
    vision._declare_operators(registrations)
    assert hasattr(torch.ops.torchvision, "zoo_test_operator")
    vision._declare_operators(registrations)  # a second time changes nothing


@pytest.mark.parametrize("content", [None, b"not a library"])
def test_operators_that_are_missing_or_foreign_do_not_load(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "_C.so").write_bytes(content)
    assert not vision._operators_load(tmp_path)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModelError, match="not installed"):
        vision.torchvision.__wrapped__()


def test_a_users_factory_may_import_torchvision_itself(tmp_path: Path) -> None:
    (tmp_path / "user_nets.py").write_text(
        "import torchvision\ndef net(): return torchvision.models.squeezenet1_1(weights=None)\n"
    )
    code = "from sipp_bench.zoo import models; print(type(models.load_factory('user_nets:net')).__name__)"
    path = {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=os.environ | path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.strip() == "SqueezeNet", done.stderr


def test_importing_the_package_does_not_import_torchvision() -> None:
    code = "import sys, sipp_bench.zoo.training; sys.exit('torchvision' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
