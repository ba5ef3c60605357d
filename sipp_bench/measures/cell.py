"""The measures that cost next to nothing, under the names by which a run stores them for each cell."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from sipp_bench.compression.changes import Change
from sipp_bench.measures.calibration import calibration_error
from sipp_bench.measures.cost import compression_ratio, multiply_adds, operations, speedup
from sipp_bench.measures.groups import class_accuracies, largest_gap, loss_changes, worst_group
from sipp_bench.measures.predictions import agreement, flips, top_k_accuracy
from sipp_bench.measures.storage import file_sizes


def prediction_measures(dense: Tensor, pruned: Tensor, labels: Tensor) -> dict[str, Any]:
    """From logits (n, classes) of both networks on the same points.

    top5_accuracy, worst_class, worst_class_accuracy, calibration_error, and the first and the last also with "dense_"
    before them; agreement and flips with the dense network; class_accuracies and class_loss_changes, R(a) by class, as
    lists; loss_gap, the largest difference of R between two classes.
    """
    accuracies = class_accuracies(pruned, labels)
    worst, worst_accuracy = worst_group(accuracies)
    changes = loss_changes(dense, pruned, labels, labels, pruned.shape[1])
    return {
        "top5_accuracy": top_k_accuracy(pruned, labels, 5),
        "dense_top5_accuracy": top_k_accuracy(dense, labels, 5),
        "agreement": agreement(pruned, dense),
        "flips": len(flips(dense, pruned)),
        "class_accuracies": accuracies.tolist(),
        "worst_class": worst,
        "worst_class_accuracy": worst_accuracy,
        "class_loss_changes": changes.tolist(),
        "loss_gap": largest_gap(changes),
        "calibration_error": calibration_error(pruned, labels),
        "dense_calibration_error": calibration_error(dense, labels),
    }


def count_operations(model: nn.Module, example: Tensor) -> tuple[int, int]:
    """Of the dense network, for `cost_measures` of all that is pruned from it: all operations, and those of weights."""
    return operations(model, example), multiply_adds(model, example)


def cost_measures(
    model: nn.Module, example: Tensor, counted: tuple[int, int], pruned: nn.Module, changes: Mapping[str, Change]
) -> dict[str, float]:
    """What `changes` leave of the dense network `model`, which is then `pruned`; counted: from `count_operations`.

    multiply_adds and dense_multiply_adds, of weights; compression_ratio and theoretical_speedup, of the whole network
    with everything that is not pruned in it; file_bytes_dense, file_bytes_csr and file_bytes_bitmap, what it takes on
    disk in each encoding.
    """
    sizes = file_sizes(pruned, changes)
    total, weights = counted
    left = multiply_adds(model, example, changes)
    return {
        "multiply_adds": left,
        "dense_multiply_adds": weights,
        "compression_ratio": compression_ratio(model, changes),
        "theoretical_speedup": speedup(total, weights, left),
        "file_bytes_dense": sizes.dense,
        "file_bytes_csr": sizes.csr,
        "file_bytes_bitmap": sizes.bitmap,
    }
