"""Measures that a suite asks for: in the cells, of the right network, and the same again."""

import copy
import json
from pathlib import Path
from statistics import fmean

import pytest
import torch

import sipp_bench as sb
from sipp_bench import measuring
from sipp_bench.errors import SuiteError
from sipp_bench.measures import asked
from sipp_bench.measures.corruptions import CLEAN, CORRUPTIONS, SEVERITIES, corruption_errors
from sipp_bench.measures.latency import Latency
from sipp_bench.measures.predictions import predict
from sipp_bench.measures.random_splits import random_splits
from sipp_bench.runner import run
from sipp_bench.store import Run
from sipp_bench.suite import parse_suite
from sipp_bench.zoo import data, training
from sipp_bench.zoo.training import Recipe

SUITE = """
name = "asked"
seeds = [1]
keep = [0.1, 1.0]
points = 32
checks = []

[measures]
corruption_images = 60
latency_repeats = 4
random_splits = 5
twin = true

[[target]]
network = "lenet-300-100"
data = "digits"

[[method]]
name = "magnitude"

[[method]]
name = "random"
scope = "layer"
"""


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Run:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(training.RECIPES, "lenet-300-100", Recipe(epochs=6, batch_size=32, learning_rate=0.05))
        folder = tmp_path_factory.mktemp("asked")
        return run(parse_suite(SUITE, "asked.toml"), folder / "run", cache_dir=folder / "cache", progress=False)


@pytest.fixture(scope="module")
def networks(finished: Run) -> tuple[data.DataSet, torch.nn.Module, sb.Pruned]:
    """The data, the dense network and its magnitude-pruned one, made again from the cache."""
    dataset = data.load("digits", seed=1)
    recipe = Recipe(epochs=6, batch_size=32, learning_rate=0.05)
    cache = finished.path.parent / "cache"
    dense = training.trained_model("lenet-300-100", dataset, seed=1, cache_dir=cache, recipe=recipe).model
    return dataset, dense, sb.prune(dense, dataset.points.images[:8], method="magnitude", keep=0.1)


def test_a_network_that_keeps_everything_is_as_good_as_the_dense_one(finished: Run) -> None:
    whole = finished.cells.query("keep == 1")
    assert len(whole) == 2, finished.cells["error"].tolist()
    assert set(whole["excess_error"]) == {0}
    assert list(whole["corrupted_accuracy"]) == list(whole["dense_corrupted_accuracy"])
    assert set(whole["split_percentile"]) == {50}, "all splits keep everything"
    assert (whole["split_accuracies"].map(set) == whole["dense_accuracy"].map(lambda accuracy: {accuracy})).all()


def test_corruptions_are_those_of_the_pruned_network_on_the_sample(
    finished: Run, networks: tuple[data.DataSet, torch.nn.Module, sb.Pruned]
) -> None:
    dataset, dense, pruned = networks
    row = finished.cells.query("method == 'magnitude' and keep == 0.1").iloc[0]
    assert row["mask_sha256"] == pruned.mask_sha256
    sample = measuring._draw(dataset.test, 60, 1)
    errors, before = (corruption_errors(n, sample.images, sample.labels, seed=1) for n in (pruned.model, dense))
    assert row["corruption_errors"] == [errors[name, severity] for name in CORRUPTIONS for severity in SEVERITIES]
    assert len(row["excess_errors"]) == len(row["corruption_errors"])
    spoiled = [key for key in errors if key != CLEAN]
    assert row["corrupted_accuracy"] == pytest.approx(1 - fmean(errors[key] for key in spoiled))
    assert row["dense_corrupted_accuracy"] == pytest.approx(1 - fmean(before[key] for key in spoiled))
    excess = fmean(errors[key] - errors[CLEAN] - before[key] + before[CLEAN] for key in spoiled)
    assert row["excess_error"] == pytest.approx(excess)
    assert excess != 0


def test_percentiles_are_among_random_splits_of_the_same_budget(finished: Run) -> None:
    cells = finished.cells.query("keep == 0.1").set_index("method")
    one, other = cells["split_accuracies"]
    assert one == other, "all methods are compared with the same splits"
    assert len(one) == 5
    assert len(set(one)) > 1
    for accuracy, percentile in zip(cells["accuracy"], cells["split_percentile"], strict=True):
        beaten = sum(accuracy > split for split in one) + sum(accuracy == split for split in one) / 2
        assert percentile == pytest.approx(100 * beaten / 5)


def test_random_splits_are_those_of_the_cells_seed_and_size(
    finished: Run, networks: tuple[data.DataSet, torch.nn.Module, sb.Pruned]
) -> None:
    dataset, dense, pruned = networks
    accuracies = []
    for split in random_splits({name: mask.numel() for name, mask in pruned.masks.items()}, pruned.kept, 5, seed=1):
        network = copy.deepcopy(dense)
        for name, kept in split.items():
            weight = network.get_parameter(name).detach()
            smallest = weight.abs().flatten().argsort()[: weight.numel() - kept]
            weight.view(-1)[smallest] = 0
        right = predict(network, dataset.test.images).argmax(1) == dataset.test.labels
        accuracies.append(int(right.sum()) / len(right))
    row = finished.cells.query("method == 'magnitude' and keep == 0.1").iloc[0]
    assert row["split_accuracies"] == accuracies


def test_latency_is_timed_of_the_dense_and_the_pruned_network_on_one_batch(
    networks: tuple[data.DataSet, torch.nn.Module, sb.Pruned], monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset, dense, pruned = networks
    timed = []
    monkeypatch.setattr(asked, "latency_pair", lambda *a: timed.append(a) or Latency((1.0,), (2.0,)))
    some = asked.Asked(latency_repeats=7)
    subject = asked.Subject(some, dense, dataset.test, None, dataset.points.images, torch.zeros(1), None, 0)
    assert subject.latency(pruned.model) == {"latency_dense_seconds": [1.0], "latency_pruned_seconds": [2.0]}
    ((first, second, images, repeats),) = timed
    assert (first is dense, second is pruned.model, repeats) == (True, True, 7)
    assert torch.equal(images, dataset.test.images[:32])


def test_the_twin_is_another_network_on_the_same_data(
    finished: Run, networks: tuple[data.DataSet, torch.nn.Module, sb.Pruned]
) -> None:
    dataset, dense, _ = networks
    cells = finished.cells
    assert cells["twin_agreement"].nunique() == cells["twin_accuracy"].nunique() == 1
    own = torch.from_numpy(finished.predictions(cells["id"][0])["dense"])
    agreements = []
    for checkpoint in (finished.path.parent / "cache").glob("*.safetensors"):
        network = copy.deepcopy(dense)
        training.load_checkpoint(network, checkpoint)
        classes = predict(network, dataset.test.images).argmax(1)
        agreements.append(float((own == classes).double().mean()))
    assert sorted(agreements) == [cells["twin_agreement"][0], 1.0], "the twin's, and the dense network's own"
    # Where both are equal, the line above holds too.
    assert 0.5 < cells["twin_agreement"][0] < 1


def test_the_accuracy_and_agreement_of_the_twin_are_its_own(
    networks: tuple[data.DataSet, torch.nn.Module, sb.Pruned],
) -> None:
    """With the pruned network for a twin, whose accuracy is another than the dense one's."""
    dataset, dense, pruned = networks
    test, (logits, others) = dataset.test, (predict(n, dataset.test.images) for n in (dense, pruned.model))
    subject = asked.Subject(asked.Asked(), dense, test, None, dataset.points.images, logits, pruned.model, 0)
    own, expected = ((each.argmax(1) == test.labels).double().mean().item() for each in (logits, others))
    agreement = (logits.argmax(1) == others.argmax(1)).double().mean().item()
    assert subject.measures(pruned, 0.5) == pytest.approx({"twin_accuracy": expected, "twin_agreement": agreement})
    assert abs(own - expected) > 1e-3


def test_a_twin_that_is_the_network_again_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(training.RECIPES, "lenet-300-100", Recipe(epochs=1, batch_size=32, learning_rate=0.05))
    monkeypatch.setattr(measuring, "derived_seed", lambda seed, purpose: seed)
    text = SUITE.replace("random_splits = 5", "random_splits = 0").replace("corruption_images = 60", "")
    cells = run(parse_suite(text, "asked.toml"), tmp_path / "run", cache_dir=tmp_path / "cache", progress=False).cells
    assert set(cells["status"]) == {"failed"}
    assert cells["error"].str.contains("The twin has the very weights of the network that it is a control of").all()


def test_latencies_are_raw_samples_apart_from_the_results(finished: Run) -> None:
    for column in ("latency_dense_seconds", "latency_pruned_seconds"):
        assert finished.timings[column].map(len).tolist() == [4] * 4
        assert all(second > 0 for samples in finished.timings[column] for second in samples)
    cell = json.loads(next(finished.path.glob("cells/*k0.1.json")).read_text())
    assert not any("seconds" in key for key in cell)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("random_splits = 5", "random_splits = -1", "random_splits"),
        ("twin = true", "twin = 1", "twin"),
        ("twin = true", "sibling = true", "sibling"),
        ("checks = []", 'protocol = "retrain"', "random_splits are pruned and not retrained"),
        (
            'network = "lenet-300-100"\ndata = "digits"',
            'network = "resnet-18"\ndata = "imagenet"\nweights = "pretrained"',
            "no twin of it can be trained",
        ),
    ],
)
def test_what_cannot_be_measured_is_refused(old: str, new: str, message: str) -> None:
    assert old in SUITE
    with pytest.raises(SuiteError, match=message):
        parse_suite(SUITE.replace(old, new), "asked.toml")
