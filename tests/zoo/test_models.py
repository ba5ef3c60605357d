"""The zoo's networks: sizes, seeds, and what a user's factory may get wrong."""

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from sipp_bench.errors import ModelError, OptionError
from sipp_bench.zoo import models


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("lenet-300-100", 266_610), ("lenet-5", 431_080), ("torchvision:resnet18", 11_689_512)],
)
def test_parameter_counts_of_the_standard_sizes(name: str, parameters: int) -> None:
    assert count(models.build(name)) == parameters


@pytest.mark.parametrize("name", ["lenet-300-100", "lenet-5"])
@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 33, 40)])
def test_networks_take_images_of_the_shape_that_they_were_built_for(name: str, shape: tuple[int, int, int]) -> None:
    logits = models.build(name, shape, num_classes=7)(torch.rand(2, *shape))
    assert logits.shape == (2, 7)


@pytest.mark.parametrize("name", ["lenet-300-100", "torchvision:squeezenet1_1"])
def test_initialisation_follows_from_the_seed_alone(name: str) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = models.build(name, seed=3)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    assert same(first, models.build(name, seed=3))
    assert not same(first, models.build(name, seed=4))


def test_unknown_names_are_refused_with_what_there_is() -> None:
    with pytest.raises(OptionError, match="lenet-300-100, lenet-5, mobilenet-v2"):
        models.build("lenet5")
    with pytest.raises(OptionError, match="Close to it: resnet18"):
        models.build("torchvision:resnet-18")


def test_shapes_that_a_network_cannot_take_are_refused() -> None:
    with pytest.raises(ModelError, match=r"at least 28x28 pixels, not 8x8"):
        models.build("lenet-5", (1, 8, 8))
    with pytest.raises(ModelError, match="3 channels, not 1"):
        models.build("torchvision:resnet18", (1, 224, 224))


FACTORIES = """
import torch
SIZE = 3
def net(): return torch.nn.Linear(SIZE, 2)
def broken(): raise KeyError("layers")
def quits(): raise SystemExit(3)
def wrong(): return "a string"
def needs(argument): return torch.nn.Linear(argument, 2)
"""


@pytest.fixture
def user_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module in the current folder, which is not on sys.path."""
    name = "zoo_user_nets"
    (tmp_path / f"{name}.py").write_text(FACTORIES)
    (tmp_path / "zoo_user_syntax.py").write_text("def net(:\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, name, raising=False)
    return name


def test_a_factory_in_the_current_folder_is_called(user_module: str) -> None:
    path = list(sys.path)
    model = models.load_factory(f"{user_module}:net")
    assert isinstance(model, nn.Linear)
    assert model.in_features == 3
    assert sys.path == path


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("{}:absent", "has no function 'absent'"),
        ("{}:SIZE", "has no function 'SIZE'"),
        ("{}:broken", "raised KeyError: 'layers'"),
        ("{}:quits", "raised SystemExit: 3"),
        ("{}:needs", "called without arguments, raised TypeError"),
        ("{}:wrong", "returned a str"),
        ("zoo_no_such_module:net", "cannot be imported: ModuleNotFoundError"),
        ("{}.inner:net", "cannot be imported: ModuleNotFoundError"),
        ("zoo_user_syntax:net", "cannot be imported: SyntaxError"),
    ],
)
def test_what_is_wrong_with_a_factory_is_said(user_module: str, spec: str, message: str) -> None:
    path = list(sys.path)
    with pytest.raises(ModelError, match=message):
        models.load_factory(spec.format(user_module))
    assert sys.path == path


@pytest.mark.parametrize("spec", ["net", "module:", ":net", "nets.py:net:", "a/b.py:net", "a..b:net"])
def test_a_malformed_factory_name_is_refused_before_any_import(spec: str) -> None:
    with pytest.raises(OptionError, match=r"Write package\.module:factory"):
        models.load_factory(spec)
