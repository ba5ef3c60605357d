"""Channels by sensitivity: input channels removed together with the rows that produce them (claim C2)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from sipp_bench.compression.changes import Change, Channels
from sipp_bench.compression.guarantee import Bound, Guarantee
from sipp_bench.compression.quantities import BlockError
from sipp_bench.methods.observers import AppliedWeights, Couplings, Look, Observer, Sensitivities
from sipp_bench.methods.protocol import Budget, Method, Observation, Selection
from sipp_bench.network.blocks import block_sums
from sipp_bench.sensitivity import Sensitivity


@dataclass(frozen=True)
class Unit:
    """What is removed together: input channels, by consumer, and the row that feeds them alone, if one does."""

    columns: Mapping[str, Sequence[int]]
    producer: str | None = None
    row: int = -1


@dataclass(frozen=True)
class ChannelObservation(Observation):
    """Sensitivities (as scores), the groups of each weight, and the units with the score of each."""

    sensitivity: Sensitivity
    groups: Mapping[str, int]
    units: Sequence[Unit]
    unit_scores: Sequence[float]


@dataclass(frozen=True, kw_only=True)
class ChannelsSensitivity(Method):
    """Keeps the channels whose largest sensitivity, over all weights that read them, is largest.

    An input channel that one row of another layer feeds alone, with no weight between, goes together with that row;
    any other goes alone. Each block then has relative error at most min(1, sum of its dropped s) on S (claim C2): a
    removed row is dropped whole, so that its bound says nothing.
    """

    name: ClassVar[str] = "channels-sensitivity"
    changes: ClassVar[tuple[type[Change], ...]] = (Channels,)
    budget: ClassVar[Budget] = "unit"
    claims: ClassVar[tuple[str, ...]] = ("C2",)

    @property
    def needs(self) -> tuple[Observer[Any], ...]:
        return Sensitivities(), AppliedWeights(), Couplings()

    def observe(self, look: Look) -> ChannelObservation:
        """Sensitivities, and which channels belong together."""
        sens, groups, coupling = look.at(Sensitivities()), look.at(AppliedWeights()).groups, look.at(Couplings())
        units: list[Unit] = []
        alone = {name: set(range(groups[name] * layer.values.shape[1])) for name, layer in sens.items()}
        for producer in sens:
            fed = {consumer: by for consumer, by in coupling.removable(producer).items() if consumer in sens}
            if len(fed) < len(coupling.removable(producer)):
                continue  # a consumer that stays dense reads them
            for row in range(sens[producer].values.shape[0] if fed else 0):
                columns = {consumer: torch.where(by == row)[0].tolist() for consumer, by in fed.items()}
                units.append(Unit({consumer: places for consumer, places in columns.items() if places}, producer, row))
                for consumer, places in columns.items():
                    alone[consumer] -= set(places)
        units += [Unit({consumer: [place]}) for consumer, places in alone.items() for place in sorted(places)]
        largest = {name: _largest(layer.values, groups[name]) for name, layer in sens.items()}
        scores = [max((largest[c][p] for c, places in u.columns.items() for p in places), default=0.0) for u in units]
        return ChannelObservation({n: s.values for n, s in sens.items()}, sens.skipped, sens, groups, units, scores)

    def select(
        self, observation: Observation, weights: Mapping[str, Tensor], budget: int, rng: np.random.Generator
    ) -> Selection:
        """From nothing, the units of largest score first, each that still fits; nothing is drawn."""
        assert isinstance(observation, ChannelObservation)
        stored = _Stored(observation, weights)
        order = np.argsort(-np.asarray(observation.unit_scores), kind="stable")
        for index in order:
            stored.keep(observation.units[index], budget)
        changes: dict[str, Change] = {}
        bounds: dict[str, Bound] = {}
        for name, weight in weights.items():
            rows, columns = (torch.from_numpy(t).to(weight.device) for t in (stored.rows[name], stored.columns[name]))
            mask = Channels(weight, rows, columns).mask
            changes[name] = Channels(torch.where(mask, weight, 0), rows, columns)
            layer = observation.sensitivity[name]
            lost = block_sums(torch.where(mask.to(layer.values.device), 0.0, layer.values), layer.positive)
            bounds[name] = Bound("C2", BlockError(), lost.clamp(max=1))
        requested = {name: change.numbers() for name, change in changes.items()}
        return Selection(
            changes, requested, Guarantee(self.claims, 0.0, False, bounds, observation.sensitivity.num_points)
        )


class _Stored:
    """Which rows and columns are kept so far, and how many values they are."""

    def __init__(self, observation: ChannelObservation, weights: Mapping[str, Tensor]) -> None:
        produced = {(unit.producer, unit.row) for unit in observation.units if unit.producer is not None}
        self.rows = {
            name: np.array([(name, row) not in produced for row in range(len(weight))])
            for name, weight in weights.items()
        }
        self.columns = {
            name: np.zeros((observation.groups[name], weight.shape[1]), dtype=bool) for name, weight in weights.items()
        }
        self.each = {name: weight[0, 0].numel() for name, weight in weights.items()}
        self.count = dict.fromkeys(weights, 0)

    def keep(self, unit: Unit, budget: int) -> None:
        """Keep a unit where it fits into the budget."""
        touched = {*unit.columns, *([unit.producer] if unit.producer is not None else [])}
        before = {name: self.count[name] for name in touched}
        self._set(unit, True)
        for name in touched:
            self.count[name] = self._numbers(name)
        if sum(self.count.values()) > budget:
            self._set(unit, False)
            self.count |= before

    def _set(self, unit: Unit, kept: bool) -> None:
        if unit.producer is not None:
            self.rows[unit.producer][unit.row] = kept
        for name, places in unit.columns.items():
            self.columns[name].reshape(-1)[list(places)] = kept

    def _numbers(self, name: str) -> int:
        rows = self.rows[name].reshape(len(self.columns[name]), -1).sum(1)
        return int((rows * self.columns[name].sum(1)).sum()) * self.each[name]


def _largest(values: Tensor, groups: int) -> list[float]:
    """The largest s of each input channel, over its group's rows and the kernel."""
    by_group = values.reshape(groups, values.shape[0] // groups, values.shape[1], -1)
    found: list[float] = by_group.amax((1, 3)).flatten().tolist()
    return found
