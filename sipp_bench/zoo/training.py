"""Training by fixed recipes, and a cache of the checkpoints it makes."""

import dataclasses
import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from tqdm import tqdm

from sipp_bench.errors import ModelError, OptionError, PointsError, StoreError
from sipp_bench.files import write_atomically
from sipp_bench.zoo import checkpoints, models
from sipp_bench.zoo.checkpoints import load_checkpoint
from sipp_bench.zoo.data import DataSet
from sipp_bench.zoo.folders import default_cache_dir

__all__ = ["RECIPES", "Recipe", "Trained", "default_cache_dir", "load_checkpoint", "train", "trained_model"]


@dataclass(frozen=True)
class Recipe:
    """How a network is trained: mean cross-entropy, a fresh shuffle each epoch, the last step's weights are
    the result.

    learning_rate falls to 0 along half a cosine over all steps when schedule is "cosine", and stays
    otherwise. momentum is used by "sgd" only. Raises OptionError for values that are impossible.
    """

    epochs: int
    batch_size: int
    learning_rate: float
    optimizer: Literal["sgd", "adam"] = "sgd"
    momentum: float = 0.9
    weight_decay: float = 0.0
    schedule: Literal["cosine", "constant"] = "cosine"

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise OptionError(f"A recipe's {name} is a whole number of at least 1, not {value!r}.")
        if not 0 < self.learning_rate < math.inf:
            raise OptionError(f"A recipe's learning_rate is a number above 0, not {self.learning_rate!r}.")
        if not (0 <= self.momentum < 1 and 0 <= self.weight_decay < math.inf):
            raise OptionError("A recipe's momentum lies in [0, 1) and its weight_decay is at least 0.")
        if self.optimizer not in ("sgd", "adam") or self.schedule not in ("cosine", "constant"):
            raise OptionError("A recipe's optimizer is sgd or adam, and its schedule cosine or constant.")


# Chosen on the validation parts of splits 0, 1 and 2 of both data sets, without a look at the test parts.
RECIPES = {
    "lenet-300-100": Recipe(epochs=30, batch_size=32, learning_rate=0.05, weight_decay=5e-4),
    "lenet-5": Recipe(epochs=10, batch_size=32, learning_rate=0.05, weight_decay=5e-4),
}


def train(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    recipe: Recipe,
    seed: int,
    device: torch.device | str = "cpu",
    progress: bool = False,
    after_step: Callable[[], None] | None = None,
) -> None:
    """Train `model` in place on images (n, ...) and labels int64 (n,); it is left on `device`, in eval mode.

    The order of the batches and any dropout follow from `seed`; the global random state is left as it was.
    On the CPU, with the same number of threads, two runs give the same bits. `after_step` is called after
    each optimizer step, for instance to hold pruned weights at zero. Raises ModelError, leaving the model
    as far as it got, when the loss becomes NaN or infinite; PointsError when images and labels differ in
    number.
    """
    if len(images) == 0 or len(images) != len(labels):
        raise PointsError(f"Training needs images with one label each; got {len(images)} and {len(labels)}.")
    model.to(device).train()
    images, labels = images.to(device), labels.to(device)
    order = torch.Generator().manual_seed(seed)
    optimizer = _optimizer(model, recipe)
    steps = recipe.epochs * math.ceil(len(images) / recipe.batch_size)

    def fraction(step: int) -> float:
        return (1 + math.cos(math.pi * step / steps)) / 2 if recipe.schedule == "cosine" else 1.0

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, fraction)
    with models.seeded(seed, device):
        for epoch in tqdm(range(recipe.epochs), "train", unit="epoch", disable=not progress, leave=False):
            shuffled = torch.randperm(len(images), generator=order).to(device)
            for first in range(0, len(images), recipe.batch_size):
                rows = shuffled[first : first + recipe.batch_size]
                loss = cross_entropy(model(images[rows]), labels[rows])
                optimizer.zero_grad()
                torch.autograd.backward(loss)
                optimizer.step()
                schedule.step()
                if after_step is not None:
                    after_step()
            if not math.isfinite(loss.item()):
                raise ModelError(
                    f"Training diverged: the loss is {loss.item()} after epoch {epoch + 1}. Lower the "
                    "learning rate, and look for NaN or infinite values in the images."
                )
    optimizer.zero_grad()  # the last step's gradients serve nobody, and copies of the model would carry them
    model.eval()


def _optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    if recipe.optimizer == "adam":
        return torch.optim.Adam(model.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
    return torch.optim.SGD(
        model.parameters(),
        lr=recipe.learning_rate,
        momentum=recipe.momentum,
        weight_decay=recipe.weight_decay,
    )


@dataclass(frozen=True, eq=False)
class Trained:
    """A trained network of the zoo, in eval mode, and where it came from.

    sha256: of the checkpoint file's bytes. key: hash of all that the training depends on, see
    `trained_model`. seconds: what the training took; None when the checkpoint was there already (`cached`).
    """

    model: nn.Module
    path: Path
    sha256: str
    key: str
    recipe: dict[str, Any]
    cached: bool
    seconds: float | None


def trained_model(
    network: str,
    data: DataSet,
    seed: int = 0,
    cache_dir: Path | str | None = None,
    device: torch.device | str = "cpu",
    progress: bool = False,
    recipe: Recipe | None = None,
) -> Trained:
    """The zoo's `network` trained on `data.train`: from the cache, else trained now and put there.

    seed: of initialisation, batches and dropout; the split has its own. recipe: by default the network's in
    RECIPES. The checkpoint's key is a SHA-256 over recipe, network, image shape, classes, data hash, split
    and seed. Training runs on one CPU thread, so that the checkpoint does not depend on how many a machine
    has.

    Raises OptionError for an unknown network or one without a recipe; CheckpointError when the cached file
    is damaged, which is never repaired silently; StoreError when the cache folder cannot be written.
    """
    model = models.build(network, data.input_shape, len(data.classes), seed)
    if recipe is None and network not in RECIPES:
        raise OptionError(f"{network} has no training recipe. Those with one are {', '.join(sorted(RECIPES))}.")
    recipe = recipe or RECIPES[network]
    description = _description(network, data, seed, recipe)
    key = hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()
    file_name = f"{network.replace(':', '-')}--{data.name}--{key[:16]}.safetensors"
    path = Path(cache_dir or default_cache_dir()) / file_name
    cached = path.exists()
    seconds = None
    if not cached:
        start = time.perf_counter()
        with _one_thread():
            train(model, data.train.images, data.train.labels, recipe, seed, device, progress)
        seconds = time.perf_counter() - start
        content = checkpoints.encode(model, key, description)
        try:
            write_atomically(path, content)
        except StoreError as error:
            raise StoreError(f"{error} The environment variable SIPP_BENCH_CACHE sets the cache folder.") from error
    sha256 = load_checkpoint(model, path, key=key)
    return Trained(model.to(device).eval(), path, sha256, key, dataclasses.asdict(recipe), cached, seconds)


def _description(network: str, data: DataSet, seed: int, recipe: Recipe) -> dict[str, Any]:
    """All that the trained weights depend on, as JSON values."""
    return {
        "format": checkpoints.FORMAT,
        "network": network,
        "input_shape": list(data.input_shape),
        "classes": len(data.classes),
        "data": data.name,
        "data_sha256": data.sha256,
        "split_seed": data.seed,
        "train_sha256": hashlib.sha256(data.train.indices.numpy().tobytes()).hexdigest(),
        "recipe": dataclasses.asdict(recipe),
        "seed": seed,
    }


@contextmanager
def _one_thread() -> Iterator[None]:
    """Sums are split between threads, so their rounding depends on the number of threads; hold it at one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
