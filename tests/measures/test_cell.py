"""What a run stores of each cell: the measures' own values, in plain types."""

import json

import pytest
import torch
from samples import build, small_network

import sipp_bench as sb
from sipp_bench.measures import calibration, cost, groups, predictions, storage
from sipp_bench.measures.cell import cost_measures, count_operations, prediction_measures
from sipp_bench.measures.cost import multiply_adds
from sipp_bench.store.records import plain, to_json


def test_by_hand() -> None:
    labels = torch.tensor([0, 0, 1, 1, 2, 2])
    dense = 2 * torch.eye(7)[labels]
    pruned = dense.clone()
    pruned[5] = torch.tensor([9.0, 8, -1, 7, 6, 5, 4])
    found = prediction_measures(dense, pruned, labels)
    assert found["class_accuracies"][:3] == [1, 1, 0.5]
    assert (found["worst_class"], found["worst_class_accuracy"]) == (2, 0.5)
    assert (found["agreement"], found["flips"]) == (5 / 6, 1)
    assert (found["top5_accuracy"], found["dense_top5_accuracy"]) == (5 / 6, 1)
    assert found["class_loss_changes"][:2] == [0, 0]
    changes = predictions.losses(pruned, labels) - predictions.losses(dense, labels)
    assert found["loss_gap"] == found["class_loss_changes"][2] == pytest.approx(float(changes[5]) / 2)
    assert found["calibration_error"] == calibration.calibration_error(pruned, labels)
    assert found["dense_calibration_error"] == calibration.calibration_error(dense, labels)
    stored = json.loads(to_json(found))
    assert stored == plain(found)
    assert stored["class_accuracies"][3:] == [None] * 4, "classes without points"


def test_flips_and_agreement_are_with_the_dense_network_where_it_is_wrong_too() -> None:
    labels = torch.tensor([0, 0, 1, 1, 2])
    dense, pruned = torch.eye(3)[[1, 0, 1, 1, 0]], torch.eye(3)[[1, 0, 2, 1, 2]]
    found = prediction_measures(dense, pruned, labels)
    # Of five images pruning changes two, and two are wrong after it: others, one of them.
    assert (found["flips"], found["agreement"]) == (2, 3 / 5)
    assert found["class_accuracies"] == [0.5, 0.5, 1]
    wrong = torch.eye(3)[[1, 1, 1, 1, 0]]
    found = prediction_measures(wrong, wrong, labels)
    assert (found["flips"], found["agreement"]) == (0, 1), "an error that both make is no flip"


def test_dense_and_pruned_are_not_mixed_up() -> None:
    generator = torch.Generator().manual_seed(0)
    dense, pruned = torch.randn(2, 60, 8, generator=generator)
    labels = torch.randint(8, (60,), generator=generator)
    one, other = prediction_measures(dense, pruned, labels), prediction_measures(pruned, dense, labels)
    for name in ("top5_accuracy", "calibration_error"):
        assert one[name] == other[f"dense_{name}"]
        assert one[name] != other[name]
    for name in ("agreement", "flips"):
        assert one[name] == other[name]
    assert one["loss_gap"] == pytest.approx(other["loss_gap"])
    assert one["class_loss_changes"] == pytest.approx([-change for change in other["class_loss_changes"]])
    assert one["class_accuracies"] == groups.class_accuracies(pruned, labels).tolist()


def test_costs() -> None:
    network, x = build(small_network), torch.rand(20, 2, 6, 6)
    pruned = sb.prune(network, x, method="magnitude", keep=0.2)
    sizes = storage.file_sizes(pruned.model, pruned.changes)
    counted = count_operations(network, x[:1])
    assert cost_measures(network, x[:1], counted, pruned.model, pruned.changes) == {
        "multiply_adds": multiply_adds(network, x[:1], pruned.changes),
        "dense_multiply_adds": multiply_adds(network, x[:1]),
        "compression_ratio": cost.compression_ratio(network, pruned.changes),
        "theoretical_speedup": cost.theoretical_speedup(network, x[:1], pruned.changes),
        "file_bytes_dense": sizes.dense,
        "file_bytes_csr": sizes.csr,
        "file_bytes_bitmap": sizes.bitmap,
    }
    assert sizes.bitmap < sizes.dense
