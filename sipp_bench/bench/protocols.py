"""What happens around pruning: nothing, retraining, pruning in steps, rewinding, or training a subnetwork alone.

A protocol sees a network, its recipe, the training images and what the method makes of the points S; it has no
access to validation or test images, so that it cannot choose by them. Masks hold after every optimizer step, which is
asserted; what is reported is the network after the last epoch. A method's guarantee is void once weights are retrained.
"""

import copy
import dataclasses
import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from torch import nn

from sipp_bench.compression.masks import random_control, require_masks_held, require_nested
from sipp_bench.compression.pruned import Pruned
from sipp_bench.errors import OptionError, require_counts
from sipp_bench.machine.parts import torch_threads
from sipp_bench.machine.registry import unknown
from sipp_bench.machine.seeds import derived_seed
from sipp_bench.methods import Fitted
from sipp_bench.network.points import model_device
from sipp_bench.zoo import training
from sipp_bench.zoo.data import Part
from sipp_bench.zoo.recipes import Recipe


@dataclass(frozen=True)
class Task:
    """One cell's work. fitted: the method on the trained network; fit: the same on another network; early: the
    network after so many epochs of its training, 0 for its initial weights. keeps: the suite's keep ratios. reached:
    what a cascade over them left for the next cell of the method, by the ratios that it went through: a cell that
    finds nothing there goes through them itself, to the same bits."""

    fitted: Fitted
    fit: Callable[[nn.Module], Fitted]
    early: Callable[[int], nn.Module]
    train: Part
    recipe: Recipe | None
    keep: float
    seed: int
    keeps: tuple[float, ...] = ()
    reached: dict[tuple[float, ...], Pruned] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """What a protocol made. reference: the network that `pruned` is a pruned copy of, and that its guarantee compares
    with. retrained: with the same masks, after the last epoch; None without retraining. control: a random subnetwork
    of the same size in each layer, trained in the same way; None where the protocol has none, or there is no other."""

    reference: nn.Module
    pruned: Pruned
    retrained: Pruned | None = None
    control: Pruned | None = None


@dataclass(frozen=True, kw_only=True)
class Protocol(ABC):
    """A protocol: a frozen dataclass whose fields are its options."""

    name: ClassVar[str]

    @abstractmethod
    def run(self, task: Task) -> Outcome:
        """Prune, and retrain if that is what the protocol does. The trained network stays as it is."""

    def check(self, recipe: Recipe) -> None:  # noqa: B027  # most protocols take every recipe
        """Raise OptionError when the options do not fit the recipe that the network is trained by."""

    def epochs(self, recipe: Recipe) -> int:
        """Epochs of retraining in one cell, all subnetworks together."""
        return 0


@dataclass(frozen=True, kw_only=True)
class OneShot(Protocol):
    """Prune the trained network; nothing else."""

    name: ClassVar[str] = "one-shot"

    def run(self, task: Task) -> Outcome:
        """The pruned network, its guarantee in force."""
        return Outcome(task.fitted.model, task.fitted.prune(task.keep, task.seed))


@dataclass(frozen=True, kw_only=True)
class Retrain(Protocol):
    """Prune, then retrain what is left by the network's recipe with another rate and a cosine to 0.

    retrain_epochs: by default as many as the training had. retrain_rate: by default a tenth of the recipe's.
    """

    name: ClassVar[str] = "retrain"
    retrain_epochs: int | None = None
    retrain_rate: float | None = None

    def __post_init__(self) -> None:
        if self.retrain_epochs is not None:
            require_counts(retrain_epochs=self.retrain_epochs)
        if self.retrain_rate is not None:
            rate = self.retrain_rate
            if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 < rate < float("inf"):
                raise OptionError(f"retrain_rate is a learning rate above 0, not {rate!r}.")

    def recipe(self, trained_by: Recipe) -> Recipe:
        """The recipe of the retraining."""
        return dataclasses.replace(
            trained_by,
            epochs=self.retrain_epochs or trained_by.epochs,
            learning_rate=float(self.retrain_rate or trained_by.learning_rate / 10),
            schedule="cosine",
            milestones=(),
            warmup_epochs=0,
        )

    def epochs(self, recipe: Recipe) -> int:
        return self.recipe(recipe).epochs

    def run(self, task: Task) -> Outcome:
        """The network as pruned, and after retraining."""
        pruned = task.fitted.prune(task.keep, task.seed)
        return Outcome(task.fitted.model, pruned, retrained(pruned, task, self.recipe(_recipe(task))))


@dataclass(frozen=True, kw_only=True)
class Cascade(Retrain):
    """Prune and retrain in steps, the method looking at the points anew before each, through the network as it is then.

    steps: a number, for the keep ratios keep^(1/steps), keep^(2/steps), ..., keep (Renda et al. 2020); or "suite", for
    the keep ratios of the suite from the largest down to the cell's own, so that one chain passes through all cells
    of a method: the iterative pruning of Han et al. 2015, each step retrained once.
    """

    name: ClassVar[str] = "cascade"
    steps: int | Literal["suite"] = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.steps, str) and self.steps != "suite":
            raise OptionError(f'steps is a whole number of at least 1, or "suite", not {self.steps!r}.')
        if not isinstance(self.steps, str):
            require_counts(steps=self.steps)

    def epochs(self, recipe: Recipe) -> int:
        return (1 if isinstance(self.steps, str) else self.steps) * super().epochs(recipe)

    def path(self, keep: float, suite: tuple[float, ...] = ()) -> list[float]:
        """The keep ratios of the steps, falling, the last one `keep` itself."""
        if isinstance(self.steps, str):
            return sorted({keep, *(other for other in suite if other > keep)}, reverse=True)
        return [keep ** (step / self.steps) for step in range(1, self.steps)] + [keep]

    def run(self, task: Task) -> Outcome:
        """The last step's network as pruned, and after its retraining."""
        path = tuple(self.path(task.keep, task.keeps))
        done = max((before for before in task.reached if path[: len(before)] == before != path), key=len, default=())
        before, outcome = task.reached.get(done), None
        for step, keep in enumerate(path[len(done) :], len(done)):
            fitted = task.fitted if before is None else task.fit(before.model)
            # A step's draws must not be those that made the network which it prunes: the bounds take them for fresh.
            seed = derived_seed(task.seed, f"step {step} of a cascade") if step else task.seed
            pruned = fitted.prune(keep, seed)
            if before is not None:
                require_nested(pruned, before)
            before = retrained(pruned, task, self.recipe(_recipe(task)))
            outcome = Outcome(fitted.model, pruned, before)
        assert outcome is not None  # the path ends with a step that was not reached before
        assert before is not None
        task.reached.clear()
        task.reached[path] = before
        return outcome


@dataclass(frozen=True, kw_only=True)
class LearningRateRewind(Protocol):
    """Prune, then repeat the last `retrain_epochs` of the training, with its learning rates (Renda et al. 2020)."""

    name: ClassVar[str] = "lr-rewind"
    retrain_epochs: int | None = None

    def __post_init__(self) -> None:
        if self.retrain_epochs is not None:
            require_counts(retrain_epochs=self.retrain_epochs)

    def check(self, recipe: Recipe) -> None:
        if (self.retrain_epochs or 0) > recipe.epochs:
            raise OptionError(f"retrain_epochs is at most the {recipe.epochs} of the training, not more.")

    def epochs(self, recipe: Recipe) -> int:
        return self.retrain_epochs or recipe.epochs

    def run(self, task: Task) -> Outcome:
        """The network as pruned, and after the repeated epochs."""
        recipe = _recipe(task)
        pruned = task.fitted.prune(task.keep, task.seed)
        after = retrained(pruned, task, recipe, first_epoch=recipe.epochs - self.epochs(recipe))
        return Outcome(task.fitted.model, pruned, after)


@dataclass(frozen=True, kw_only=True)
class Rewind(Protocol):
    """Prune, set what is left to its values after `rewind_epoch` epochs, and train it from there (Frankle et al. 2019).

    Only the masks of the pruned network are used, not the values that a sampling method gives.
    """

    name: ClassVar[str] = "rewind"
    rewind_epoch: int = 1

    def __post_init__(self) -> None:
        if isinstance(self.rewind_epoch, bool) or not isinstance(self.rewind_epoch, int) or self.rewind_epoch < 0:
            raise OptionError(f"rewind_epoch is a whole number of at least 0, not {self.rewind_epoch!r}.")

    def check(self, recipe: Recipe) -> None:
        if self.rewind_epoch >= recipe.epochs:
            raise OptionError(f"rewind_epoch is below the {recipe.epochs} epochs of the training.")

    def epochs(self, recipe: Recipe) -> int:
        return recipe.epochs - self.rewind_epoch

    def run(self, task: Task) -> Outcome:
        """The network as pruned, and trained from its early weights on."""
        pruned = task.fitted.prune(task.keep, task.seed)
        rewound = pruned.on(task.early(self.rewind_epoch))
        after = retrained(rewound, task, _recipe(task), first_epoch=self.rewind_epoch)
        return Outcome(task.fitted.model, pruned, after)


@dataclass(frozen=True, kw_only=True)
class Lottery(Protocol):
    """Train the subnetwork that pruning finds in isolation, from its initial weights (Frankle and Carbin 2019).

    Beside it, in the same way, a random subnetwork with as many weights in each layer, where the budget leaves a choice
    of them: what the budget alone gives.
    mask_from: where the method looks for the subnetwork, "trained" or "init" (pruning before any training).
    """

    name: ClassVar[str] = "lottery"
    mask_from: Literal["trained", "init"] = "trained"

    def __post_init__(self) -> None:
        if self.mask_from not in ("trained", "init"):
            raise OptionError(f'mask_from is "trained" or "init", not {self.mask_from!r}.')

    def epochs(self, recipe: Recipe) -> int:
        return 2 * recipe.epochs

    def run(self, task: Task) -> Outcome:
        """The network as pruned; what its masks leave of the initial network, trained; and the random control."""
        initial, recipe = task.early(0), _recipe(task)
        fitted = task.fitted if self.mask_from == "trained" else task.fit(initial)
        pruned = fitted.prune(task.keep, task.seed)
        found, random = pruned.on(initial), random_control(pruned, initial, task.seed)
        control = None if random is None else retrained(random, task, recipe)
        return Outcome(fitted.model, pruned, retrained(found, task, recipe), control)


_PROTOCOLS: dict[str, type[Protocol]] = {
    cls.name: cls for cls in (OneShot, Retrain, Cascade, Rewind, LearningRateRewind, Lottery)
}


def list_protocols() -> list[str]:
    """Names of all protocols, the simplest first."""
    return list(_PROTOCOLS)


def make_protocol(name: str, **options: Any) -> Protocol:
    """The protocol with these options; OptionError names what is allowed when the name or an option is not."""
    if name not in _PROTOCOLS:
        raise OptionError(unknown(name, list_protocols(), "protocol"))
    allowed = list(inspect.signature(_PROTOCOLS[name]).parameters)
    if strange := [option for option in options if option not in allowed]:
        takes = f"Its options are: {', '.join(allowed)}" if allowed else "It has none"
        raise OptionError(f"The protocol {name!r} has no option {strange[0]!r}. {takes}.")
    return _PROTOCOLS[name](**options)


def retrained(pruned: Pruned, task: Task, recipe: Recipe, first_epoch: int = 0) -> Pruned:
    """A copy of `pruned` after training by `recipe`, its masks held and asserted after every step.

    On one CPU thread, as networks of the zoo are trained. The copy's guarantee is void.
    """
    after = pruned.on(pruned.model, copy.deepcopy(pruned.guarantee))
    hold = after.apply_masks(_nothing)
    assert hold is not None  # it is for a step that was given

    def after_step() -> None:
        hold()
        require_masks_held(after)

    with torch_threads(1):
        training.train(
            after.model,
            task.train.images,
            task.train.labels,
            recipe,
            task.seed,
            model_device(after.model),
            after_step=after_step,
            first_epoch=first_epoch,
        )
    require_masks_held(after)
    return after


def _recipe(task: Task) -> Recipe:
    if task.recipe is None:
        raise OptionError("Published weights come without a recipe to retrain by: take the protocol one-shot.")
    return task.recipe


def _nothing() -> None:
    return None
