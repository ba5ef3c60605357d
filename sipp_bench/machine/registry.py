"""Names for classes, one registry for all of them: what there is, what was meant, which options each takes."""

import importlib
import inspect
import pkgutil
from collections.abc import Iterable
from types import ModuleType
from typing import Any, Generic, TypeVar

from sipp_bench.errors import OptionError, did_you_mean

T = TypeVar("T")


def unknown(name: str, allowed: Iterable[str], kind: str) -> str:
    """Say that there is no `name` of that kind, what is close to it, and what there is."""
    allowed = list(dict.fromkeys(allowed))
    return f"there is no {kind} {name!r}.{did_you_mean(name, allowed)} Allowed: {', '.join(allowed)}."


class Registry(Generic[T]):
    """Subclasses of one base by name. kind: what they are, in sentences ("method").

    package: every class of its modules that says its own `name` is found there, so that to add one is to add a file.
    """

    def __init__(self, kind: str, base: type[T], package: ModuleType) -> None:
        self.kind, self.base = kind, base
        self.classes: dict[str, type[T]] = {}
        for module in pkgutil.iter_modules(package.__path__):
            loaded = importlib.import_module(f"{package.__name__}.{module.name}")
            for cls in vars(loaded).values():
                own = inspect.isclass(cls) and cls.__module__ == loaded.__name__ and "name" in vars(cls)
                if own and issubclass(cls, base):
                    self.add(cls.name, cls)

    def names(self) -> list[str]:
        """All names, sorted."""
        return sorted(self.classes)

    def add(self, name: str, cls: type[T]) -> None:
        """Make `cls` available under the name. Raises OptionError for one that is taken by another class."""
        if not (inspect.isclass(cls) and issubclass(cls, self.base)):
            raise OptionError(f"{cls!r} is not a subclass of {self.base.__module__}.{self.base.__qualname__}.")
        if self.classes.get(name, cls) is not cls:
            raise OptionError(f"A {self.kind} named {name!r} is registered already: choose another name.")
        self.classes[name] = cls

    def make(self, name: str, **options: Any) -> T:
        """An instance with these options; OptionError names what is allowed when the name or an option is not."""
        kind = self.kind
        if name not in self.classes:
            hint = did_you_mean(str(name), self.names())
            raise OptionError(f"There is no {kind} {name!r}.{hint} The {kind}s are: {', '.join(self.names())}.")
        cls = self.classes[name]
        allowed = list(inspect.signature(cls).parameters)
        if strange := [option for option in options if option not in allowed]:
            takes = f"Its options are: {', '.join(allowed)}" if allowed else "It has none"
            raise OptionError(f"The {kind} {name!r} has no option {strange[0]!r}. {takes}.")
        try:
            return cls(**options)
        except TypeError as error:
            raise OptionError(f"The {kind} {name!r} does not take the options {options}: {error}.") from error
