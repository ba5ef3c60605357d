"""Every registered method passes the conformance suite; broken ones fail at the right check."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor

import sipp_bench as sb
from sipp_bench.errors import OptionError
from sipp_bench.methods import Method, Observation, Selection
from sipp_bench.methods.magnitude import Magnitude
from sipp_bench.methods.observers import Look
from sipp_bench.methods.sipp_rand import SippRand
from theory_checks import check_method, method_checks
from theory_checks.conformance import CHECKS


def all_checks() -> list[Any]:
    return [
        pytest.param(check, id=f"{method}-{name}")
        for method in sb.list_methods()
        for name, check in method_checks(method)
    ]


@pytest.mark.parametrize("check", all_checks())
def test_registered_methods_pass(check: Any) -> None:
    check()


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("sipp-hybrid", {"simultaneous": True, "weights": "layer"}),
        ("sipp-det", {"patch_reduction": "mean"}),
        ("wanda", {"scope": "layer"}),
        (Magnitude, {"scope": "layer"}),
    ],
)
def test_options_and_classes(method: Any, options: dict[str, Any]) -> None:
    check_method(method, **options)


@dataclass(frozen=True, kw_only=True)
class Base(Magnitude):
    """Magnitude pruning, which others below break."""

    name: ClassVar[str] = "broken"

    def select(
        self, observation: Observation, weights: Mapping[str, Tensor], budget: int, rng: np.random.Generator
    ) -> Selection:
        selection = super().select(observation, weights, budget, rng)
        return selection.with_weights({n: self.change(n, w, rng) for n, w in selection.weights.items()})

    def change(self, name: str, weight: Tensor, rng: np.random.Generator) -> Tensor:
        return weight


class OneTooMany(Base):
    def select(self, observation: Any, weights: Any, budget: int, rng: Any) -> Selection:
        return super().select(observation, weights, min(budget + 1, sum(w.numel() for w in weights.values())), rng)


class TiesAllKept(Base):
    def select(self, observation: Any, weights: Any, budget: int, rng: Any) -> Selection:
        scores = torch.cat([w.abs().flatten() for w in weights.values()])
        if budget in (0, scores.numel()):
            return super().select(observation, weights, budget, rng)
        threshold = scores.sort(descending=True).values[budget - 1]
        kept = {n: torch.where(w.abs() >= threshold, w, 0) for n, w in weights.items()}
        counts = dict.fromkeys(kept, 0) | {next(iter(kept)): budget}
        return Selection.masked(kept, counts)


class DenseIsRounded(Base):
    def change(self, name: str, weight: Tensor, rng: Any) -> Tensor:
        return weight * 1.001


class ChangesTheNetwork(Base):
    def select(self, observation: Any, weights: Any, budget: int, rng: Any) -> Selection:
        selection = super().select(observation, weights, budget, rng)
        if 0 < budget < 500:
            for name, weight in weights.items():
                weight.copy_(selection.weights[name])
        return selection


class GlobalGenerator(Base):
    def observe(self, look: Look) -> Observation:
        torch.rand(1)
        return super().observe(look)


class Unseeded(Base):
    def select(self, observation: Any, weights: Any, budget: int, rng: Any) -> Selection:
        generator = np.random.default_rng()
        scores = {n: torch.from_numpy(generator.random(tuple(s.shape))) for n, s in observation.scores.items()}
        return super().select(replace(observation, scores=scores), weights, budget, rng)


class AlwaysFloat(Base):
    def change(self, name: str, weight: Tensor, rng: Any) -> Tensor:
        return weight.float()


class WrongRequests(Base):
    def select(self, observation: Any, weights: Any, budget: int, rng: Any) -> Selection:
        selection = super().select(observation, weights, budget, rng)
        return replace(selection, requested=dict.fromkeys(selection.requested, 0))


class Flips(Base):
    def change(self, name: str, weight: Tensor, rng: Any) -> Tensor:
        return weight if bool((weight != 0).all()) else -weight


class KeepsZeros(Base):
    def observe(self, look: Look) -> Observation:
        return super().observe(look)

    def select(self, observation: Any, weights: Any, budget: int, rng: Any) -> Selection:
        nudged = {n: torch.where(w == 0, 1e-3, w) for n, w in weights.items()}
        if budget == sum(w.numel() for w in weights.values()):
            nudged = weights
        return super().select(observation, nudged, budget, rng)


class Deaf(Base):
    def observe(self, look: Look) -> Observation:
        scores = {n: p.detach().abs() for n, p in look.model.named_parameters() if p.ndim > 1}
        return Observation(scores, {})


@dataclass(frozen=True, kw_only=True)
class Biased(SippRand):
    """Draws half of what it is asked for."""

    name: ClassVar[str] = "biased"

    def plan(self, observation: Any, weights: Any, budget: int) -> Any:
        total = sum(w.numel() for w in weights.values())
        plan = super().plan(observation, weights, budget if budget == total else budget // 2)
        return plan


@pytest.mark.parametrize(
    ("method", "check"),
    [
        (OneTooMany, "exact_keep"),
        (TiesAllKept, "ties"),
        (DenseIsRounded, "keep_nothing_and_everything"),
        (ChangesTheNetwork, "model_untouched"),
        (GlobalGenerator, "model_untouched"),
        (Unseeded, "same_seed_same_result"),
        (AlwaysFloat, "device_and_dtype"),
        (WrongRequests, "masks_match_zeros"),
        (Flips, "weights_keep_their_signs"),
        (KeepsZeros, "zero_weights_come_last"),
        (Deaf, "refusals"),
        (Biased, "exact_keep"),
    ],
)
def test_broken_methods_fail_at_the_right_check(method: type[Method], check: str) -> None:
    with pytest.raises(AssertionError, match=f"{method.__name__} fails the check '{check}'"):
        check_method(method)


def test_what_is_no_method_is_refused() -> None:
    for wrong in ("no-such-method", int, 3):
        with pytest.raises(OptionError):
            check_method(wrong)  # type: ignore[arg-type]  # wrong on purpose


def test_every_check_is_told_from_the_others() -> None:
    names = [name for name, _ in method_checks("magnitude")]
    assert len(set(names)) == len(CHECKS) == len(names)
    assert all(check.__doc__ for check in CHECKS)
