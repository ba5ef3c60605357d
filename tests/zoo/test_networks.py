"""The networks of the literature: sizes, shapes that they take, weights that can be measured, and downloads."""

import sys
from types import ModuleType
from typing import Any
from urllib.error import URLError

import pytest
import torch
from torch import nn

import sipp_bench as sb
from sipp_bench.errors import ModelError, OptionError
from sipp_bench.zoo import cifar, imagenet, models


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


# The number that the literature gives, in millions, and the exact one.
CIFAR_SIZES = {
    # He et al. 2016, table 6: 0.27M, 0.85M, 1.7M. That is their option A, without weights in the shortcuts (ResNet-20
    # then has 269,722); pytorchcv's option B has 2,752 more: two 1x1 convolutions with their batch normalisation.
    "resnet-20": (0.27, 269_722 + 2_752),
    "resnet-56": (0.85, 853_018 + 2_752),
    "resnet-110": (1.7, 1_727_962 + 2_752),
    # Zagoruyko and Komodakis 2016, table 4: WRN-16-8 has 11.0M.
    "wrn-16-8": (11.0, 10_961_370),
    # The same layers as in SiPP's authors' densenet22, counted by hand: first convolution 648; a unit from c channels
    # 2c + 48c + 96 + 5,184; a transition c to c/2, 2c + c*c/2; last normalisation 138 and Linear 700.
    "densenet-22": (0.07, 71_686),
    # 14.7M: the 13 convolutions of Simonyan and Zisserman 2015 (configuration D) have 14,714,688 weights and biases,
    # their normalisation 8,448, the Linear layer 5,130.
    "vgg16-bn": (14.7, 14_714_688 + 8_448 + 5_130),
}
# torchvision's documentation of each network's IMAGENET1K_V1 weights, "num_params".
IMAGENET_SIZES = {
    "resnet-18": 11_689_512,
    "resnet-50": 25_557_032,
    "resnet-101": 44_549_160,
    "vgg16-bn-imagenet": 138_365_992,
    "densenet-121": 7_978_856,
    "mobilenet-v2": 3_504_872,
    "convnext-tiny": 28_589_128,
    "vit-b-16": 86_567_656,
}


@pytest.mark.parametrize("name", CIFAR_SIZES)
def test_sizes_of_the_networks_for_small_images(name: str) -> None:
    stated, exact = CIFAR_SIZES[name]
    model = models.build(name)
    assert count(model) == exact
    assert count(model) / 1e6 == pytest.approx(stated, rel=0.03)


def test_the_count_of_densenet_22_by_hand() -> None:
    def unit(c: int) -> int:
        return 2 * c + 48 * c + 2 * 48 + 48 * 12 * 9

    def transition(c: int) -> int:
        return 2 * c + c * (c // 2)

    stages = [(24, 36, 48), (30, 42, 54), (33, 45, 57)]
    units = sum(unit(c) for stage in stages for c in stage)
    assert 3 * 24 * 9 + units + transition(60) + transition(66) + 2 * 69 + 69 * 10 + 10 == 71_686


@pytest.mark.parametrize("name", IMAGENET_SIZES)
def test_sizes_of_the_networks_for_imagenet(name: str) -> None:
    with torch.device("meta"):  # sizes without numbers
        assert count(models.build(name)) == IMAGENET_SIZES[name]


def test_every_plain_name_has_its_size_here() -> None:
    assert {*CIFAR_SIZES, *IMAGENET_SIZES, "lenet-300-100", "lenet-5"} == set(models.list_models())


@pytest.mark.parametrize("name", [name for name in cifar.BUILDERS if name != "vgg16-bn"])
def test_small_images_of_one_channel_and_other_numbers_of_classes(name: str) -> None:
    assert models.build(name, (1, 28, 28))(torch.rand(2, 1, 28, 28)).shape == (2, 10)
    assert models.build(name, (3, 32, 32), 7)(torch.rand(1, 3, 32, 32)).shape == (1, 7)


def test_averaging_over_all_positions_is_the_same_at_32_by_32() -> None:
    model: Any = models.build("resnet-20")
    images = torch.rand(2, 3, 32, 32)
    ours = model(images)
    model.features.final_pool = nn.AvgPool2d(8, stride=1)
    assert torch.allclose(ours, model(images), rtol=1e-4, atol=1e-4)


def test_vgg16_takes_one_channel_and_refuses_images_that_it_would_halve_to_nothing() -> None:
    assert models.build("vgg16-bn", (1, 32, 32), 7)(torch.rand(1, 1, 32, 32)).shape == (1, 7)
    with pytest.raises(ModelError, match="at least 32x32 pixels, not 28x28"):
        models.build("vgg16-bn", (1, 28, 28))
    with pytest.raises(ModelError, match="at least 8x8"):
        models.build("resnet-20", (1, 4, 4))


@pytest.mark.parametrize("name", cifar.BUILDERS)
def test_every_weight_of_the_small_networks_is_measured(name: str) -> None:
    shape = (3, 32, 32) if name == "vgg16-bn" else (1, 8, 8)
    model = models.build(name, shape)
    sens = sb.measure_sensitivity(model, torch.rand(1, *shape))
    assert not sens.skipped
    linear = [n for n, m in model.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    assert {f"{n}.weight" for n in linear} == set(sens)


@pytest.mark.timeout(280)
@pytest.mark.parametrize("name", ["mobilenet-v2", "vit-b-16"])
def test_every_weight_of_the_large_networks_is_measured(name: str) -> None:
    model = models.build(name, (3, 32, 32), 10)
    sens = sb.measure_sensitivity(model, torch.rand(1, 3, 32, 32))
    # What is no layer's weight is listed too: a token and a position that are added.
    assert set(sens.skipped) == ({"class_token", "encoder.pos_embedding"} if name == "vit-b-16" else set())
    assert len(sens) == {"mobilenet-v2": 53, "vit-b-16": 1 + 12 * 4 + 1}[name]


def test_pretrained_weights_without_a_connection_say_where_to_put_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*args: Any, **kwargs: Any) -> None:
        raise URLError("no route to host")

    monkeypatch.setattr("torch.hub.download_url_to_file", offline)
    monkeypatch.setenv("TORCH_HOME", "/nowhere/torch")
    monkeypatch.setattr("os.makedirs", lambda *args, **kwargs: None)
    with pytest.raises(ModelError, match=r"cannot be downloaded.*no route to host.*put resnet18-f37072fd\.pth"):
        models.build("resnet-18", weights="pretrained")


def test_pretrained_weights_that_do_not_exist_are_refused() -> None:
    with pytest.raises(OptionError, match="no pretrained weights of resnet-20"):
        models.build("resnet-20", weights="pretrained")
    with pytest.raises(OptionError, match="1000 classes apart, not 10"):
        models.build("resnet-18", num_classes=10, weights="pretrained")
    with pytest.raises(OptionError, match="not 'imagenet'"):
        models.build("resnet-18", weights="imagenet")  # type: ignore[arg-type]


def test_timm_is_named_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModelError, match="pip install timm"):
        imagenet.build("timm:resnet18", (3, 224, 224), 1000)


def test_networks_of_timm_are_built_by_their_names(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    def create_model(name: str, **options: Any) -> nn.Module:
        asked.update(options, name=name)
        if options["pretrained"]:
            raise ConnectionError("the hub cannot be reached")
        return nn.Linear(2, options["num_classes"])

    timm: Any = ModuleType("timm")
    timm.is_model = lambda name: name == "tiny"
    timm.list_models = lambda: ["tiny"]
    timm.create_model = create_model
    monkeypatch.setitem(sys.modules, "timm", timm)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "torchvision" else timm)
    assert models.build("timm:tiny", (1, 32, 32), 5).out_features == 5
    assert asked == {"name": "tiny", "pretrained": False, "num_classes": 5, "in_chans": 1}
    with pytest.raises(ModelError, match=r"timm:tiny.*the hub cannot be reached"):
        models.build("timm:tiny", weights="pretrained")
    with pytest.raises(OptionError, match="Close to it: tiny"):
        models.build("timm:tini")
