"""What methods ask to have measured on a network and its points: each once, whatever asks for it.

An observer is a frozen dataclass, equal to another one that measures the same. A `Look` runs each observer once and
remembers what it gave: methods on one network that share a look share what they need.
"""

import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar, cast

from torch import Tensor, nn

from sipp_bench.errors import OptionError
from sipp_bench.network.channels import Coupling, couple
from sipp_bench.network.forward import each_call
from sipp_bench.network.points import Points
from sipp_bench.network.tracing import Call, Trace
from sipp_bench.network.unmeasured import check_parameters, unmeasured
from sipp_bench.sensitivity import PatchReduction, Sensitivity, measure_sensitivity
from sipp_bench.sensitivity.block_weights import BlockWeights, block_weights

T = TypeVar("T")


@dataclass(frozen=True)
class Observer(ABC, Generic[T]):
    """Measures one thing on a network and its points; the network is afterwards as it was."""

    @abstractmethod
    def observe(self, look: "Look") -> T:
        """What is measured; may ask `look` for other observers."""


@dataclass(eq=False)
class Look:
    """One network and its points, and what observers gave for them so far. labels: one for each point, or None.

    seconds: by observer, how long it took, without those that it asked for.
    """

    model: nn.Module
    points: Points
    labels: Tensor | None = None
    batch_size: int = 64
    seconds: dict[Observer[Any], float] = field(default_factory=dict)
    _seen: dict[Observer[Any], Any] = field(default_factory=dict)
    _inner: list[float] = field(default_factory=list)

    def at(self, observer: Observer[T]) -> T:
        """What the observer gives, measured at the first call. Raises what it raises."""
        if observer not in self._seen:
            check_parameters(self.model)
            self._inner.append(0.0)
            start = time.perf_counter()
            self._seen[observer] = observer.observe(self)
            spent = time.perf_counter() - start
            self.seconds[observer] = spent - self._inner.pop()
            if self._inner:
                self._inner[-1] += spent
        return cast(T, self._seen[observer])

    def put(self, observer: Observer[T], found: T) -> None:
        """Take what was measured before for what the observer would give."""
        self._seen[observer] = found


@dataclass(frozen=True)
class Applied:
    """weights: those that the network applies as linear maps to these points, by name, as they are; skipped: those that
    stay dense, each with the reason; groups: by name, of a convolution, else 1."""

    weights: Mapping[str, Tensor]
    skipped: Mapping[str, str]
    groups: Mapping[str, int]


@dataclass(frozen=True)
class AppliedWeights(Observer[Applied]):
    """What every method prunes, whether it needs the points or not, so that a budget means the same to all."""

    def observe(self, look: Look) -> Applied:
        groups: dict[str, int] = {}

        def note(call: Call, output: Tensor) -> None:
            groups[call.name] = call.groups

        trace = each_call(look.model, look.points, note, look.batch_size)
        names = trace.applied - trace.dense.keys()
        weights = {name: parameter.detach() for name, parameter in look.model.named_parameters() if name in names}
        return Applied(weights, unmeasured(look.model, trace), groups)


@dataclass(frozen=True)
class Sensitivities(Observer[Sensitivity]):
    """Empirical sensitivities of all layers (claim C1). patch_reduction: see `measure_sensitivity`."""

    patch_reduction: PatchReduction = "max"

    def observe(self, look: Look) -> Sensitivity:
        return measure_sensitivity(
            look.model, look.points, patch_reduction=self.patch_reduction, batch_size=look.batch_size
        )

    def require(self, model: nn.Module, sens: Sensitivity) -> None:
        """Raise OptionError where `sens`, measured before, is not what this observer would give for the network:
        names, shapes or signs of the weights differ, layers are missing, or it was another patch_reduction."""
        if sens.patch_reduction != self.patch_reduction:
            raise OptionError(
                f"The sensitivities were measured with patch_reduction {sens.patch_reduction!r}, but the method has "
                f"{self.patch_reduction!r}: use the same for both."
            )
        parameters = dict(model.named_parameters())
        for name, layer in sens.items():
            if name not in parameters or not layer.positive.cpu().equal((parameters[name] > 0).cpu()):
                raise OptionError(
                    f"The sensitivities of {name!r} were not measured on this network, as it is: measure it anew."
                )
        for name in unmeasured(model, Trace(applied=set(sens))):
            if name not in sens.skipped:
                raise OptionError(f"The sensitivities lack {name!r}: measure all layers (layers=None).")


@dataclass(frozen=True)
class BlockWeighting(Observer[Mapping[str, Tensor]]):
    """Block weights c_b by weight name, (neurons, 2); see `block_weights`."""

    weights: BlockWeights = "uniform"
    patch_reduction: PatchReduction = "max"

    def observe(self, look: Look) -> Mapping[str, Tensor]:
        sens = look.at(Sensitivities(self.patch_reduction))
        return block_weights(self.weights, look.model, look.points, sens, look.batch_size)


@dataclass(frozen=True)
class Couplings(Observer[Coupling]):
    """Which channels belong together; see `network.channels`."""

    def observe(self, look: Look) -> Coupling:
        return couple(look.model, look.points)
