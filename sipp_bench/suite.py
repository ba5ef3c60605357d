"""Suite files: what a run measures, written in TOML and checked in full before any work starts.

A suite is the product of its targets (network and data), seeds, methods and keep ratios; one element of that
product is a cell. Everything that can be refused without loading data is refused here, with the file, the key
and what is allowed.
"""

import hashlib
import re
import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
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

import sipp_bench as sb
from sipp_bench.errors import SuiteError
from sipp_bench.phrases import describe, unknown
from sipp_bench.protocols import Protocol, list_protocols, make_protocol
from sipp_bench.zoo import data, models, training
from sipp_bench.zoo.imagenet import is_imagenet
from sipp_bench.zoo.recipes import Recipe, RecipeName

CHECKS = ("C2", "C10", "C12", "C13")
SAMPLE_SIZE = "sample-size"
"""The value of `points` that stands for the authors' rule, `sb.sample_size`."""

_Values = TypeVar("_Values", bound=Sequence[object])

_LABEL = re.compile(r"[A-Za-z0-9]+([._+=-][A-Za-z0-9]+)*")
_LABEL_RULE = "at most 80 letters and digits, separated by single '.', '_', '+', '=' or '-'"


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
    def id(self) -> str:
        """A readable name that is fit for a file name and differs between any two cells of a suite."""
        return "--".join([_slug(self.network), _slug(self.data), self.method, f"s{self.seed}", f"k{self.keep!r}"])


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


class Target(_Table):
    """A network and the data it is trained and tested on."""

    network: StrictStr
    data: StrictStr
    recipe: RecipeName = "default"
    """How the network is trained: by this bench's recipe, or "paper" for that of SiPP's authors."""
    weights: Literal["trained", "pretrained"] = "trained"
    """"pretrained" for published weights of a network of torchvision or timm, which are not trained here."""

    @field_validator("network")
    @classmethod
    def _known_network(cls, name: str) -> str:
        return name if is_imagenet(name) else _choose(name, [*training.RECIPES, *models.list_models()], "network")

    @field_validator("data")
    @classmethod
    def _known_data(cls, name: str) -> str:
        return name if data.is_known(name) else _choose(name, data.list_data(), "data set")

    @model_validator(mode="after")
    def _has_weights(self) -> "Target":
        if self.weights == "pretrained":
            _require(is_imagenet(self.network), f"has no pretrained weights for {self.network}; leave weights out")
        else:
            training.recipe_for(self.network, self.recipe)
        return self

    def training_recipe(self) -> Recipe | None:
        """The recipe that the network is trained by; None for published weights."""
        return training.recipe_for(self.network, self.recipe) if self.weights == "trained" else None


class Method(_Table):
    """A pruning method with its options, and the label for both in tables, figures and file names."""

    name: StrictStr
    label: StrictStr
    options: dict[str, Any]

    @model_validator(mode="before")
    @classmethod
    def _gather_options(cls, table: Any) -> Any:
        """Options stand beside the name in the file; every key but name and label is one."""
        if not isinstance(table, dict):
            return table
        options = {key: value for key, value in table.items() if key not in ("name", "label")}
        gathered = {key: table[key] for key in ("name", "label") if key in table} | {"options": options}
        return {"label": _default_label(table.get("name"), options)} | gathered

    @field_validator("name")
    @classmethod
    def _known_name(cls, name: str) -> str:
        return _choose(name, sb.list_methods(), "method")

    @field_validator("label")
    @classmethod
    def _fit_for_files(cls, label: str) -> str:
        return _require_label(label)

    @model_validator(mode="after")
    def _known_options(self) -> "Method":
        sb.check_options(self.name, self.options)
        return self


class Suite(_Table):
    """A validated suite file. `text` and `sha256` are those of the file it was read from."""

    name: StrictStr
    description: StrictStr = ""
    seeds: tuple[StrictInt, ...]
    keep: tuple[StrictFloat, ...]
    points: int | Literal["sample-size"] = 256
    """How many points of S the methods look at, or "sample-size" for the authors' rule."""
    protocol: StrictStr = "one-shot"
    protocol_options: dict[str, Any] = Field(default_factory=dict)
    """The protocol's own: see its class in `protocols`."""
    checks: tuple[StrictStr, ...] = CHECKS
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
        return _require_label(name)

    @field_validator("seeds")
    @classmethod
    def _possible_seeds(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        wrong = [seed for seed in seeds if not 0 <= seed < 2**32]
        _require(not wrong, f"must be whole numbers from 0 to 4294967295, not {wrong}")
        return _distinct(seeds)

    @field_validator("keep")
    @classmethod
    def _possible_keep(cls, keep: tuple[float, ...]) -> tuple[float, ...]:
        wrong = [ratio for ratio in keep if not 0 <= ratio <= 1]
        _require(not wrong, f"must be fractions from 0 to 1, not {wrong}")
        return _distinct(tuple(map(float, keep)))

    @field_validator("points", mode="plain")
    @classmethod
    def _possible_points(cls, points: Any) -> int | str:
        whole = isinstance(points, int) and not isinstance(points, bool) and points >= 1
        _require(
            whole or points == SAMPLE_SIZE,
            f'must be a whole number from 1 on, or "{SAMPLE_SIZE}", not {points!r}',
        )
        return points  # type: ignore[no-any-return]  # the line above says what it is

    @field_validator("protocol")
    @classmethod
    def _known_protocol(cls, protocol: str) -> str:
        return _choose(protocol, list_protocols(), "protocol")

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
        return _distinct(tuple(_choose(check, CHECKS, "check") for check in checks)) if checks else checks

    @field_validator("targets")
    @classmethod
    def _distinct_targets(cls, targets: tuple[Target, ...]) -> tuple[Target, ...]:
        _distinct([f"{_slug(target.network)} on {_slug(target.data)}" for target in targets])
        return targets

    @field_validator("methods")
    @classmethod
    def _distinct_labels(cls, methods: tuple[Method, ...]) -> tuple[Method, ...]:
        # Some file systems don't tell upper case from lower case.
        labels = [method.label.lower() for method in methods]
        _distinct(labels, hint="; give each [[method]] a label of its own")
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
        text = path.read_bytes().decode()
    except OSError as error:
        raise SuiteError(f"Cannot read the suite file {path}: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise SuiteError(f"The suite file {path} is not UTF-8 text; save it as UTF-8.") from error
    return parse_suite(text, str(path))


def parse_suite(text: str, source: str) -> Suite:
    """The suite that `text` describes; `source` names it in errors. Raises SuiteError as load_suite does."""
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise SuiteError(f"{source} is not TOML: {error}.") from error
    try:
        suite = Suite.model_validate(table)
    except ValidationError as error:
        tables: dict[str, type[BaseModel]] = {"": Suite, "target": Target, "method": Method}
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


def _slug(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._]+", "-", name)


def _default_label(name: object, options: dict[str, Any]) -> str:
    """The name, then each option's value; what is no word of its own (a number, a yes or no) with its key."""
    parts = [value if isinstance(value, str) else f"{key}={value}" for key, value in options.items()]
    return "-".join([str(name), *parts])


def _require(condition: bool, sentence: str) -> None:
    if not condition:
        raise ValueError(sentence)


def _require_label(label: str) -> str:
    _require(_LABEL.fullmatch(label) is not None and len(label) <= 80, f"must be {_LABEL_RULE}, not {label!r}")
    return label


def _choose(name: str, allowed: Iterable[str], kind: str) -> str:
    allowed = list(allowed)
    _require(name in allowed, unknown(name, allowed, kind))
    return name


def _distinct(values: _Values, hint: str = "") -> _Values:
    """`values` if there is at least one and none twice."""
    _require(len(values) > 0, "must not be empty, or the suite has no cells")
    twice = sorted({str(value) for value in values if list(values).count(value) > 1})
    _require(not twice, f"has {', '.join(twice)} twice{hint}")
    return values
