"""Claim C11: the bounds of many blocks and points, all at once."""

import itertools
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from sipp_bench.compression import rounding
from theory_checks.cases import hard_cases, oracle
from theory_checks.cases.hard_cases import Array, Instance
from theory_checks.evidence import drawn, statistics
from theory_checks.evidence.decided import BETA, Decision, Outcome
from theory_checks.evidence.finding import Effort, Kind
from theory_checks.subjects.subject import Subject

NEURONS = 100
DELTA = 0.2
# Blocks of five weights, one of which is active at each point.
MEMBER = (5, 1, 1.0)
SIZE = MEMBER[0]


class UnionBound(drawn.DrawnClaim):
    """With delta' = delta / (number of active (block, x, p, tau) spoken of), C10 holds for all of them at once with
    probability at least 1 - delta. Proof: the probabilities of single failures add up to at most delta.

    Trials: draw sets of a whole layer of 100 blocks with disjoint supports, each active at points of its own: single
    failures of different blocks are independent, so that they add up almost as the proof lets them, and a delta that
    is not split shows at once. A trial fails if any block fails at any of its points; its own delta is tested by an
    exact binomial test. Beside it: delta' times the count is at most delta, and `sipp-rand` with `simultaneous` counts
    what is active as an oracle does and reports C10's bound at delta / count.
    """

    number = "C11"
    title = "Many points at once"
    statement = (
        "With delta / (number of active (block, x, p, tau)) for each, C10 holds for all of them together with "
        "probability >= 1 - delta."
    )
    kind = Kind.STATISTICAL
    rejects = ("delta not split", "simultaneous bounds for each alone")
    tests: ClassVar[int] = 1

    def observe(self, subject: Subject, effort: Effort, level: float, seed: int) -> Outcome:
        rng = np.random.default_rng([seed, 11])
        violations = _splitting(subject) + _method(subject, rng)
        decision, case = _simultaneous(subject, effort, level, rng)
        return Outcome([decision], violations=violations, data={"cases": [case], "events": SIZE * NEURONS})


def _splitting(subject: Subject) -> list[str]:
    """The parts add up to no more than delta; they are not 0, which would be no bound."""
    found = []
    for delta, count in itertools.product((0.5, 0.05, 1e-6), (1, 2, 100, 12_345, 10**9)):
        part = subject.split_delta(delta, count)
        if not 0 < part * count <= delta * (1 + rounding.gamma(2)):
            found.append(f"delta = {delta:g} is split into {count} parts of {part:.3g}")
    return found


def _simultaneous(
    subject: Subject, effort: Effort, level: float, rng: np.random.Generator
) -> tuple[Decision, dict[str, Any]]:
    events = SIZE * NEURONS

    def unsplit(total: float, draws: Any, delta: float) -> Array:
        return np.asarray(subject.draw_epsilon(total, draws, delta), dtype=np.float64)

    # The draws at which a delta that is not split fails most often.
    instance = hard_cases.hardest(unsplit, DELTA, [MEMBER])
    layer, points = _disjoint(rng)
    sens = subject.sensitivity(layer, points)["weight"]
    epsilon = [
        float(subject.draw_epsilon(float(total), instance.draws, subject.split_delta(DELTA, events))) * subject.shrink
        for total in sens.totals[:, 0]
    ]
    trials = _trials(instance, effort, level)
    failed = sum(_any_failure(subject, layer, sens.values, epsilon, instance.draws, rng) for _ in range(trials))
    name = f"any of {events} (block, x) fails"
    case = drawn.case(name, SIZE, instance.draws, DELTA, max(epsilon), SIZE - 1)
    return Decision(name, failed, trials, DELTA, level, two_sided=False), case


def _trials(instance: Instance, effort: Effort, level: float) -> int:
    """Enough to see that delta is not split: then one of the blocks fails with 1 - (1 - p)^N at least.

    `effort.trials` counts draw sets of single blocks, of which there are NEURONS in a trial here.
    """
    wrong = 1 - (1 - instance.probability) ** NEURONS
    needed = statistics.design(DELTA, wrong, level, BETA).trials if wrong > DELTA else 0
    return max(needed, effort.trials // NEURONS)


def _disjoint(rng: np.random.Generator) -> tuple[nn.Linear, Tensor]:
    """Neuron i has its weights at inputs 5 i, ..., 5 i + 4; each point shows one input."""
    layer = nn.Linear(SIZE * NEURONS, NEURONS, bias=False, dtype=torch.float64)
    with torch.no_grad():
        layer.weight.zero_()
        layer.weight[torch.arange(SIZE * NEURONS) // SIZE, torch.arange(SIZE * NEURONS)] = torch.from_numpy(
            rng.lognormal(0, 1, SIZE * NEURONS)
        )
    return layer, torch.eye(SIZE * NEURONS, dtype=torch.float64)


def _any_failure(
    subject: Subject, layer: nn.Linear, s: Tensor, epsilon: list[float], draws: int, rng: np.random.Generator
) -> bool:
    """One trial: every block is drawn once. At each point one weight is active, so that Zhat / Z is its what / w."""
    failed = False
    for i in range(NEURONS):
        own = slice(SIZE * i, SIZE * (i + 1))
        factors = hard_cases.draw_sets(subject, s[i, own], layer.weight.detach()[i, own], draws, 1, rng)[0]
        limit = epsilon[i] + hard_cases.ROUNDING * (1 + epsilon[i])
        failed |= not bool((np.abs(factors - 1) <= limit).all())
    return failed


def _method(subject: Subject, rng: np.random.Generator) -> list[str]:
    """The count and the bounds of `sipp-rand` with `simultaneous`, on a network of two layers."""
    first, second = (nn.Linear(a, b, bias=False, dtype=torch.float64) for a, b in ((30, 8), (8, 6)))
    model = nn.Sequential(first, nn.ReLU(), second)
    found = []
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.from_numpy(rng.normal(size=parameter.shape)))
        x = torch.from_numpy(rng.normal(size=(5, 30)) * (rng.random((5, 30)) < 0.5))
        inputs = {"0.weight": (first, x), "2.weight": (second, first(x).relu())}
        active = sum(int(torch.count_nonzero(oracle.quadrant_sums(*pair))) for pair in inputs.values())
        guarantee = subject.fit(model, x, method="sipp-rand", delta=DELTA, simultaneous=True).prune(0.3, 0).guarantee
        for name, (layer, a) in inputs.items():
            s = oracle.sensitivities(layer, a)
            zero = torch.zeros_like(s)
            totals = torch.stack([torch.where(side > 0, s, zero).sum(1) for side in (layer.weight, -layer.weight)], 1)
            drawn_blocks = guarantee.draws[name] > 0
            epsilon, draws, total = (
                t[drawn_blocks].numpy() for t in (guarantee.epsilon[name], guarantee.draws[name], totals)
            )
            if not drawn.inverts(epsilon, draws, total, total, DELTA / active, roundings=2 * s.shape[1] + 8):
                found.append(f"sipp-rand: bounds of {name} are not C10's at delta / {active}")
        if not any(bool((draws > 0).any()) for draws in guarantee.draws.values()):
            found.append("sipp-rand drew from no block")
    return found


CLAIM = UnionBound()
