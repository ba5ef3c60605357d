"""Whether the checks can fail: power curves against shrunk bounds, and every claim against every known-bad subject."""

import itertools
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from typing import Any

import numpy as np
import torch

from theory_checks.claims import QUICK, Claim, Effort, Verdict, claims
from theory_checks.evidence.statistics import Interval, clopper_pearson
from theory_checks.subjects.known_bad import KNOWN_BAD
from theory_checks.subjects.subject import REFERENCE, Subject

SHRINKS = (0.99, 0.95, 0.9, 0.8, 0.7, 0.5)


@dataclass(frozen=True)
class PowerRow:
    """How often a claim rejected its own bounds, times `shrink`, in `repeats` checks with independent seeds."""

    claim: str
    shrink: float
    rejected: int
    repeats: int

    @property
    def interval(self) -> Interval:
        """For the detection rate."""
        return clopper_pearson(self.rejected, self.repeats)


@dataclass(frozen=True)
class DetectionRow:
    """How often a claim rejected a known-bad subject. required: whether the claim says that it must."""

    claim: str
    known_bad: str
    rejected: int
    repeats: int
    required: bool

    @property
    def interval(self) -> Interval:
        """For the detection rate."""
        return clopper_pearson(self.rejected, self.repeats)


def false_alarms(effort: Effort, seeds: int, seed: int = 0, processes: int = 1) -> list[str]:
    """Every claim on the reference with `seeds` independent seeds: those that falsify it, which is a false alarm."""
    work = [(effort, s) for s in independent_seeds(seeds, seed)]
    return [alarm for alarms in spread(_alarms, work, processes) for alarm in alarms]


def power_curves(repeats: int, seed: int = 0, processes: int = 1) -> list[PowerRow]:
    """`power_curve` of every claim at QUICK."""
    work = [(number, repeats, seed) for number in claims()]
    return [row for rows in spread(_power, work, processes) for row in rows]


def power_curve(
    claim: Claim, shrinks: Sequence[float] = SHRINKS, repeats: int = 10, effort: Effort = QUICK, seed: int = 0
) -> list[PowerRow]:
    """Detection rate of bounds shrunk by each factor; the same seeds for each, so that curves are comparable."""
    rows = []
    seeds = independent_seeds(repeats, seed)
    affected = "shrink" in pieces_read(claim, effort, seeds[0])
    for shrink in shrinks:
        subject = replace(REFERENCE, name=f"bounds times {shrink:g}", shrink=shrink)
        rejected = sum(_rejects(claim, subject, effort, s) for s in seeds) if affected else 0
        rows.append(PowerRow(claim.number, shrink, rejected, repeats))
    return rows


def detection_matrix(
    effort: Effort = QUICK,
    repeats: int = 1,
    seed: int = 0,
    *,
    numbers: Iterable[str] | None = None,
    known_bads: Iterable[str] | None = None,
    processes: int = 1,
) -> list[DetectionRow]:
    """Every claim against every known-bad subject, `repeats` times with independent seeds; default: all of both.

    A claim that never reads the piece in which a subject is wrong would do exactly what it does with the reference:
    which pieces it reads is recorded while it checks the reference with the same seed, and the rest is not run.
    processes: checks are spread over as many; results do not depend on it.
    """
    chosen = [number for number in claims() if numbers is None or number in set(numbers)]
    names = [name for name in KNOWN_BAD if known_bads is None or name in set(known_bads)]
    seeds = independent_seeds(repeats, seed)
    work = [(number, names, effort, s) for number, s in itertools.product(chosen, seeds)]
    found = spread(_row_of_matrix, work, processes)
    rejected = dict.fromkeys(itertools.product(chosen, names), 0)
    for (number, *_), result in zip(work, found, strict=True):
        for name in result:
            rejected[number, name] += 1
    return [
        DetectionRow(number, name, count, repeats, name in claims()[number].rejects)
        for (number, name), count in rejected.items()
    ]


def undetected(rows: Sequence[DetectionRow]) -> list[str]:
    """What a matrix must not have, as sentences: none if every known-bad is rejected as the claims say."""
    found = [
        f"{row.claim} rejected {row.known_bad!r} {row.rejected} of {row.repeats} times"
        for row in rows
        if row.required and row.rejected < row.repeats
    ]
    for name in dict.fromkeys(row.known_bad for row in rows):
        if not any(row.rejected == row.repeats for row in rows if row.known_bad == name):
            found.append(f"no claim rejected {name!r} every time")
    for number in dict.fromkeys(row.claim for row in rows):
        if not any(row.rejected == row.repeats for row in rows if row.claim == number):
            found.append(f"{number} rejected nothing every time")
    return found


def spread(function: Callable[..., Any], work: Sequence[tuple[Any, ...]], processes: int) -> list[Any]:
    """function(*item) for each item, in the order of `work`, over several processes; results do not depend on those."""
    if processes == 1:
        return [function(*item) for item in work]
    # Not forked: torch's threads do not survive that.
    with ProcessPoolExecutor(processes, get_context("spawn"), initializer=torch.set_num_threads, initargs=(1,)) as pool:
        return list(pool.map(function, *zip(*work, strict=True)))


def independent_seeds(count: int, seed: int) -> list[int]:
    """Seeds for `count` checks, none of which shares randomness with another."""
    return [int(s) for s in np.random.SeedSequence(seed).generate_state(count)]


def _alarms(effort: Effort, seed: int) -> list[str]:
    return [f"{number}, seed {seed}" for number, claim in claims().items() if _rejects(claim, REFERENCE, effort, seed)]


def _power(number: str, repeats: int, seed: int) -> list[PowerRow]:
    return power_curve(claims()[number], repeats=repeats, seed=seed)


def _row_of_matrix(number: str, names: Sequence[str], effort: Effort, seed: int) -> list[str]:
    """The known-bad subjects that one check of one claim rejects."""
    claim = claims()[number]
    pieces = pieces_read(claim, effort, seed)
    return [
        name for name in names if _changed(KNOWN_BAD[name]) & pieces and _rejects(claim, KNOWN_BAD[name], effort, seed)
    ]


def pieces_read(claim: Claim, effort: Effort, seed: int) -> set[str]:
    """The pieces of a subject that a check of this claim reads."""
    read: set[str] = set()

    class Recorded(Subject):
        """The reference, which notes what is read; copies that a claim makes of it note it too."""

        def __getattribute__(self, name: str) -> Any:
            read.add(name)
            return super().__getattribute__(name)

    claim.check(Recorded(), effort, seed)
    return read & _REFERENCE.keys()


def _rejects(claim: Claim, subject: Subject, effort: Effort, seed: int) -> bool:
    return claim.check(subject, effort, seed).verdict is Verdict.FALSIFIED


def _changed(subject: Subject) -> set[str]:
    """The pieces in which a subject differs from the reference."""
    return {piece for piece, own in vars(subject).items() if piece in _REFERENCE and own is not _REFERENCE[piece]}


_REFERENCE = {piece: value for piece, value in vars(REFERENCE).items() if piece != "name"}
