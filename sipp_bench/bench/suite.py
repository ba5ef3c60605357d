"""Suite files: what a run measures, written in TOML and checked in full before any work starts.

A suite is the product of its targets (network and data), seeds, methods and keep ratios; one element of that
product is a cell. Everything that can be refused without loading data is refused here, with the file, the key
and what is allowed.
"""

import hashlib
import tomllib
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    Field,
    PrivateAttr,
    StrictFloat,
    StrictInt,
    StrictStr,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from sipp_bench.bench.phrases import describe
from sipp_bench.bench.protocols import Protocol, list_protocols, make_protocol
from sipp_bench.bench.suite_tables import (
    Measures,
    Method,
    Table,
    Target,
    choose,
    distinct,
    require,
    require_label,
)
from sipp_bench.errors import OptionError, SuiteError
from sipp_bench.machine.files import read_regular
from sipp_bench.machine.registry import unknown
from sipp_bench.store.cell import MOST_LETTERS, Cell, slug
from sipp_bench.zoo import data

CHECKS = ("C2", "C10", "C12", "C13")
SAMPLE_SIZE = "sample-size"
"""The value of `points` that stands for the authors' rule, `sb.sample_size`."""


class Suite(Table):
    """A validated suite file. `text` and `sha256` are those of the file it was read from."""

    name: StrictStr
    description: StrictStr = ""
    seeds: tuple[StrictInt, ...]
    keep: tuple[StrictFloat, ...]
    points: int | Literal["sample-size"] = 256
    """How many points of S the methods look at, or "sample-size" for the authors' rule; all where there are fewer than
    the default or the rule says, but never fewer than the file says."""
    protocol: StrictStr = "one-shot"
    protocol_options: dict[str, Any] = Field(default_factory=dict)
    """The protocol's own: see its class in `protocols`."""
    checks: tuple[StrictStr, ...] = CHECKS
    measures: Measures = Measures()
    """Measures that cost more than a forward pass over the test part."""
    targets: Annotated[tuple[Target, ...], Field(alias="target")]
    methods: Annotated[tuple[Method, ...], Field(alias="method")]

    _text: str = PrivateAttr(default="")

    @property
    def text(self) -> str:
        """The suite file, character by character."""
        return self._text

    @property
    def sha256(self) -> str:
        """The hash of the file's UTF-8 text; a run folder belongs to the suite with this hash."""
        return hashlib.sha256(self._text.encode()).hexdigest()

    def cells(self) -> tuple[Cell, ...]:
        """All cells in the order in which they are run: targets, then seeds, methods and keep ratios."""
        return tuple(
            Cell(target.network, target.data, seed, method.label, keep)
            for target in self.targets
            for seed in self.seeds
            for method in self.methods
            for keep in self.keep
        )

    @field_validator("name")
    @classmethod
    def _name_fit_for_files(cls, name: str) -> str:
        return require_label(name)

    @field_validator("seeds")
    @classmethod
    def _possible_seeds(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        wrong = [seed for seed in seeds if not 0 <= seed < 2**32]
        require(not wrong, f"must be whole numbers from 0 to 4294967295, not {wrong}")
        return distinct(seeds)

    @field_validator("keep")
    @classmethod
    def _possible_keep(cls, keep: tuple[float, ...]) -> tuple[float, ...]:
        wrong = [ratio for ratio in keep if not 0 <= ratio <= 1]
        require(not wrong, f"must be fractions from 0 to 1, not {wrong}")
        return distinct(tuple(map(float, keep)))

    @field_validator("points", mode="plain")
    @classmethod
    def _possible_points(cls, points: Any) -> int | str:
        whole = isinstance(points, int) and not isinstance(points, bool) and points >= 1
        require(
            whole or points == SAMPLE_SIZE,
            f'must be a whole number from 1 on, or "{SAMPLE_SIZE}", not {points!r}',
        )
        return points  # type: ignore[no-any-return]  # the line above says what it is

    @field_validator("protocol")
    @classmethod
    def _known_protocol(cls, protocol: str) -> str:
        return choose(protocol, list_protocols(), "protocol")

    @field_validator("protocol_options")
    @classmethod
    def _known_options(cls, options: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        if "protocol" in info.data:
            make_protocol(info.data["protocol"], **options)
        return options

    @model_validator(mode="after")
    def _protocol_fits_targets(self) -> "Suite":
        for target in self.targets:
            recipe = target.training_recipe()
            if recipe is not None:
                self.make_protocol().check(recipe)
            elif self.protocol != "one-shot":
                raise ValueError(
                    f"{target.network} has published weights and no recipe: protocol {self.protocol} cannot retrain it"
                )
            elif self.measures.twin:
                raise ValueError(f"{target.network} has published weights and no recipe: no twin of it can be trained")
        if self.measures.random_splits and self.protocol != "one-shot":
            raise ValueError("random_splits are pruned and not retrained: measure them with the protocol one-shot")
        return self

    @model_validator(mode="after")
    def _enough_points(self) -> "Suite":
        for target in self.targets:
            # How many images a folder has is seen once they are read.
            if isinstance(self.points, int) and target.data in data.list_sources():
                self.require_enough(target.data, data.sizes(data.describe(target.data))[1])
        return self

    def require_enough(self, name: str, there: int) -> None:
        """Raise OptionError where the file asks for more points than `there` are in S of the data set `name`."""
        if "points" in self.model_fields_set and isinstance(self.points, int) and self.points > there:
            raise OptionError(
                f"{self.points} points are asked for, but {name} has {there} for S: ask for at most so many."
            )

    @model_validator(mode="after")
    def _cells_fit_for_files(self) -> "Suite":
        longest = max((cell.id for cell in self.cells()), key=len)
        require(
            len(longest) <= MOST_LETTERS,
            f"names a cell {longest[:40]}, with {len(longest)} letters too long for file names: make the path of the "
            "data, or the label of the method, shorter",
        )
        return self

    def make_protocol(self) -> Protocol:
        """The protocol with its options."""
        return make_protocol(self.protocol, **self.protocol_options)

    def target_of(self, cell: Cell) -> Target:
        """The target that a cell belongs to."""
        return next(each for each in self.targets if (each.network, each.data) == (cell.network, cell.data))

    @field_validator("checks")
    @classmethod
    def _known_checks(cls, checks: tuple[str, ...]) -> tuple[str, ...]:
        # An empty list is fine here, unlike elsewhere: it asks for a run without checks.
        return distinct(tuple(choose(check, CHECKS, "check") for check in checks)) if checks else checks

    @field_validator("targets")
    @classmethod
    def _distinct_targets(cls, targets: tuple[Target, ...]) -> tuple[Target, ...]:
        distinct([f"{slug(target.network)} on {slug(target.data)}" for target in targets])
        return targets

    @field_validator("methods")
    @classmethod
    def _distinct_labels(cls, methods: tuple[Method, ...]) -> tuple[Method, ...]:
        # Some file systems don't tell upper case from lower case.
        labels = [method.label.lower() for method in methods]
        distinct(labels, hint="; give each [[method]] a label of its own")
        return methods


def load_suite(name_or_path: str | Path) -> Suite:
    """The suite in a file, or the one of that name shipped with sipp-bench.

    Raises SuiteError when there is none, when it is not TOML, and, one sentence a problem, for every unknown
    key, unknown name and impossible value.
    """
    shipped = _shipped()
    name = str(name_or_path)
    path = Path(name_or_path)
    if name in shipped:
        return parse_suite(shipped[name], f"suite {name}")
    if path.suffix != ".toml" and not path.exists():
        raise SuiteError(unknown(name, sorted(shipped), "suite") + " Or give the path of a .toml file.")
    try:
        text = read_regular(path).decode()
    except OSError as error:
        raise SuiteError(f"Cannot read the suite file {path}: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise SuiteError(f"The suite file {path} is not UTF-8 text; save it as UTF-8.") from error
    return parse_suite(text, str(path))


def parse_suite(text: str, source: str) -> Suite:
    """The suite that `text` describes; `source` names it in errors. Raises SuiteError as load_suite does."""
    try:
        table = tomllib.loads(text)
        text.encode()
    except RecursionError as error:
        raise SuiteError(f"{source} is nested too deeply: a suite has lists of tables, and no deeper.") from error
    except ValueError as error:  # TOMLDecodeError, a number of thousands of digits, half a surrogate pair
        raise SuiteError(f"{source} is not TOML: {error}.") from error
    try:
        suite = Suite.model_validate(table)
    except ValidationError as error:
        tables: dict[str, type[BaseModel]] = {"": Suite, "target": Target, "method": Method, "measures": Measures}
        raise SuiteError("\n".join(f"{source}: {describe(problem, tables)}" for problem in error.errors())) from error
    suite._text = text
    return suite


def list_suites() -> list[str]:
    """The names of the suites that are shipped with sipp-bench, sorted."""
    return sorted(_shipped())


def _shipped() -> dict[str, str]:
    """Name -> text of the shipped suites: inside the package in a wheel, beside it in a checkout."""
    package = resources.files("sipp_bench")
    folder = package / "suites"
    if not folder.is_dir():
        folder = package / ".." / "suites"
    if not folder.is_dir():
        return {}
    files = [file for file in folder.iterdir() if file.name.endswith(".toml")]
    return {file.name.removesuffix(".toml"): file.read_text(encoding="utf-8") for file in files}
