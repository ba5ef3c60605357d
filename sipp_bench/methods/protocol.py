"""The protocol of every pruning method: settings at construction, one look at the points, then a budget at a time."""

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np
from torch import Tensor, nn

from sipp_bench.compression.changes import Change, Masked
from sipp_bench.compression.guarantee import Guarantee
from sipp_bench.compression.pruned import Pruned
from sipp_bench.errors import ModelError, OptionError
from sipp_bench.machine.seeds import require_seed
from sipp_bench.methods.observers import Look, Observer
from sipp_bench.network.points import Points, digest
from sipp_bench.network.unmeasured import check_parameters
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
    """What a method decides for one budget: what becomes of each weight, the counts it asked for, its guarantee."""

    changes: Mapping[str, Change]
    requested: Mapping[str, int]
    guarantee: Guarantee | None = None

    @classmethod
    def masked(
        cls, weights: Mapping[str, Tensor], requested: Mapping[str, int], guarantee: Guarantee | None = None
    ) -> "Selection":
        """Of single weights: those that are not 0 in the new `weights` are stored."""
        return cls({name: Masked.of(weight) for name, weight in weights.items()}, requested, guarantee)

    def with_weights(self, weights: Mapping[str, Tensor]) -> "Selection":
        """The same with other single weights."""
        return Selection.masked(weights, self.requested, self.guarantee)

    @property
    def weights(self) -> dict[str, Tensor]:
        """The new weights by name, in their original shapes."""
        return {name: change.effective() for name, change in self.changes.items()}


Budget = Literal["exact", "expected", "unit"]


@dataclass(frozen=True, kw_only=True)
class Method(ABC):
    """A pruning method: a frozen dataclass whose fields are its options, checked at construction.

    A new method is one file with a subclass that has a `name`, what it `needs` and the two functions below, then
    `sipp_bench.register_method(name, cls)`. What it is, it declares:

    changes: the kinds of change that its weights may undergo. budget: how it meets round(keep * N) stored values,
    "exact"ly, ties included; "expected", on average over seeds; or by "unit"s (channels, ranks), at most, so that no
    further one would fit. claims: those that its guarantee rests on, the main one first; empty without a guarantee.
    """

    name: ClassVar[str]
    changes: ClassVar[tuple[type[Change], ...]] = (Masked,)
    budget: ClassVar[Budget] = "exact"
    claims: ClassVar[tuple[str, ...]] = ()

    @property
    @abstractmethod
    def needs(self) -> tuple[Observer[Any], ...]:
        """What it asks to have measured; a run does so once for all methods of a network."""

    @abstractmethod
    def observe(self, look: Look) -> Observation:
        """What it makes of what was measured, by `look.at(observer)`; the network is afterwards as it was."""

    @abstractmethod
    def select(
        self, observation: Observation, weights: Mapping[str, Tensor], budget: int, rng: np.random.Generator
    ) -> Selection:
        """What becomes of the weights for a budget of so many stored values; see `budget` for how it is met.

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
        return Pruned.from_changes(self.model, selection.changes, selection.requested, budget, selection.guarantee)

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
    return fit_look(method, Look(model, points, labels, batch_size))


def fit_look(method: Method, look: Look) -> Fitted:
    """The same with a look that several methods may share. ModelError if there is nothing to prune."""
    check_parameters(look.model)
    observation = method.observe(look)
    if not observation.scores:
        raise ModelError(nothing_to_prune(look.model, observation.skipped))
    parameters = dict(look.model.named_parameters())
    return Fitted(method, look.model, observation, {name: digest(parameters[name]) for name in observation.scores})
