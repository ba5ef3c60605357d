"""How networks are trained: the recipes of this bench, and those of SiPP's authors beside them, as data."""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

from sipp_bench.errors import OptionError

Augment = Literal["none", "shift", "shift-flip"]


@dataclass(frozen=True)
class Recipe:
    """How a network is trained: mean cross-entropy, a fresh shuffle each epoch, the last step's weights are
    the result.

    learning_rate falls to 0 along half a cosine over all steps when schedule is "cosine", is multiplied by gamma at
    the start of each epoch in milestones (counted from 0) when it is "steps", and stays otherwise; over the first
    warmup_epochs it rises linearly. momentum and nesterov are used by "sgd" only. augment: "shift" moves each image
    by up to 4 pixels, zeros coming in; "shift-flip" also mirrors half of them. mixed_precision: bfloat16 where that
    is safe, on CUDA only. Raises OptionError for values that are impossible.
    """

    epochs: int
    batch_size: int
    learning_rate: float
    optimizer: Literal["sgd", "adam"] = "sgd"
    momentum: float = 0.9
    weight_decay: float = 0.0
    schedule: Literal["cosine", "constant", "steps"] = "cosine"
    milestones: tuple[int, ...] = ()
    gamma: float = 0.1
    warmup_epochs: int = 0
    nesterov: bool = False
    augment: Augment = "none"
    mixed_precision: bool = False

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise OptionError(f"A recipe's {name} is a whole number of at least 1, not {value!r}.")
        if not 0 < self.learning_rate < math.inf:
            raise OptionError(f"A recipe's learning_rate is a number above 0, not {self.learning_rate!r}.")
        if not (0 <= self.momentum < 1 and 0 <= self.weight_decay < math.inf):
            raise OptionError("A recipe's momentum lies in [0, 1) and its weight_decay is at least 0.")
        if self.optimizer not in ("sgd", "adam") or self.schedule not in ("cosine", "constant", "steps"):
            raise OptionError("A recipe's optimizer is sgd or adam, and its schedule cosine, constant or steps.")
        if self.augment not in get_args(Augment):
            raise OptionError(f"A recipe's augment is one of {', '.join(get_args(Augment))}, not {self.augment!r}.")
        if not 0 < self.gamma <= 1 or self.warmup_epochs < 0 or (self.schedule == "steps") != bool(self.milestones):
            raise OptionError(
                "A recipe's gamma lies in (0, 1], its warmup_epochs are at least 0, and it has milestones if and only "
                "if its schedule is steps."
            )

    def rate(self, step: int, steps_per_epoch: int) -> float:
        """The learning rate of a step, counted from 0 over the whole training."""
        rate = self.learning_rate
        if self.schedule == "cosine":
            rate *= (1 + math.cos(math.pi * step / (self.epochs * steps_per_epoch))) / 2
        elif self.schedule == "steps":
            rate *= self.gamma ** sum(step >= milestone * steps_per_epoch for milestone in self.milestones)
        if step < self.warmup_epochs * steps_per_epoch:
            rate *= (step + 1) / (self.warmup_epochs * steps_per_epoch)
        return rate

    def description(self) -> dict[str, Any]:
        """Its fields as JSON values; of those that later versions added, only what is set: old checkpoints stay."""
        first = ("epochs", "batch_size", "learning_rate", "optimizer", "momentum", "weight_decay", "schedule")
        values = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.name in first or getattr(self, field.name) != field.default
        }
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def _cifar(epochs: int, batch_size: int = 128, weight_decay: float = 5e-4) -> Recipe:
    return Recipe(
        epochs, batch_size, 0.1, weight_decay=weight_decay, warmup_epochs=1, augment="shift-flip", mixed_precision=True
    )


RECIPES = {
    # Chosen on the validation parts of splits 0, 1 and 2 of both sets of digits, without a look at the test parts.
    "lenet-300-100": Recipe(epochs=30, batch_size=32, learning_rate=0.05, weight_decay=5e-4),
    "lenet-5": Recipe(epochs=10, batch_size=32, learning_rate=0.05, weight_decay=5e-4),
    # A few minutes on a CPU for Fashion-MNIST, where three epochs are what there is time for.
    "resnet-20": Recipe(epochs=3, batch_size=64, learning_rate=0.05, weight_decay=5e-4),
    # For a GPU. The usual rates with a cosine, shorter than the authors' recipes; not tuned.
    "resnet-56": _cifar(60, weight_decay=1e-4),
    "resnet-110": _cifar(60, weight_decay=1e-4),
    "wrn-16-8": _cifar(60),
    "densenet-22": _cifar(60, 64, weight_decay=1e-4),
    "vgg16-bn": dataclasses.replace(_cifar(60), learning_rate=0.05),
}

_RESNET = Recipe(
    182, 128, 0.1, weight_decay=1e-4, schedule="steps", milestones=(91, 136), warmup_epochs=5, augment="shift-flip"
)
# From the parameter files of SiPP's authors' published code (torchprune, training/mnist and training/cifar); they
# also normalise the images, which this bench leaves in [0, 1].
PAPER_RECIPES = {
    "lenet-300-100": Recipe(50, 64, 0.01, weight_decay=1e-4, schedule="steps", milestones=(30, 45), augment="shift"),
    "lenet-5": Recipe(40, 64, 0.01, weight_decay=1e-4, schedule="steps", milestones=(25, 35), augment="shift-flip"),
    "resnet-20": _RESNET,
    "resnet-56": _RESNET,
    "resnet-110": _RESNET,
    "vgg16-bn": Recipe(
        300,
        256,
        0.05,
        weight_decay=5e-4,
        schedule="steps",
        milestones=tuple(range(30, 300, 30)),
        gamma=0.5,
        warmup_epochs=10,
        augment="shift-flip",
    ),
    "densenet-22": Recipe(
        300,
        64,
        0.1,
        weight_decay=1e-4,
        schedule="steps",
        milestones=(150, 225),
        warmup_epochs=10,
        nesterov=True,
        augment="shift-flip",
    ),
    "wrn-16-8": Recipe(
        200,
        128,
        0.1,
        weight_decay=5e-4,
        schedule="steps",
        milestones=(60, 120, 160),
        gamma=0.2,
        warmup_epochs=5,
        nesterov=True,
        augment="shift-flip",
    ),
}

RecipeName = Literal["default", "paper"]


def recipe_for(network: str, which: RecipeName = "default") -> Recipe:
    """The recipe of a network. Raises OptionError for a network that has none, and for another name than those."""
    if which not in get_args(RecipeName):
        raise OptionError(f"A recipe is one of {', '.join(get_args(RecipeName))}, not {which!r}.")
    recipes = RECIPES if which == "default" else PAPER_RECIPES
    if network not in recipes:
        raise OptionError(f"{network} has no training recipe. Those with one are {', '.join(sorted(recipes))}.")
    return recipes[network]
