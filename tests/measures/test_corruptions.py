"""Corruptions: images in, images out, from the seed alone; each does what it says; excess errors by hand."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from torch import Tensor, nn

from sipp_bench.errors import OptionError, PointsError
from sipp_bench.measures import corruptions
from sipp_bench.measures.corruptions import (
    CLEAN,
    CORRUPTIONS,
    SEVERITIES,
    corrupt,
    corruption_errors,
    excess_errors,
)
from sipp_bench.zoo import data

NOISE = {"gaussian_noise", "shot_noise", "impulse_noise"}
DRAWN = NOISE | {"rotation", "translation", "elastic"}


def images_of(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def amount(name: str, severity: int) -> float:
    return CORRUPTIONS[name].amounts[severity - 1]


@pytest.fixture(scope="module")
def digits() -> Tensor:
    return data.load("mnist-digits").test.images[::10]


@pytest.mark.parametrize("name", CORRUPTIONS)
@settings(deadline=None, max_examples=15)
@given(st.integers(1, 3), st.integers(1, 5), st.integers(1, 14), st.integers(1, 14), st.sampled_from(SEVERITIES))
def test_images_of_any_size_stay_images(
    name: str, n: int, channels: int, height: int, width: int, severity: int
) -> None:
    images = images_of(n, channels, height, width)
    before = images.clone()
    found = corrupt(images, name, severity)
    assert found.shape == images.shape
    assert found.dtype == torch.float32
    assert found.min() >= 0
    assert found.max() <= 1
    assert torch.equal(images, before)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_draws_follow_from_the_seed_alone(name: str) -> None:
    images = images_of(4, 3, 16, 12)
    torch.manual_seed(1)
    one = corrupt(images, name, 3, seed=7)
    state = torch.get_rng_state()
    torch.rand(5)
    assert torch.equal(corrupt(images, name, 3, seed=7), one)
    torch.manual_seed(1)
    corrupt(images, name, 3, seed=7)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(corrupt(images, name, 3, seed=8), one) == (name not in DRAWN)


@pytest.mark.parametrize("name", CORRUPTIONS)
@pytest.mark.parametrize("size", [28, 8])
def test_more_severe_is_further_from_the_image(name: str, size: int, digits: Tensor) -> None:
    images = digits if size == 28 else torch.nn.functional.interpolate(digits, (8, 8), mode="area")
    distances = [float((corrupt(images, name, severity) - images).square().mean()) for severity in SEVERITIES]
    assert distances[0] > 0
    if name == "pixelate":  # blocks that divide the image evenly do less harm than others
        assert distances[-1] == max(distances)
    else:
        assert distances == sorted(set(distances))


@pytest.mark.parametrize("severity", SEVERITIES)
def test_noise_has_its_moments(severity: int) -> None:
    grey = torch.full((50, 2, 40, 40), 0.5)
    n = grey.numel()
    flips = corrupt(grey, "impulse_noise", severity)
    share = amount("impulse_noise", severity)
    # Counts are binomial: five standard deviations.
    for value in (0.0, 1.0):
        assert abs(float((flips == value).double().mean()) - share / 2) < 5 * math.sqrt(share / 2 / n)
    assert ((flips == 0) | (flips == 1) | (flips == 0.5)).all()
    light = torch.full_like(grey, 0.1)
    white = amount("shot_noise", severity)
    counts = CORRUPTIONS["shot_noise"].apply(light, white, torch.Generator().manual_seed(0)) * white
    assert float((counts - counts.round()).abs().max()) < 1e-4
    assert float(counts.mean()) == pytest.approx(0.1 * white, abs=5 * math.sqrt(0.1 * white / n))
    assert float(counts.var()) == pytest.approx(0.1 * white, rel=0.1)
    deviation = CORRUPTIONS["gaussian_noise"].apply(grey, amount("gaussian_noise", severity), torch.Generator()) - grey
    assert float(deviation.std()) == pytest.approx(amount("gaussian_noise", severity), rel=0.02)


def test_blurs_spread_a_point_evenly_and_keep_the_light() -> None:
    image = torch.zeros(1, 2, 41, 41)
    image[0, 0, 20, 20] = 1
    for name in ("gaussian_blur", "defocus_blur"):
        found = corrupt(image, name, 5)
        assert float(found.sum()) == pytest.approx(1, abs=1e-5)
        assert not found[0, 1].any(), "channels stay apart"
        assert torch.allclose(found[0, 0], found[0, 0].T, atol=1e-7)
        assert torch.allclose(found[0, 0], found[0, 0].flip(0), atol=1e-7)
    disk = corrupt(image, "defocus_blur", 5)[0, 0]
    inside = disk > 0
    # All pixels within radius - 1 are equally bright, none beyond the radius is lit.
    y, x = torch.meshgrid(torch.arange(41) - 20, torch.arange(41) - 20, indexing="ij")
    radius = 1 + amount("defocus_blur", 5) * 41
    distance = torch.hypot(y.float(), x.float())
    assert torch.equal(inside, distance < radius)
    assert disk[distance <= radius - 1].unique().numel() == 1


def test_brightness_and_contrast_by_hand() -> None:
    image = torch.tensor([0.2, 0.4, 0.9, 0.1]).reshape(1, 1, 2, 2)
    b, c = amount("brightness", 2), amount("contrast", 2)
    assert corrupt(image, "brightness", 2).flatten().tolist() == pytest.approx([0.2 + b, 0.4 + b, 1, 0.1 + b])
    expected = [0.4 + c * (value - 0.4) for value in (0.2, 0.4, 0.9, 0.1)]
    two = torch.cat([image, torch.full_like(image, 0.7)])  # each image has its own mean
    assert corrupt(two, "contrast", 2).flatten().tolist() == pytest.approx([*expected, 0.7, 0.7, 0.7, 0.7])


def test_pixelate_means_over_blocks() -> None:
    image = images_of(2, 3, 8, 12)
    blocks = image.reshape(2, 3, 4, 2, 6, 2).mean((3, 5))  # severity 3 halves the resolution
    assert amount("pixelate", 3) == 0.5
    expected = blocks.repeat_interleave(2, 2).repeat_interleave(2, 3)
    assert torch.allclose(corrupt(image, "pixelate", 3), expected, atol=1e-6)


def test_rotation_is_scipys_either_way() -> None:
    smooth = torch.from_numpy(ndimage.gaussian_filter(images_of(8, 2, 21, 21).numpy(), (0, 0, 2, 2)))
    found = corrupt(smooth, "rotation", 4)
    turned = [
        ndimage.rotate(
            smooth.numpy(), sign * amount("rotation", 4), (3, 2), reshape=False, order=1, mode="grid-constant"
        )
        for sign in (-1, 1)
    ]
    distances = np.stack([np.abs(found.numpy() - one).max((1, 2, 3)) for one in turned])
    assert (distances.min(0) < 1e-4).all()
    assert set(distances.argmin(0)) == {0, 1}, "both ways occur"


def test_translation_moves_by_its_length() -> None:
    dot = torch.zeros(30, 1, 41, 61)
    dot[:, 0, 20, 30] = 1
    found = corrupt(dot, "translation", 5)[:, 0].double()
    # Bilinear weights keep the centre of mass.
    down = (found.sum(2) * (torch.arange(41) - 20)).sum(1)
    right = (found.sum(1) * (torch.arange(61) - 30)).sum(1)
    moved = torch.stack([down, right], 1)
    assert torch.allclose(moved.norm(dim=1), torch.tensor(amount("translation", 5) * 41).double(), atol=1e-4)
    assert float(moved.mean(0).norm()) < 3, "in all directions"


def test_elastic_moves_no_further_than_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    fields: list[Tensor] = []
    displaced: Callable[..., Tensor] = corruptions._displaced

    def noted(images: Tensor, down: Tensor, right: Tensor) -> Tensor:
        fields.append(torch.hypot(down, right))
        return displaced(images, down, right)

    monkeypatch.setattr(corruptions, "_displaced", noted)
    corrupt(images_of(5, 1, 28, 20), "elastic", 3)
    assert fields[0].amax((1, 2)).tolist() == pytest.approx([amount("elastic", 3) * 20] * 5, rel=1e-5)


def test_jpeg_keeps_flat_images_and_loses_detail() -> None:
    flat = torch.full((2, 4, 16, 16), 0.6)
    assert float((corrupt(flat, "jpeg", 1) - flat).abs().max()) < 0.02
    noise = images_of(2, 4, 16, 16)
    assert float((corrupt(noise, "jpeg", 5) - noise).abs().mean()) > 0.05


def test_unknown_ones_and_other_images_are_refused() -> None:
    with pytest.raises(OptionError, match="no corruption 'fog'"):
        corrupt(images_of(1, 1, 4, 4), "fog", 1)
    with pytest.raises(OptionError, match="severity 6"):
        corrupt(images_of(1, 1, 4, 4), "jpeg", 6)
    for images in (images_of(4, 4), images_of(0, 1, 4, 4), torch.zeros(1, 1, 2, 2, dtype=torch.uint8)):
        with pytest.raises(PointsError, match="are needed"):
            corrupt(images, "jpeg", 1)
    for value in (-0.1, 1.1, math.nan):
        with pytest.raises(PointsError, match=r"\[0, 1\]"):
            corrupt(torch.full((1, 1, 2, 2), value), "jpeg", 1)


class Bright(nn.Module):
    """Class 1 where the mean of an image passes `threshold`."""

    def __init__(self, threshold: float) -> None:
        super().__init__()
        self.threshold = threshold

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([torch.zeros(len(x)), x.mean((1, 2, 3)) - self.threshold], 1)


def test_errors_and_excess_by_hand() -> None:
    images = torch.tensor([0.1, 0.2, 0.6, 0.7]).reshape(4, 1, 1, 1).expand(4, 2, 5, 5)
    labels = torch.tensor([0, 0, 1, 1])
    severities = (2, 5)
    assert [amount("brightness", severity) for severity in severities] == [0.2, 0.5]
    dense = corruption_errors(Bright(0.5), images, labels, ["brightness"], severities, batch_size=3)
    pruned = corruption_errors(Bright(0.65), images, labels, iter(["brightness"]), iter(severities))
    assert dense == {CLEAN: 0, ("brightness", 2): 0, ("brightness", 5): 0.5}
    assert pruned == {CLEAN: 0.25, ("brightness", 2): 0, ("brightness", 5): 0.25}
    assert excess_errors(pruned, dense) == {("brightness", 2): -0.25, ("brightness", 5): -0.5}
    assert set(excess_errors(dense, dense).values()) == {0}
    with pytest.raises(OptionError, match="same corruptions"):
        excess_errors(pruned, {CLEAN: 0.1})


def test_a_network_that_noise_ruins_has_excess_error() -> None:
    """The label is the brighter half; the ruined network looks at one pixel of each half only."""

    class Halves(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([x[:, 0, :, :4].mean((1, 2)), x[:, 0, :, 4:].mean((1, 2))], 1)

    class Pixels(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([x[:, 0, 3, 1], x[:, 0, 3, 6]], 1)

    labels = torch.arange(400) % 2
    images = torch.where((torch.arange(8) >= 4) == labels[:, None].bool(), 0.6, 0.4)[:, None, None].expand(-1, 1, 8, 8)
    errors = [corruption_errors(network, images, labels, sorted(NOISE)) for network in (Pixels(), Halves())]
    assert errors[0][CLEAN] == errors[1][CLEAN] == 0
    found = excess_errors(errors[0], errors[1])
    assert len(found) == 15
    assert all(found[name, 5] > 0.05 for name in NOISE)
    assert all(found[name, 5] >= found[name, 1] for name in NOISE)


def test_every_corruption_is_measured_unless_chosen() -> None:
    found = corruption_errors(Bright(0.5), images_of(3, 1, 6, 6), torch.tensor([0, 1, 0]))
    assert set(found) == {CLEAN} | {(name, severity) for name in CORRUPTIONS for severity in SEVERITIES}
    assert len(CORRUPTIONS) >= 8
