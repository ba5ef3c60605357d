"""Errors on spoiled images: what pruning costs beyond the clean test set.

The idea, a set of corruptions in five severities each, is that of Hendrycks & Dietterich 2019, "Benchmarking neural
network robustness to common corruptions and perturbations" (arXiv:1903.12261). The corruptions here are our own small
versions of theirs, for images of any size and number of channels, and the severities are ours: lengths are shares of
the image's shorter side. Amounts grow with severity, errors need not. Numbers from here don't compare with theirs.
"""

import io
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage
from torch import Tensor, nn

from sipp_bench.errors import OptionError, PointsError
from sipp_bench.machine.seeds import derived_seed, generator
from sipp_bench.measures.predictions import predict, top_k_accuracy

SEVERITIES = (1, 2, 3, 4, 5)
CLEAN = ("clean", 0)
"""The key of the error without any corruption."""

_Bytes = NDArray[np.uint8]
Errors = Mapping[tuple[str, int], float]
"""(corruption, severity) -> error; `CLEAN` -> the clean error."""


@dataclass(frozen=True)
class Corruption:
    """apply: images (n, channels, height, width) float32 in [0, 1], an amount and a generator to images, not clipped.

    amounts: one for each severity, from mild to strong.
    """

    apply: Callable[[Tensor, float, torch.Generator], Tensor]
    amounts: tuple[float, float, float, float, float]


def corrupt(images: Tensor, name: str, severity: int, seed: int = 0) -> Tensor:
    """`images` (n, channels, height, width) in [0, 1], corrupted and clipped to [0, 1]: the same shape, float32, CPU.

    Draws follow from the name, severity and seed, for all images at once: corrupt the whole set, not its batches.
    Raises OptionError for an unknown name or severity, PointsError for anything but such images.
    """
    if name not in CORRUPTIONS or severity not in SEVERITIES:
        raise OptionError(
            f"There is no corruption {name!r} of severity {severity!r}. Choose one of {', '.join(CORRUPTIONS)}, 1 to 5."
        )
    if images.ndim != 4 or images.numel() == 0 or not images.is_floating_point():
        raise PointsError(f"Images (n, channels, height, width) are needed, not {tuple(images.shape)} {images.dtype}.")
    images = images.detach().cpu().float()
    if not (images.min() >= 0 and images.max() <= 1):
        raise PointsError("Images to corrupt have pixels in [0, 1]: normalise them in the network, not before.")
    draws = generator(derived_seed(seed, f"{name} {severity}"))
    corruption = CORRUPTIONS[name]
    return corruption.apply(images, corruption.amounts[severity - 1], draws).float().clamp(0, 1)


def corruption_errors(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    names: Iterable[str] | None = None,
    severities: Iterable[int] = SEVERITIES,
    seed: int = 0,
    batch_size: int = 128,
) -> dict[tuple[str, int], float]:
    """The error, 1 - top-1 accuracy, of clean images (`CLEAN`) and of each corruption and severity.

    images: (n, channels, height, width) in [0, 1]; names: all of `CORRUPTIONS` if None. The same seed spoils images
    the same way for every network, as `excess_errors` needs.
    """
    chosen, asked = list(CORRUPTIONS if names is None else names), list(severities)
    found = {CLEAN: 1 - top_k_accuracy(predict(model, images, batch_size), labels, 1)}
    for name in chosen:
        for severity in asked:
            spoiled = corrupt(images, name, severity, seed)
            found[name, severity] = 1 - top_k_accuracy(predict(model, spoiled, batch_size), labels, 1)
    return found


def excess_errors(pruned: Errors, dense: Errors) -> dict[tuple[str, int], float]:
    """By corruption and severity: (corrupted - clean error) of the pruned network, minus the same of the dense one.

    The difference in excess error of Liebenwein et al. 2021, "Lost in Pruning" (arXiv:2103.03014): above 0 where
    pruning costs more on spoiled images than the clean error says. Both from `corruption_errors` on the same images.
    """
    if pruned.keys() != dense.keys() or CLEAN not in pruned:
        raise OptionError("Excess errors need both networks' clean errors, and errors of the same corruptions.")
    clean = pruned[CLEAN] - dense[CLEAN]
    return {key: pruned[key] - dense[key] - clean for key in pruned if key != CLEAN}


def _gaussian_noise(images: Tensor, amount: float, generator: torch.Generator) -> Tensor:
    return images + amount * torch.randn(images.shape, generator=generator)


def _shot_noise(images: Tensor, amount: float, generator: torch.Generator) -> Tensor:
    """Poisson counts, of which a white pixel has `amount` on average."""
    return torch.poisson(images * amount, generator=generator) / amount


def _impulse_noise(images: Tensor, amount: float, generator: torch.Generator) -> Tensor:
    """A share `amount` of the numbers becomes 0 or 1."""
    draw = torch.rand(images.shape, generator=generator)
    return torch.where(draw < amount, (draw < amount / 2).to(images.dtype), images)


def _gaussian_blur(images: Tensor, amount: float, generator: torch.Generator) -> Tensor:
    sigma = 0.4 + amount * _side(images)  # below 0.4 pixels nothing changes
    return torch.from_numpy(ndimage.gaussian_filter(images.numpy(), (0, 0, sigma, sigma), mode="nearest"))


def _defocus_blur(images: Tensor, amount: float, generator: torch.Generator) -> Tensor:
    """The mean over a disk with a soft edge, whose radius grows by `amount`."""
    radius = 1 + amount * _side(images)
    steps = np.arange(-math.ceil(radius), math.ceil(radius) + 1)
    disk = np.clip(radius - np.hypot(steps[:, None], steps), 0, 1)
    return torch.from_numpy(ndimage.convolve(images.numpy(), (disk / disk.sum())[None, None], mode="nearest"))


def _brightness(images: Tensor, amount: float, generator: torch.Generator) -> Tensor:
    return images + amount


def _contrast(images: Tensor, amount: float, generator: torch.Generator) -> Tensor:
    mean = images.mean((1, 2, 3), keepdim=True)
    return mean + amount * (images - mean)


def _pixelate(images: Tensor, amount: float, generator: torch.Generator) -> Tensor:
    height, width = images.shape[2:]
    small = F.interpolate(images, (max(1, round(amount * height)), max(1, round(amount * width))), mode="area")
    return F.interpolate(small, (height, width), mode="nearest")


def _rotation(images: Tensor, amount: float, generator: torch.Generator) -> Tensor:
    """By `amount` degrees, either way."""
    angle = math.radians(amount) * (2.0 * torch.randint(2, (len(images), 1, 1), generator=generator) - 1)
    y, x = _positions(images)
    y, x = y - y.mean(), x - x.mean()
    return _displaced(images, x * angle.sin() + y * (angle.cos() - 1), x * (angle.cos() - 1) - y * angle.sin())


def _translation(images: Tensor, amount: float, generator: torch.Generator) -> Tensor:
    """By `amount` in a random direction."""
    direction = 2 * math.pi * torch.rand((len(images), 1, 1), generator=generator)
    length = amount * _side(images)
    return _displaced(images, length * direction.sin(), length * direction.cos())


def _elastic(images: Tensor, amount: float, generator: torch.Generator) -> Tensor:
    """A smooth random field of displacements, the largest of them `amount` (Simard et al. 2003, ICDAR)."""
    side = _side(images)
    field = 2 * torch.rand((2, len(images), *images.shape[2:]), generator=generator) - 1
    field = torch.from_numpy(ndimage.gaussian_filter(field.numpy(), (0, 0, 0.1 * side, 0.1 * side), mode="nearest"))
    lengths = field.norm(dim=0).amax((1, 2), keepdim=True).clamp(min=1e-12)
    y, x = field * (amount * side / lengths)
    return _displaced(images, y, x)


def _jpeg(images: Tensor, amount: float, generator: torch.Generator) -> Tensor:
    """Compressed at quality `amount`, each channel as a grey image."""
    grey = (images * 255).round().to(torch.uint8).flatten(0, 1).numpy()
    return torch.from_numpy(np.stack([_recompressed(one, int(amount)) for one in grey])).reshape(images.shape) / 255


def _recompressed(grey: _Bytes, quality: int) -> _Bytes:
    buffer = io.BytesIO()
    Image.fromarray(grey).save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer))


def _side(images: Tensor) -> int:
    return min(images.shape[2:])


def _positions(images: Tensor) -> tuple[Tensor, Tensor]:
    """Row and column of each pixel: (1, height, 1) and (1, 1, width)."""
    return torch.arange(images.shape[2])[None, :, None].float(), torch.arange(images.shape[3])[None, None].float()


def _displaced(images: Tensor, down: Tensor, right: Tensor) -> Tensor:
    """Each pixel takes the value found `down` and `right` of it, in pixels; black beyond the edges.

    down, right: broadcast to (n, height, width).
    """
    y, x = _positions(images)
    shape = (len(images), *images.shape[2:])
    rows, columns = (y + down).expand(shape), (x + right).expand(shape)
    grid = torch.stack([(2 * columns + 1) / shape[2] - 1, (2 * rows + 1) / shape[1] - 1], 3)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


CORRUPTIONS: Mapping[str, Corruption] = {
    "gaussian_noise": Corruption(_gaussian_noise, (0.06, 0.12, 0.18, 0.26, 0.38)),
    "shot_noise": Corruption(_shot_noise, (60, 25, 12, 6, 3)),
    "impulse_noise": Corruption(_impulse_noise, (0.02, 0.05, 0.09, 0.15, 0.25)),
    "gaussian_blur": Corruption(_gaussian_blur, (0.005, 0.02, 0.035, 0.05, 0.07)),
    "defocus_blur": Corruption(_defocus_blur, (0.01, 0.025, 0.045, 0.07, 0.1)),
    "brightness": Corruption(_brightness, (0.1, 0.2, 0.3, 0.4, 0.5)),
    "contrast": Corruption(_contrast, (0.7, 0.5, 0.4, 0.3, 0.2)),
    "pixelate": Corruption(_pixelate, (0.8, 0.65, 0.5, 0.4, 0.3)),
    "rotation": Corruption(_rotation, (5, 10, 15, 22, 30)),
    "translation": Corruption(_translation, (0.03, 0.06, 0.09, 0.12, 0.16)),
    "elastic": Corruption(_elastic, (0.04, 0.06, 0.08, 0.11, 0.15)),
    "jpeg": Corruption(_jpeg, (40, 20, 12, 7, 4)),
}
"""By name. Amounts: standard deviation; mean count of white; share of pixels; blurs, translation and elastic: share of
the shorter side; added; factor; share of the resolution; degrees; quality."""
