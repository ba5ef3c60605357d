"""Training by fixed recipes, and a cache of the checkpoints it makes."""

import hashlib
import io
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, pad
from tqdm import tqdm

from sipp_bench.errors import CheckpointError, ModelError, OptionError, PointsError, StoreError
from sipp_bench.machine.files import load_tensors, making, read_regular, write_atomically
from sipp_bench.machine.parts import torch_threads
from sipp_bench.machine.seeds import generator
from sipp_bench.zoo import checkpoints, models
from sipp_bench.zoo.checkpoints import load_checkpoint
from sipp_bench.zoo.data import DataSet
from sipp_bench.zoo.folders import default_cache_dir
from sipp_bench.zoo.recipes import PAPER_RECIPES, RECIPES, Augment, Recipe, recipe_for

__all__ = [
    "PAPER_RECIPES",
    "RECIPES",
    "Recipe",
    "Trained",
    "default_cache_dir",
    "load_checkpoint",
    "pretrained_model",
    "recipe_for",
    "train",
    "trained_model",
]


def train(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    recipe: Recipe,
    seed: int,
    device: torch.device | str = "cpu",
    progress: bool = False,
    after_step: Callable[[], None] | None = None,
    *,
    first_epoch: int = 0,
    last_epoch: int | None = None,
    state: Path | None = None,
) -> None:
    """Train `model` in place on images (n, ...) and labels int64 (n,); it is left on `device`, in eval mode.

    The order of the batches, dropout and augmentation follow from `seed`; the global random state is left as it was.
    On the CPU, with the same number of threads, two runs give the same bits. `after_step` is called after
    each optimizer step, for instance to hold pruned weights at zero. first_epoch, last_epoch: train only the recipe's
    epochs from the one (counted from 0) up to, not including, the other, with the learning rates and batches that
    they have in the whole training; momentum begins at 0. state: a file that holds where the training is, written
    after each epoch and removed at the end; where it exists, training goes on from there, to the same bits.

    Raises ModelError, leaving the model as far as it got, when the loss becomes NaN or infinite; PointsError when
    images and labels differ in number; OptionError for epochs that the recipe does not have; CheckpointError for a
    `state` that cannot be read.
    """
    if len(images) == 0 or len(images) != len(labels):
        raise PointsError(f"Training needs images with one label each; got {len(images)} and {len(labels)}.")
    last_epoch = recipe.epochs if last_epoch is None else last_epoch
    if not 0 <= first_epoch <= last_epoch <= recipe.epochs:
        raise OptionError(f"The recipe has epochs 0 to {recipe.epochs}; it cannot run {first_epoch} to {last_epoch}.")
    device = torch.device(device)
    model.to(device).train()
    images, labels = images.to(device), labels.to(device)
    order = generator(seed)
    optimizer = _optimizer(model, recipe)
    steps_per_epoch = math.ceil(len(images) / recipe.batch_size)
    half = recipe.mixed_precision and device.type == "cuda"
    with models.seeded(seed, device):
        for _ in range(first_epoch):
            torch.randperm(len(images), generator=order)
        resumed = _resume(state, model, optimizer, order, device) if state is not None else None
        start = first_epoch if resumed is None else resumed
        for epoch in tqdm(range(start, last_epoch), "train", unit="epoch", disable=not progress, leave=False):
            shuffled = torch.randperm(len(images), generator=order).to(device)
            for step, rows in enumerate(shuffled.split(recipe.batch_size), epoch * steps_per_epoch):
                for group in optimizer.param_groups:
                    group["lr"] = recipe.rate(step, steps_per_epoch)
                with torch.autocast(device.type, torch.bfloat16, enabled=half):
                    loss = cross_entropy(model(_augmented(images[rows], recipe.augment)), labels[rows])
                optimizer.zero_grad()
                torch.autograd.backward(loss)
                optimizer.step()
                if after_step is not None:
                    after_step()
            if not math.isfinite(loss.item()):
                raise ModelError(
                    f"Training diverged: the loss is {loss.item()} after epoch {epoch + 1}. Lower the "
                    "learning rate, and look for NaN or infinite values in the images."
                )
            if state is not None:
                _save_state(state, epoch + 1, model, optimizer, order, device)
    if state is not None:
        state.unlink(missing_ok=True)
    optimizer.zero_grad()  # the last step's gradients serve nobody, and copies of the model would carry them
    model.eval()


def _augmented(images: Tensor, augment: Augment) -> Tensor:
    """Each image moved by up to 4 pixels and, for "shift-flip", half of them mirrored; draws on the CPU."""
    if augment == "none":
        return images
    n, _, height, width = images.shape
    device = images.device
    moves = torch.randint(9, (2, n, 1)).to(device)
    down, right = moves[0] + torch.arange(height, device=device), moves[1] + torch.arange(width, device=device)
    if augment == "shift-flip":
        right = torch.where((torch.rand(n) < 0.5).to(device)[:, None], right.flip(1), right)
    each = torch.arange(n, device=device)[:, None, None]
    return pad(images, [4] * 4)[each, :, down[:, :, None], right[:, None, :]].permute(0, 3, 1, 2)


def _save_state(
    path: Path, epoch: int, model: nn.Module, optimizer: torch.optim.Optimizer, order: torch.Generator, device: Any
) -> None:
    state = {
        "epoch": epoch,
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "order": order.get_state(),
        "cpu": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
    }
    content = io.BytesIO()
    torch.save(state, content)
    write_atomically(path, content.getvalue())


def _resume(
    path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, order: torch.Generator, device: torch.device
) -> int | None:
    """Put everything as it was after an epoch; returns how many were done, None where there is no such file."""
    if not path.exists():
        return None
    try:
        state = load_tensors(read_regular(path))
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        order.set_state(state["order"])
        torch.set_rng_state(state["cpu"])
        if device.type == "cuda":
            torch.cuda.set_rng_state(state["cuda"], device)
        return int(state["epoch"])
    except FileNotFoundError:  # another process that trains the same network has just finished
        return None
    except Exception as error:  # on bytes that are no such state, torch.load raises about anything
        reason = getattr(error, "strerror", None) or "it is of another training"
        raise CheckpointError(
            f"The training that {path} holds cannot go on: {reason}. Delete that file, and it begins again."
        ) from error


def _optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    if recipe.optimizer == "adam":
        return torch.optim.Adam(model.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
    return torch.optim.SGD(
        model.parameters(),
        lr=recipe.learning_rate,
        momentum=recipe.momentum,
        weight_decay=recipe.weight_decay,
        nesterov=recipe.nesterov,
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
    last_epoch: int | None = None,
) -> Trained:
    """The zoo's `network` trained on `data.train`: from the cache, else trained now and put there.

    seed: of initialisation, batches and dropout; the split has its own. recipe: by default the network's in
    RECIPES. last_epoch: stop before that epoch, with the weights of an early part of the whole training; 0 for the
    initial ones. The checkpoint's key is a SHA-256 over recipe, network, image shape, classes, data hash, split
    and seed. Training runs on one CPU thread, so that the checkpoint does not depend on how many a machine
    has. A training that is killed goes on after its last whole epoch; processes that want the same network at the same
    time wait for the one that trains it.

    Raises OptionError for an unknown network or one without a recipe; CheckpointError when the cached file
    is damaged, which is never repaired silently; StoreError when the cache folder cannot be written.
    """
    model = models.build(network, data.input_shape, len(data.classes), seed)
    recipe = recipe or recipe_for(network)
    description = _description(network, data, seed, recipe)
    if last_epoch is not None:
        description["last_epoch"] = last_epoch
    key = hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()
    file_name = f"{network.replace(':', '-')}--{data.name}--{key[:16]}.safetensors"
    path = Path(cache_dir or default_cache_dir()) / file_name
    seconds = None
    if not path.exists():
        try:
            with making(path), torch_threads(1):
                if not path.exists():
                    start = time.perf_counter()
                    images, labels = data.train.images, data.train.labels
                    state = path.with_suffix(f".{device}.state".replace(":", "-"))
                    train(model, images, labels, recipe, seed, device, progress, last_epoch=last_epoch, state=state)
                    seconds = time.perf_counter() - start
                    write_atomically(path, checkpoints.encode(model, key, description))
        except StoreError as error:
            raise StoreError(f"{error} The environment variable SIPP_BENCH_CACHE sets the cache folder.") from error
    sha256 = load_checkpoint(model, path, key=key)
    return Trained(model.to(device).eval(), path, sha256, key, recipe.description(), seconds is None, seconds)


def pretrained_model(network: str, data: DataSet) -> Trained:
    """A network of torchvision or timm with its published weights, downloaded unless they are on the machine.

    sha256: over its tensors. Raises OptionError for a network without such weights and for data of other than their
    1000 classes, ModelError when they cannot be downloaded.
    """
    model = models.build(network, data.input_shape, len(data.classes), weights="pretrained")
    sha256 = hashlib.sha256(checkpoints.encode(model, "pretrained", {})).hexdigest()
    return Trained(model, Path(torch.hub.get_dir()), sha256, "pretrained", {}, True, None)


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
        "recipe": recipe.description(),
        "seed": seed,
    }
