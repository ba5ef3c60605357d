"""Protocols: masks hold, the last epoch counts, test data has no say, and what each one trains from what."""

import dataclasses
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import sipp_bench as sb
from sipp_bench.bench import measuring, protocols
from sipp_bench.bench.protocols import Task, make_protocol
from sipp_bench.bench.runner import run
from sipp_bench.bench.suite import parse_suite
from sipp_bench.compression import masks
from sipp_bench.errors import DataError, ModelError, OptionError, SuiteError
from sipp_bench.measures.predictions import evaluate
from sipp_bench.store.folder import Run
from sipp_bench.zoo import data, models, training
from sipp_bench.zoo.training import Recipe

RECIPE = Recipe(epochs=3, batch_size=50, learning_rate=0.05)
RETRAINING = {
    "retrain": {"retrain_epochs": 1},
    "cascade": {"retrain_epochs": 1, "steps": 2},
    "lr-rewind": {"retrain_epochs": 1},
    "rewind": {"rewind_epoch": 1},
    "lottery": {},
}
FROM_EARLY = ("rewind", "lottery")
"""What begins at early weights: as short as these trainings are, it may stay behind what was only pruned."""
SUITE = """
name = "small"
seeds = [0]
keep = [0.3]
points = 32
protocol = "{protocol}"
protocol_options = {{ {options} }}

[[target]]
network = "lenet-300-100"
data = "digits"

[[method]]
name = "{method}"
"""


@pytest.fixture(scope="module")
def digits() -> data.DataSet:
    return data.load("digits")


@pytest.fixture(scope="module")
def early(digits: data.DataSet) -> Callable[[int], nn.Module]:
    """The network after so many epochs."""
    kept = {}
    for epochs in range(4):
        kept[epochs] = models.build("lenet-300-100", digits.input_shape)
        training.train(kept[epochs], digits.train.images, digits.train.labels, RECIPE, 0, last_epoch=epochs)
    return lambda epoch: kept[epoch]


@pytest.fixture(scope="module")
def make_task(digits: data.DataSet, early: Callable[[int], nn.Module]) -> Callable[..., Task]:
    def make(method: str = "magnitude", keep: float = 0.1) -> Task:
        def fit(model: nn.Module) -> sb.Fitted:
            return sb.fit(model, digits.points.images[:32], method, digits.points.labels[:32])

        return Task(fit(early(3)), fit, early, digits.train, RECIPE, keep, seed=0)

    return make


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def equal(one: nn.Module, other: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(one.parameters(), other.parameters(), strict=True))


def accuracy(model: nn.Module, part: data.Part) -> float:
    return evaluate(model, part.images, part.labels)["accuracy"]


@pytest.mark.parametrize("method", ["magnitude", "sipp-hybrid", "sipp-rand", "random"])
@pytest.mark.parametrize("name", RETRAINING)
def test_masks_hold_and_the_trained_network_stays_as_it_is(
    make_task: Callable[..., Task], early: Callable[[int], nn.Module], name: str, method: str
) -> None:
    before = [state(early(epoch)) for epoch in range(4)]
    outcome = make_protocol(name, **RETRAINING[name]).run(make_task(method))
    assert outcome.retrained is not None
    for pruned in filter(None, (outcome.pruned, outcome.retrained, outcome.control)):
        masks.require_masks_held(pruned)
        assert {n: int(mask.sum()) for n, mask in pruned.masks.items()} == {
            n: int(mask.sum()) for n, mask in outcome.pruned.masks.items()
        }
    assert outcome.pruned.kept == pytest.approx(0.1 * outcome.pruned.weights, rel=0.03)
    assert not equal(outcome.retrained.model, outcome.pruned.model)
    for epoch in range(4):
        assert all(torch.equal(value, before[epoch][n]) for n, value in early(epoch).state_dict().items())


def test_a_guarantee_is_void_after_retraining_and_in_force_before(make_task: Callable[..., Task]) -> None:
    for name, options in RETRAINING.items():
        outcome = make_protocol(name, **options).run(make_task("sipp-det", keep=0.5))
        assert outcome.retrained is not None
        assert outcome.pruned.guarantee is not None
        assert outcome.pruned.guarantee.void is None
        assert outcome.retrained.guarantee is None or outcome.retrained.guarantee.void


def test_one_shot_prunes_and_nothing_else(make_task: Callable[..., Task]) -> None:
    task = make_task()
    outcome = make_protocol("one-shot").run(task)
    assert (outcome.retrained, outcome.control, outcome.reference) == (None, None, task.fitted.model)
    assert outcome.pruned.mask_sha256 == task.fitted.prune(0.1, 0).mask_sha256


def test_retraining_helps_and_repeats_bit_for_bit(make_task: Callable[..., Task], digits: data.DataSet) -> None:
    for name, options in RETRAINING.items():
        first, again = (make_protocol(name, **options).run(make_task(keep=0.05)) for _ in range(2))
        assert first.retrained is not None
        assert again.retrained is not None
        assert first.retrained.mask_sha256 == again.retrained.mask_sha256
        gain = accuracy(first.retrained.model, digits.validation) - accuracy(first.pruned.model, digits.validation)
        assert gain > 0 or name in FROM_EARLY, name


def test_a_cascade_is_geometric_and_nested(make_task: Callable[..., Task], monkeypatch: pytest.MonkeyPatch) -> None:
    cascade = make_protocol("cascade", retrain_epochs=1, steps=3)
    assert isinstance(cascade, protocols.Cascade)
    assert cascade.path(0.008) == pytest.approx([0.2, 0.04, 0.008])
    assert cascade.path(0.008)[-1] == 0.008
    seen = []
    retrained = protocols.retrained
    monkeypatch.setattr(protocols, "retrained", lambda *a, **o: seen.append(retrained(*a, **o)) or seen[-1])
    outcome = cascade.run(make_task(keep=0.008))
    sizes = [pruned.kept / pruned.weights for pruned in seen]
    assert sizes == pytest.approx([0.2, 0.04, 0.008], rel=0.01)
    for before, after in itertools.pairwise(seen):
        masks.require_nested(after, before)
    assert equal(outcome.reference, seen[1].model)
    with pytest.raises(ModelError, match="an earlier one had pruned"):
        masks.require_nested(seen[0], seen[1])


def test_lr_rewind_repeats_the_last_epochs_and_rewind_starts_from_an_early_one(
    make_task: Callable[..., Task], early: Callable[[int], nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[nn.Module, dict[str, Any]]] = []
    train = training.train

    def noted(model: nn.Module, *arguments: Any, **options: Any) -> None:
        copied = models.build("lenet-300-100", (1, 8, 8))
        copied.load_state_dict(model.state_dict())
        calls.append((copied, options | {"recipe": arguments[2]}))
        train(model, *arguments, **options)

    monkeypatch.setattr(training, "train", noted)
    outcome = make_protocol("lr-rewind", retrain_epochs=1).run(make_task())
    assert calls[0][1]["first_epoch"] == 2
    assert calls[0][1]["recipe"] == RECIPE
    assert equal(calls[0][0], outcome.pruned.model)
    calls.clear()
    outcome = make_protocol("rewind", rewind_epoch=2).run(make_task())
    assert calls[0][1]["first_epoch"] == 2
    start = dict(calls[0][0].named_parameters())
    for name, value in early(2).named_parameters():
        assert torch.equal(start[name], value * outcome.pruned.masks.get(name, torch.ones(())))


@pytest.mark.parametrize("mask_from", ["trained", "init"])
def test_a_lottery_trains_the_found_subnetwork_and_a_random_one_of_the_same_layer_budgets(
    make_task: Callable[..., Task], digits: data.DataSet, early: Callable[[int], nn.Module], mask_from: str
) -> None:
    task = make_task(keep=0.03)
    outcome = make_protocol("lottery", mask_from=mask_from).run(task)
    assert outcome.retrained is not None
    assert outcome.control is not None
    assert outcome.reference is (task.fitted.model if mask_from == "trained" else early(0))
    for name, mask in outcome.pruned.masks.items():
        assert torch.equal(mask, outcome.retrained.masks[name])
        assert int(mask.sum()) == int(outcome.control.masks[name].sum())
    assert any(not torch.equal(mask, outcome.control.masks[name]) for name, mask in outcome.pruned.masks.items())
    if mask_from == "init":
        return  # before training, magnitudes say nothing
    found, random = (accuracy(each.model, digits.validation) for each in (outcome.retrained, outcome.control))
    assert found > random - 0.02


def test_a_leaking_mask_is_an_error(make_task: Callable[..., Task], monkeypatch: pytest.MonkeyPatch) -> None:
    def leaky(self: sb.Pruned, step: Any = None) -> Any:
        """Masks once at the start, and not after a step."""
        return step if step is not None else None

    monkeypatch.setattr(sb.Pruned, "apply_masks", leaky)
    with pytest.raises(ModelError, match=r"came back during retraining"):
        make_protocol("retrain", retrain_epochs=1).run(make_task())


def test_a_mask_that_leaks_in_the_middle_and_holds_at_the_end_is_an_error(
    make_task: Callable[..., Task], monkeypatch: pytest.MonkeyPatch
) -> None:
    apply, calls = sb.Pruned.apply_masks, 0

    def sometimes(self: sb.Pruned, step: Any = None) -> Any:
        nonlocal calls
        calls += 1
        return apply(self, step) if step is not None or calls != 10 else None

    monkeypatch.setattr(sb.Pruned, "apply_masks", sometimes)
    with pytest.raises(ModelError, match=r"came back during retraining"):
        make_protocol("retrain", retrain_epochs=1).run(make_task())


def measured(protocol: str, cache: Path, folder: Path, method: str = "sipp-det", **options: Any) -> Run:
    text = ", ".join(f"{key} = {value!r}" for key, value in options.items())
    suite = parse_suite(SUITE.format(protocol=protocol, options=text, method=method), "small.toml")
    return run(suite, folder, cache_dir=cache, progress=False)


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(training.RECIPES, "lenet-300-100", RECIPE)


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize("name", RETRAINING)
def test_cells_hold_what_was_before_and_after_retraining(name: str, tmp_path: Path) -> None:
    finished = measured(name, tmp_path / "cache", tmp_path / "run", **RETRAINING[name])
    cell = finished.cells.iloc[0]
    assert cell["status"] == "done", cell["error"]
    assert cell["accuracy"] > cell["pruned_accuracy"] or name in FROM_EARLY
    assert (cell["control_accuracy"] > 0) == (name == "lottery")
    assert cell["retrained_sha256"] != cell["mask_sha256"]
    predicted = finished.predictions(cell["id"])
    for stage, accuracy in {
        "pruned": "pruned_accuracy",
        "retrained": "accuracy",
        "control": "control_accuracy",
    }.items():
        if stage in predicted:
            assert (predicted[stage] == predicted["labels"]).mean() == pytest.approx(cell[accuracy])
    assert predicted.keys() == {"labels", "dense", "pruned", "retrained"} | (
        {"control"} if name == "lottery" else set()
    )
    assert finished.timings["protocol_seconds"].notna().all()
    assert set(finished.checks["claim"]) == {"C2"}
    assert (finished.checks.query("on == 'S'")["exceeding"] == 0).all(), "the checks are of the network as pruned"


@pytest.mark.usefixtures("short")
def test_a_cascade_over_the_suite_is_one_chain_and_a_lost_cell_comes_back_to_the_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = []
    retrained = protocols.retrained
    monkeypatch.setattr(protocols, "retrained", lambda *a, **o: trained.append(a[0].kept) or retrained(*a, **o))
    monkeypatch.setitem(globals(), "SUITE", SUITE.replace("keep = [0.3]", "keep = [0.05, 0.5, 0.2]"))
    options = {"retrain_epochs": 1, "steps": "suite"}
    finished = measured("cascade", tmp_path / "cache", tmp_path / "run", method="sipp-hybrid", **options)
    assert (finished.cells["status"] == "done").all(), finished.cells["error"].tolist()
    assert len(trained) == 3, "each keep ratio is retrained once, all on one network"
    assert trained == sorted(trained, reverse=True)
    lost = tmp_path / "run" / "cells" / "lenet-300-100--digits--sipp-hybrid--s0--k0.2.json"
    before = lost.read_bytes()
    lost.unlink()
    measured("cascade", tmp_path / "cache", tmp_path / "run", method="sipp-hybrid", **options)
    assert lost.read_bytes() == before
    assert len(trained) == 5, "the chain down to the lost cell again"


def poisoned_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, str]:
    """What retraining gives, with the test part as it is and with its labels in another order."""
    load, results = data.load, []
    for shift in (0, 1):

        def poisoned(*arguments: Any, shift: int = shift, **options: Any) -> data.DataSet:
            found = load(*arguments, **options)
            test = dataclasses.replace(found.test, labels=found.test.labels.roll(shift))
            return dataclasses.replace(found, test=test)

        monkeypatch.setattr(data, "load", poisoned)
        cells = measured("retrain", tmp_path / "cache", tmp_path / str(shift), retrain_epochs=3).cells
        assert cells["status"].item() == "done"
        results.append(str(cells["retrained_sha256"].item()))
    return results[0], results[1]


@pytest.mark.usefixtures("short")
def test_test_labels_do_not_matter_to_what_is_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = poisoned_results(tmp_path, monkeypatch)
    assert one == other


@pytest.mark.usefixtures("short")
def test_choosing_the_best_epoch_on_test_would_be_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    retrained = protocols.retrained

    def best_on_test(pruned: sb.Pruned, task: Task, recipe: Recipe, first_epoch: int = 0) -> sb.Pruned:
        test = data.load("digits").test
        runs = [retrained(pruned, task, dataclasses.replace(recipe, epochs=n)) for n in range(1, recipe.epochs + 1)]
        return max(runs, key=lambda run: accuracy(run.model, test))

    monkeypatch.setattr(protocols, "retrained", best_on_test)
    one, other = poisoned_results(tmp_path, monkeypatch)
    assert one != other, "the check above sees the error"


@pytest.mark.usefixtures("short")
def test_points_that_are_test_data_end_the_cell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw = measuring._draw
    test = data.load("digits").test
    monkeypatch.setattr(measuring, "_draw", lambda part, wanted, seed: draw(test, wanted, seed))
    cells = measured("one-shot", tmp_path / "cache", tmp_path / "run").cells
    assert cells["status"].item() == "failed"
    assert DataError.__name__ in cells["error"].item()
    assert "32 of them test data" in cells["error"].item()


@pytest.mark.parametrize(
    ("protocol", "options", "message"),
    [
        ("retrain", "retrain_epochs = 0", "retrain_epochs is a whole number of at least 1"),
        ("retrain", "retrain_rate = -1", "retrain_rate is a learning rate above 0"),
        ("retrain", "steps = 2", "no option 'steps'. Its options are: retrain_epochs, retrain_rate"),
        ("one-shot", "retrain_epochs = 2", "has no option 'retrain_epochs'. It has none"),
        ("cascade", "steps = true", "steps is a whole number"),
        ("cascade", 'steps = "all"', 'or "suite", not'),
        ("rewind", "rewind_epoch = 30", "rewind_epoch is below the 30 epochs"),
        ("rewind", "rewind_epoch = 'two'", "whole number of at least 0"),
        ("lr-rewind", "retrain_epochs = 31", "at most the 30 of the training"),
        ("lottery", "mask_from = 'random'", '"trained" or "init"'),
    ],
)
def test_suites_refuse_options_that_the_protocol_does_not_take(protocol: str, options: str, message: str) -> None:
    with pytest.raises(SuiteError) as caught:
        parse_suite(SUITE.format(protocol=protocol, options=options, method="magnitude"), "mine.toml")
    assert message in str(caught.value)
    assert "Value error" not in str(caught.value)


def test_published_weights_are_not_retrained_and_networks_without_a_recipe_need_them() -> None:
    text = SUITE.format(protocol="retrain", options="", method="magnitude").replace("lenet-300-100", "resnet-18")
    with pytest.raises(SuiteError, match="no training recipe"):
        parse_suite(text, "mine.toml")
    with pytest.raises(SuiteError, match="cannot retrain it"):
        parse_suite(text.replace('data = "digits"', 'data = "digits"\nweights = "pretrained"'), "mine.toml")
    with pytest.raises(OptionError, match=r"no protocol 'lotery'\. Did you mean lottery"):
        make_protocol("lotery")
