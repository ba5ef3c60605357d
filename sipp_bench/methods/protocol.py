"""The protocol of every pruning method: settings at construction, one look at the points, then a budget at a time."""

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from sipp_bench.compression.guarantee import Guarantee
from sipp_bench.compression.pruned import Pruned
from sipp_bench.errors import ModelError, OptionError
from sipp_bench.machine.seeds import require_seed
from sipp_bench.network.points import Points, call_model, digest, iterate_batches, model_device
from sipp_bench.network.tracing import Call, tracing
from sipp_bench.network.unmeasured import check_parameters, unmeasured
from sipp_bench.sensitivity.measure import nothing_to_prune


@dataclass(frozen=True)
class Observation:
    """What one look at the points gave.

    scores: by weight name, shaped like the weight, of at least 0 and larger for weights worth keeping. Their names are
    the prunable weights. skipped: weights that stay dense, each with the reason. A method adds what it needs.
    """

    scores: Mapping[str, Tensor]
    skipped: Mapping[str, str]


@dataclass(frozen=True)
class Selection:
    """What a method decides for one budget: the new weights, the counts it asked for per weight, its guarantee."""

    weights: Mapping[str, Tensor]
    requested: Mapping[str, int]
    guarantee: Guarantee | None = None


@dataclass(frozen=True, kw_only=True)
class Method(ABC):
    """A pruning method: a frozen dataclass whose fields are its options, checked at construction.

    A new method is one file with a subclass that has a `name` and the two functions below, then
    `sipp_bench.register_method(name, cls)`.
    """

    name: ClassVar[str]

    @abstractmethod
    def observe(self, model: nn.Module, points: Points, labels: Tensor | None, batch_size: int) -> Observation:
        """Look at the points once; the network is afterwards as it was."""

    @abstractmethod
    def select(
        self, observation: Observation, weights: Mapping[str, Tensor], budget: int, rng: np.random.Generator
    ) -> Selection:
        """New weights with `budget` of them non-zero (in expectation, for a method that samples).

        weights: the network's own, by name; not to be changed. All randomness comes from `rng`.
        """

    def options(self) -> dict[str, Any]:
        """The method's settings by name, defaults included."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}


@dataclass(frozen=True)
class Fitted:
    """A method that has looked at the points: prune as often as you like, each time from the network as it is."""

    method: Method
    model: nn.Module
    observation: Observation
    _digests: Mapping[str, str] = field(repr=False)

    @property
    def skipped(self) -> Mapping[str, str]:
        """Weights that stay dense, each with the reason."""
        return self.observation.skipped

    def prune(self, keep: float, seed: int = 0) -> Pruned:
        """A copy of the network with round(keep * N) of its N prunable weights non-zero; the network stays as it is.

        keep: within [0, 1]; 1 gives the network bit for bit, 0 has every prunable weight zero. Deterministic methods
        hit the count exactly (short only where the network itself has fewer non-zero weights); sampling methods in
        expectation over seeds. seed: of all randomness, of 32 bits. Raises OptionError for a keep outside [0, 1] or a
        seed outside [0, 2**32), ModelError if the network's weights changed since the fit.
        """
        if isinstance(keep, bool) or not isinstance(keep, int | float | np.integer | np.floating) or not 0 <= keep <= 1:
            raise OptionError(f"keep is the fraction of weights left non-zero, within [0, 1], not {keep!r}.")
        rng = np.random.default_rng(require_seed(seed))
        weights = self._weights()
        count = sum(weight.numel() for weight in weights.values())
        budget = round(float(keep) * count)
        selection = self.method.select(self.observation, weights, budget, rng)
        return Pruned.from_selection(self.model, selection.weights, selection.requested, budget, selection.guarantee)

    def _weights(self) -> dict[str, Tensor]:
        weights = {name: p.detach() for name, p in self.model.named_parameters() if name in self._digests}
        # Torch's version counter is blind to changes through `.data` and to replaced parameters.
        for name, before in self._digests.items():
            if name not in weights or digest(weights[name]) != before:
                raise ModelError(f"The weight {name!r} has changed since the method looked at the network: fit again.")
        return weights


def fit_method(
    method: Method, model: nn.Module, points: Points, labels: Tensor | None = None, batch_size: int = 64
) -> Fitted:
    """Let a method look at the points once."""
    check_parameters(model)
    return fitted(method, model, method.observe(model, points, labels, batch_size))


def fitted(method: Method, model: nn.Module, observation: Observation) -> Fitted:
    """A method that has made this observation of this network; ModelError if there is nothing to prune."""
    if not observation.scores:
        raise ModelError(nothing_to_prune(model, observation.skipped))
    parameters = dict(model.named_parameters())
    return Fitted(method, model, observation, {name: digest(parameters[name]) for name in observation.scores})


def prunable_weights(model: nn.Module, points: Points, batch_size: int) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Weights that the network applies as linear maps to these points, and those that stay dense with the reason.

    What every method prunes, whether it needs the points or not, so that a budget means the same to all.
    """
    with torch.no_grad(), tracing(model, _ignore) as trace:
        for inputs, _ in iterate_batches(points, batch_size, model_device(model), model):
            call_model(model, inputs)
    names = trace.applied - trace.dense.keys()
    weights = {name: parameter.detach() for name, parameter in model.named_parameters() if name in names}
    return weights, unmeasured(model, trace)


def _ignore(call: Call, output: Tensor) -> None:
    return None
