"""Every number of a cell, computed once more from the raw rows: what is of what, and on which points.

Plain matrix products in float64, and rows that are drawn here: nothing of `measuring`, `metrics` or `measures`.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import oracle
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

import sipp_bench as sb
from sipp_bench.bench.runner import run
from sipp_bench.bench.suite import parse_suite
from sipp_bench.store.folder import Run
from sipp_bench.zoo import data, training
from sipp_bench.zoo.data import DataSet, Part
from sipp_bench.zoo.training import Recipe

RECIPE = Recipe(epochs=3, batch_size=50, learning_rate=0.05)
SEED, POINTS = 3, 24
SUITE = """
name = "again"
seeds = [3]
keep = [0.4, 0.1]
points = 24
protocol = "{protocol}"
[[target]]
network = "lenet-300-100"
data = "digits"
[[method]]
name = "sipp-hybrid"
[[method]]
name = "random"
[[method]]
name = "snip"
"""
METHODS = ("sipp-hybrid", "random", "snip")


def measured(folder: Path, protocol: str) -> Run:
    suite = parse_suite(SUITE.format(protocol=protocol), "again.toml")
    finished = run(suite, folder / protocol, cache_dir=folder / "cache", progress=False)
    assert set(finished.cells["status"]) == {"done"}, finished.cells["error"].tolist()
    return finished


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("again")


@pytest.fixture(scope="module")
def runs(folder: Path) -> dict[str, Run]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(training.RECIPES, "lenet-300-100", RECIPE)
        return {protocol: measured(folder, protocol) for protocol in ("one-shot", "lottery")}


@pytest.fixture(scope="module")
def dataset() -> DataSet:
    return data.load("digits", seed=SEED)


@pytest.fixture(scope="module")
def networks(folder: Path, runs: dict[str, Run], dataset: DataSet) -> Callable[[int], nn.Module]:
    """The network after so many epochs, trained anew without the cache of the run."""

    def make(epochs: int) -> nn.Module:
        anew = training.trained_model(
            "lenet-300-100", dataset, SEED, folder / "anew", recipe=RECIPE, last_epoch=None if epochs == 3 else epochs
        )
        return anew.model

    return make


def weights_of(model: nn.Module) -> dict[str, np.ndarray]:
    return {name: oracle.array(value) for name, value in model.named_parameters()}


def layers_of(weights: dict[str, np.ndarray], images: Tensor) -> list[np.ndarray]:
    """The inputs of fc1, fc2 and fc3, and the logits."""
    found = [oracle.array(images).reshape(len(images), -1)]
    for layer in ("fc1", "fc2", "fc3"):
        z = found[-1] @ weights[f"{layer}.weight"].T + weights[f"{layer}.bias"]
        found.append(z if layer == "fc3" else np.maximum(z, 0))
    return found


def scores(weights: dict[str, np.ndarray], part: Part) -> dict[str, float]:
    logits, labels = layers_of(weights, part.images)[-1], part.labels.numpy()
    loss = np.log(np.exp(logits - logits.max(1, keepdims=True)).sum(1)) + logits.max(1)
    loss = loss - logits[np.arange(len(labels)), labels]
    return {"accuracy": float((logits.argmax(1) == labels).mean()), "loss": float(loss.mean())}


def require_scores(row: "pd.Series[Any]", prefix: str, found: dict[str, float], part: Part) -> None:
    # Logits in float32 may order two classes otherwise where they are equal to 1e-6: at most one image here.
    assert row[f"{prefix}accuracy"] == pytest.approx(found["accuracy"], abs=1.01 / len(part)), prefix
    assert row[f"{prefix}loss"] == pytest.approx(found["loss"], rel=1e-4), prefix


def cell_file(finished: Run, cell: str) -> dict[str, Any]:
    """All that is stored of a cell; the table has less."""
    content: dict[str, Any] = json.loads((finished.path / "cells" / f"{cell}.json").read_text())
    return content


def rows_of(part: Part, seed: int = SEED) -> Tensor:
    """The rows of a part that a cell of this seed looks at."""
    return torch.randperm(len(part), generator=torch.Generator().manual_seed(seed))[:POINTS]


def pruned_again(model: nn.Module, dataset: DataSet, row: "pd.Series[Any]") -> sb.Pruned:
    rows = rows_of(dataset.points)
    images, labels = dataset.points.images[rows], dataset.points.labels[rows]
    return sb.fit(model, images, row["method"], labels).prune(row["keep"], SEED)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("keep", [0.4, 0.1])
def test_scores_are_of_the_network_and_part_that_their_names_say(
    runs: dict[str, Run], dataset: DataSet, networks: Callable[[int], nn.Module], method: str, keep: float
) -> None:
    row = runs["one-shot"].cells.set_index(["method", "keep"], drop=False).loc[(method, keep)]
    dense = networks(3)
    pruned = pruned_again(dense, dataset, row)
    assert row["mask_sha256"] == pruned.mask_sha256, "pruned on these points with this seed"
    for prefix, model in (("dense_", dense), ("", pruned.model)):
        require_scores(row, prefix, scores(weights_of(model), dataset.test), dataset.test)
    before, after = (scores(weights_of(model), dataset.validation) for model in (dense, pruned.model))
    require_scores(row, "validation_", after, dataset.validation)
    assert row["dense_validation_accuracy"] == pytest.approx(before["accuracy"], abs=1.01 / len(dataset.validation))
    masks = {name: weight != 0 for name, weight in weights_of(pruned.model).items() if name.endswith("weight")}
    assert (row["kept"], row["weights"]) == (sum(m.sum() for m in masks.values()), sum(m.size for m in masks.values()))
    assert row["requested"] == round(keep * row["weights"])
    assert row["achieved_keep"] == row["kept"] / row["weights"]
    layers = runs["one-shot"].layers.set_index(["id", "layer"]).loc[row["id"]]
    assert layers["kept"].to_dict() == {name: int(mask.sum()) for name, mask in masks.items()}
    assert row["num_points"] == POINTS


def test_the_numbers_above_can_be_told_apart(runs: dict[str, Run]) -> None:
    """What is compared there would be the same under other names if these were equal."""
    cells = runs["one-shot"].cells
    row = cells.query("method == 'random' and keep == 0.1").iloc[0]
    for one, other in (
        ("accuracy", "dense_accuracy"),
        ("validation_accuracy", "dense_validation_accuracy"),
        ("dense_accuracy", "dense_validation_accuracy"),
    ):
        assert abs(row[one] - row[other]) > 0.007, f"{one} and {other} are within the room of the comparison"
    hybrid = cells[cells["method"] == "sipp-hybrid"]
    assert (hybrid["kept"] != hybrid["requested"]).any(), "draws meet the budget in expectation only"


@pytest.mark.parametrize("keep", [0.4, 0.1])
def test_errors_on_s_and_on_fresh_points_are_of_those_points(
    runs: dict[str, Run], dataset: DataSet, networks: Callable[[int], nn.Module], keep: float
) -> None:
    row = runs["one-shot"].cells.query(f"method == 'sipp-hybrid' and keep == {keep}").iloc[0]
    dense = networks(3)
    pruned, weights = pruned_again(dense, dataset, row), weights_of(dense)
    parts = {"S": dataset.points, "fresh": dataset.validation}
    blocks, rows = runs["one-shot"].blocks(row["id"]), runs["one-shot"].checks.set_index(["id", "on", "layer"])
    changed = dict(pruned.model.named_parameters())
    for where, part in parts.items():
        inputs = layers_of(weights, part.images[rows_of(part)])
        for layer, a in zip(("fc1", "fc2", "fc3"), inputs, strict=False):
            name = f"{layer}.weight"
            largest, _ = oracle.relative_errors(torch.from_numpy(weights[name]), changed[name], a[:, None, None])
            # Inputs of the later layers are float32 in the run: relative errors of sums of up to 300 terms of 6e-8.
            np.testing.assert_allclose(blocks[name][f"error_{where}"], largest, rtol=1e-4, atol=1e-4)
            found = rows.loc[(row["id"], where, name)]
            assert found["points"] == POINTS
            assert found["error_max"] == pytest.approx(largest.max(), rel=1e-4, abs=1e-4)
    gap = np.abs(blocks["fc1.weight"]["error_S"] - blocks["fc1.weight"]["error_fresh"]).max()
    assert gap > 0.01, "one could be the other"
    assert f"On the {POINTS} points looked at" in cell_file(runs["one-shot"], row["id"])["guarantee"]


def test_a_lottery_and_its_control_are_trained_alike_from_the_initial_weights(
    runs: dict[str, Run], dataset: DataSet, networks: Callable[[int], nn.Module]
) -> None:
    """With one training written here, whose masks hold before the first step and after each."""
    cells = runs["lottery"].cells.query("method == 'snip' and keep == 0.4")
    row = pd.Series(cell_file(runs["lottery"], cells["id"].item()))
    pruned = pruned_again(networks(3), dataset, row)
    draws = torch.Generator().manual_seed(SEED)
    control = {
        name: mask.flatten()[torch.randperm(mask.numel(), generator=draws)].reshape(mask.shape)
        for name, mask in pruned.masks.items()
    }
    require_scores(row, "pruned_", scores(weights_of(pruned.model), dataset.test), dataset.test)
    found = {}
    for prefix, masks in (("", pruned.masks), ("control_", control)):
        found[prefix] = trained_by_hand(networks(0), masks, dataset.train)
        for part, kind in ((dataset.test, ""), (dataset.validation, "validation_")):
            of_part = scores(weights_of(found[prefix]), part)
            assert row[f"{prefix}{kind}accuracy"] == pytest.approx(of_part["accuracy"], abs=2.01 / len(part)), prefix
            assert row[f"{prefix}{kind}loss"] == pytest.approx(of_part["loss"], rel=1e-2), prefix
    assert abs(row["loss"] - row["control_loss"]) > 0.03 * row["loss"], "one could be the other"


def trained_by_hand(model: nn.Module, masks: dict[str, Tensor], part: Part) -> nn.Module:
    """RECIPE in a few lines; its rates are the recipe's, checked elsewhere."""
    weights = dict(model.named_parameters())
    momentum = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    order, steps, step = torch.Generator().manual_seed(SEED), -(-len(part) // RECIPE.batch_size), 0
    hold(weights, masks)
    for _ in range(RECIPE.epochs):
        for rows in torch.randperm(len(part), generator=order).split(RECIPE.batch_size):
            loss = nn.functional.cross_entropy(model(part.images[rows]), part.labels[rows])
            gradients = torch.autograd.grad(loss, list(weights.values()))
            with torch.no_grad():
                for (name, weight), gradient in zip(weights.items(), gradients, strict=True):
                    gradient = gradient + RECIPE.weight_decay * weight
                    momentum[name] = RECIPE.momentum * momentum[name] + gradient
                    ahead = gradient + RECIPE.momentum * momentum[name] if RECIPE.nesterov else momentum[name]
                    weight -= RECIPE.rate(step, steps) * ahead
            hold(weights, masks)
            step += 1
    return model


def hold(weights: dict[str, Tensor], masks: dict[str, Tensor]) -> None:
    with torch.no_grad():
        for name, mask in masks.items():
            weights[name] *= mask
