"""The tables of a suite file, [[target]] and [[method]], and the checks that every table shares."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, StrictStr, field_validator, model_validator

from sipp_bench.machine.registry import unknown
from sipp_bench.measures.asked import Asked
from sipp_bench.methods import check_options, list_methods
from sipp_bench.store.cell import default_label
from sipp_bench.zoo import data, models, training
from sipp_bench.zoo.imagenet import is_imagenet
from sipp_bench.zoo.recipes import Recipe, RecipeName

_Values = TypeVar("_Values", bound=Sequence[object])

_LABEL = re.compile(r"[A-Za-z0-9]+([._+=-][A-Za-z0-9]+)*")
_LABEL_RULE = "at most 80 letters and digits, separated by single '.', '_', '+', '=' or '-'"


class Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


class Target(Table):
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
        return name if is_imagenet(name) else choose(name, [*training.RECIPES, *models.list_models()], "network")

    @field_validator("data")
    @classmethod
    def _known_data(cls, name: str) -> str:
        return name if data.is_known(name) else choose(name, data.list_data(), "data set")

    @model_validator(mode="after")
    def _has_weights(self) -> "Target":
        if self.weights == "pretrained":
            require(is_imagenet(self.network), f"has no pretrained weights for {self.network}; leave weights out")
        else:
            training.recipe_for(self.network, self.recipe)
        return self

    def training_recipe(self) -> Recipe | None:
        """The recipe that the network is trained by; None for published weights."""
        return training.recipe_for(self.network, self.recipe) if self.weights == "trained" else None


class Measures(Table):
    """The table [measures]: see `measures.asked.Asked`."""

    corruption_images: StrictInt = Field(default=0, ge=0)
    latency_repeats: StrictInt = Field(default=0, ge=0)
    random_splits: StrictInt = Field(default=0, ge=0)
    twin: StrictBool = False

    def asked(self) -> Asked:
        """As the measures take it."""
        return Asked(**self.model_dump())


class Method(Table):
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
        return {"label": default_label(table.get("name"), options)} | gathered

    @field_validator("name")
    @classmethod
    def _known_name(cls, name: str) -> str:
        return choose(name, list_methods(), "method")

    @field_validator("label")
    @classmethod
    def _fit_for_files(cls, label: str) -> str:
        return require_label(label)

    @model_validator(mode="after")
    def _known_options(self) -> "Method":
        check_options(self.name, self.options)
        return self


def require(condition: bool, sentence: str) -> None:
    if not condition:
        raise ValueError(sentence)


def require_label(label: str) -> str:
    require(_LABEL.fullmatch(label) is not None and len(label) <= 80, f"must be {_LABEL_RULE}, not {label!r}")
    return label


def choose(name: str, allowed: Iterable[str], kind: str) -> str:
    allowed = list(allowed)
    require(name in allowed, unknown(name, allowed, kind))
    return name


def distinct(values: _Values, hint: str = "") -> _Values:
    """`values` if there is at least one and none twice."""
    require(len(values) > 0, "must not be empty, or the suite has no cells")
    twice = sorted(str(value) for value, times in Counter(values).items() if times > 1)
    require(not twice, f"has {', '.join(twice)} twice{hint}")
    return values
