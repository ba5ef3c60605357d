"""One cell of a run, and the names by which files, tables and figures know it."""

import re
from dataclasses import dataclass
from typing import Any

MOST_LETTERS = 220
"""In a cell's id: with what is added to it, file systems take 255."""


@dataclass(frozen=True)
class Cell:
    """One measurement: a network trained with a seed, pruned by a method to a keep ratio with that seed."""

    network: str
    data: str
    seed: int
    method: str
    """The label of the method in the suite."""
    keep: float

    @property
    def subject(self) -> tuple[str, str, int]:
        """What is trained and fitted once for several cells: network, data and seed."""
        return self.network, self.data, self.seed

    @property
    def id(self) -> str:
        """A readable name that is fit for a file name and differs between any two cells of a suite."""
        return "--".join([slug(self.network), slug(self.data), self.method, f"s{self.seed}", f"k{self.keep!r}"])


def slug(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._]+", "-", name)


def default_label(name: object, options: dict[str, Any]) -> str:
    """The name, then each option's value; what is no word of its own (a number, a yes or no) with its key."""
    parts = [value if isinstance(value, str) else f"{key}={value}" for key, value in options.items()]
    return "-".join([str(name), *parts])
