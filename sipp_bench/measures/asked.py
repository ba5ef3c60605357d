"""The measures that cost more than a forward pass over the test part: a suite asks for them by name."""

import copy
import functools
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn

from sipp_bench.compression.pruned import Pruned
from sipp_bench.measures.corruptions import CLEAN, Errors, corruption_errors, excess_errors
from sipp_bench.measures.latency import latency_pair
from sipp_bench.measures.predictions import agreement, predict, top_k_accuracy
from sipp_bench.measures.random_splits import percentile, random_splits, split_masks
from sipp_bench.methods import fit
from sipp_bench.zoo.data import Part


@dataclass(frozen=True, kw_only=True)
class Asked:
    """How much of each measure is wanted; 0 or False for none.

    corruption_images: test images, drawn by the seed, that are spoiled in every way and severity of `corruptions`.
    latency_repeats: pairs of forward passes of 32 test images that are timed. random_splits: random splits of the
    budget over the layers, each cut by magnitude, that a method's accuracy is compared with. twin: whether a second
    dense network, trained on the same images with another seed, is compared with the first: what two trainings differ
    by, pruning aside.
    """

    corruption_images: int = 0
    latency_repeats: int = 0
    random_splits: int = 0
    twin: bool = False


LATENCY_BATCH = 32


@dataclass(frozen=True, eq=False)
class Subject:
    """A trained network on which what is `asked` for is measured; what all its cells share is measured once.

    test: the whole test part; sample: as many random rows of it as there are images to spoil, or None; dense_logits:
    on the test part; twin: the second dense network or None; points: what magnitude traces the weights with.
    """

    asked: Asked
    model: nn.Module
    test: Part
    sample: Part | None
    points: Tensor
    dense_logits: Tensor
    twin: nn.Module | None
    seed: int

    def measures(self, final: "Pruned", accuracy: float) -> dict[str, Any]:
        """Of a cell, by the names under which runs store them; accuracy: its top-1 accuracy on the test part."""
        return self._corruptions(final.model) | self._splits(final.kept, accuracy) | self._of_twin

    def latency(self, final: nn.Module) -> dict[str, list[float]]:
        """Raw samples of `latency_pair`, in seconds; nothing if it is not asked for."""
        if not self.asked.latency_repeats:
            return {}
        found = latency_pair(self.model, final, self.test.images[:LATENCY_BATCH], self.asked.latency_repeats)
        return {"latency_dense_seconds": list(found.dense), "latency_pruned_seconds": list(found.pruned)}

    def _corruptions(self, model: nn.Module) -> dict[str, Any]:
        """Mean accuracy over all corruptions and severities of both networks, and the mean excess error.

        And errors and excess errors one by one, as lists: the corruptions in the order of `CORRUPTIONS`, each in its
        five severities from mild to strong.
        """
        if self.sample is None:
            return {}
        errors, dense = self._errors(model), self._dense_errors
        excess = excess_errors(errors, dense)
        return {
            "corrupted_accuracy": _mean_accuracy(errors),
            "dense_corrupted_accuracy": _mean_accuracy(dense),
            "excess_error": fmean(excess.values()),
            "corruption_errors": [errors[key] for key in excess],
            "excess_errors": list(excess.values()),
        }

    def _errors(self, model: nn.Module) -> Errors:
        assert self.sample is not None
        return corruption_errors(model, self.sample.images, self.sample.labels, seed=self.seed)

    @functools.cached_property
    def _dense_errors(self) -> Errors:
        return self._errors(self.model)

    def _splits(self, kept: int, accuracy: float) -> dict[str, Any]:
        """The percentile of `accuracy` among random splits of as many weights, and their accuracies."""
        if not self.asked.random_splits:
            return {}
        if kept not in self._split_accuracies:
            self._split_accuracies[kept] = [
                self._accuracy_of(split_masks(*self._magnitudes, split))
                for split in random_splits(self._sizes, kept, self.asked.random_splits, self.seed)
            ]
        others = self._split_accuracies[kept]
        return {"split_percentile": percentile(accuracy, others), "split_accuracies": others}

    @functools.cached_property
    def _split_accuracies(self) -> dict[int, list[float]]:
        return {}

    @functools.cached_property
    def _magnitudes(self) -> tuple[Mapping[str, Tensor], dict[str, Tensor]]:
        scores = fit(self.model, self.points, method="magnitude").observation.scores
        return scores, {name: p.detach() for name, p in self.model.named_parameters() if name in scores}

    @property
    def _sizes(self) -> dict[str, int]:
        return {name: weight.numel() for name, weight in self._magnitudes[1].items()}

    def _accuracy_of(self, masks: Mapping[str, Tensor]) -> float:
        model = copy.deepcopy(self.model)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name in masks:
                    parameter.mul_(masks[name])
        return top_k_accuracy(predict(model, self.test.images), self.test.labels, 1)

    @functools.cached_property
    def _of_twin(self) -> dict[str, float]:
        if self.twin is None:
            return {}
        logits = predict(self.twin, self.test.images)
        return {
            "twin_accuracy": top_k_accuracy(logits, self.test.labels, 1),
            "twin_agreement": agreement(logits, self.dense_logits),
        }


def _mean_accuracy(errors: Errors) -> float:
    return 1 - fmean(error for key, error in errors.items() if key != CLEAN)
