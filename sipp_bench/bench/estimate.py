"""How many cells a suite has and about how long it takes here, without its data and before anything is trained."""

from dataclasses import dataclass

import torch
from torch import nn

from sipp_bench.bench.jobs import reproducible
from sipp_bench.bench.suite import Suite
from sipp_bench.bench.suite_tables import Method, Target
from sipp_bench.compression.honoured import check_rows
from sipp_bench.compression.masks import require_masks_held
from sipp_bench.machine.parts import torch_threads
from sipp_bench.measures.corruptions import CORRUPTIONS, SEVERITIES
from sipp_bench.measures.latency import timed
from sipp_bench.measures.predictions import evaluate
from sipp_bench.methods import fit, prune
from sipp_bench.sensitivity.sample_size import sample_size
from sipp_bench.zoo import data, models, training
from sipp_bench.zoo.recipes import Recipe

_STEPS, _BATCH, _POINTS = 3, 32, 8
"""Training steps, the images in each, and the points of a fit that are timed."""


@dataclass(frozen=True)
class Estimate:
    """Seconds of a whole run on this machine: training the networks once a seed, and the cells."""

    cells: int
    networks: int
    training_seconds: float
    cell_seconds: float

    def __str__(self) -> str:
        return (
            f"{self.cells} cells on {self.networks} networks, about {_duration(self.training_seconds)} to train the "
            f"networks that are not kept from an earlier run, and {_duration(self.cell_seconds)} for the cells.\n"
            f"How this was estimated: {_STEPS} training steps of {_BATCH} images on one thread, an evaluation of as "
            f"many, and each method's fit, pruning and check with {_POINTS} points were timed here, on random images "
            "and untrained networks, and multiplied by their numbers. Expect a factor of two either way, more while "
            "other programs run."
        )


def estimate(suite: Suite, threads: int = 1) -> Estimate:
    """Time the parts of `suite` and add them up; see `Estimate.__str__` for how. threads: those of `runner.run`.

    Raises DataError when the size of a data set that is a folder cannot be told because the folder is missing, and
    OptionError where the suite asks for more points than there are.
    """
    with reproducible(threads):
        times = [_target(suite, target) for target in suite.targets]
    seeds = len(suite.seeds)
    return Estimate(
        len(suite.cells()),
        len(suite.targets) * seeds,
        seeds * sum(trained for trained, _ in times),
        seeds * sum(cells for _, cells in times),
    )


def _target(suite: Suite, target: Target) -> tuple[float, float]:
    """Seconds for one seed of a target: the training, and all cells."""
    source = data.describe(target.data)
    train, points_there, validation, test = data.sizes(source)
    model = models.build(target.network, source.shape, len(source.classes))
    with models.seeded(0):
        images = torch.rand(_STEPS * _BATCH, *source.shape)
    labels = torch.arange(len(images)) % len(source.classes)
    recipe = target.training_recipe()
    wanted = suite.points
    if isinstance(wanted, str):
        wanted = sample_size(model, example=images[:1])
    suite.require_enough(target.data, points_there)
    looks = min(wanted, points_there) / _POINTS
    _, batch = timed(lambda: evaluate(model, images, labels))
    evaluation = batch * (test + validation) / len(images)
    epoch, epochs = 0.0, 0
    if recipe is not None:
        epoch, epochs = _epoch(model, recipe, images, labels, train), recipe.epochs
    evaluations, retraining = 1, 0.0
    if recipe is not None and suite.protocol != "one-shot":
        held = _epoch(model, recipe, images, labels, train, hold=True)
        evaluations, retraining = 2, held * suite.make_protocol().epochs(recipe)
    asked = suite.measures
    spoiled = asked.corruption_images * len(CORRUPTIONS) * len(SEVERITIES) * batch / len(images)
    cells = evaluation + spoiled + asked.random_splits * len(suite.keep) * batch * test / len(images)
    for method in suite.methods:
        fit, prune, check = _method(suite, method, model, images[:_POINTS], labels[:_POINTS])
        each = prune + 2 * check * looks + evaluations * evaluation + retraining + spoiled
        cells += fit * looks + len(suite.keep) * each
    return epoch * epochs * (2 if asked.twin else 1), cells


def _method(
    suite: Suite, method: Method, model: nn.Module, points: torch.Tensor, labels: torch.Tensor
) -> tuple[float, float, float]:
    """Seconds of a fit to these points, of pruning to a keep ratio, and of one check of the bounds on the points."""
    fitted, fitting = timed(lambda: fit(model, points, method=method.name, labels=labels, **method.options))
    pruned, pruning = timed(lambda: fitted.prune(suite.keep[len(suite.keep) // 2]))
    if pruned.guarantee is None or fitted.method.claims[0] not in suite.checks:
        return fitting, pruning, 0.0
    _, check = timed(lambda: check_rows(model, pruned, points, "S"))
    return fitting, pruning, check


def _epoch(
    model: nn.Module, recipe: Recipe, images: torch.Tensor, labels: torch.Tensor, train: int, hold: bool = False
) -> float:
    """Seconds of one epoch over `train` images, from a few steps, with masks held or not; the network is put back."""
    pruned = prune(model, images[:2], method="random", keep=0.5)

    def after_step() -> None:
        if hold:
            pruned.apply_masks()
            require_masks_held(pruned)

    rows = torch.arange(len(images))
    few = Recipe(1, _BATCH, 1e-6, augment=recipe.augment)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with torch_threads(1):
        training.train(model, images[rows[:2]], labels[rows[:2]], few, 0)  # the first call takes longer
        _, seconds = timed(lambda: training.train(model, images[rows], labels[rows], few, 0, after_step=after_step))
    model.load_state_dict(before)
    return seconds * train / len(rows)


def _duration(seconds: float) -> str:
    for unit, factor in (("days", 86400.0), ("hours", 3600.0), ("minutes", 60.0)):
        if seconds >= 1.5 * factor:
            return f"{seconds / factor:.1f} {unit}"
    return f"{seconds:.0f} seconds"
