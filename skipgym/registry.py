"""Things by name: those we ship, those of installed plug-ins, those that a program registers itself.

Nothing here imports torch. A plug-in's names are known from its metadata; it is imported when it is asked for by name,
or when names are listed with their descriptions.
"""

import warnings
from collections.abc import Callable, Mapping
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Generic, Literal, NamedTuple, TypeVar

from .names import unknown

Value = TypeVar("Value")
Source = Literal["skipgym", "plug-in", "program"]
PACKAGE = __name__.partition(".")[0]


class PluginError(ValueError):
    """An installed plug-in cannot be used."""


class PluginWarning(UserWarning):
    """An installed plug-in cannot be used; everything else can."""


class Named(NamedTuple, Generic[Value]):
    """What a name stands for.

    Attributes:
        value: The thing itself.
        description: One line for `skipgym list`.
        source: Who brought it: us, an installed plug-in, or the running program, whose workers may not know it.
    """

    value: Value
    description: str
    source: Source = "program"


class Registry(Generic[Value]):
    """Names of one kind of thing.

    Args:
        kind: What they name, for errors.
        group: Of the entry points by which installed packages bring theirs.
        adopt: Gives value and description of what an entry point leads to; raises an error if it is no such thing.
        ours: Module of each name of ours that is imported only when it is needed. It registers the name.

    Attributes:
        registered: What has been registered so far.
    """

    def __init__(
        self,
        kind: str,
        *,
        group: str,
        adopt: Callable[[str, Any], tuple[Value, str]],
        ours: Mapping[str, str] | None = None,
    ):
        self.kind, self.group, self.adopt, self.ours = kind, group, adopt, dict(ours or {})
        self.registered: dict[str, Named[Value]] = {}
        self._loading: set[str] = set()
        self._broken: dict[str, tuple[str, Exception]] = {}

    def add(self, name: str, value: Value, description: str, *, module: str) -> None:
        """Register a value.

        Args:
            name: What users type.
            value: What it stands for.
            description: One line for `skipgym list`.
            module: Where it is defined; names of ours and of plug-ins are for their own modules only.

        Raises:
            ValueError: If the name is taken.
        """
        if holder := self._holder(name, module):
            raise ValueError(
                f"{self.kind} name: expected a new one, got {name!r}, which is taken by {holder}. Choose another."
            )
        ours = module.partition(".")[0] == PACKAGE
        source = "skipgym" if ours else "plug-in" if name in plugins(self.group) else "program"
        self.registered[name] = Named(value, description, source)

    def find(self, name: str) -> Value | None:
        """Return what a name stands for, None if it is unknown.

        Raises:
            PluginError: If it is the name of an installed plug-in that cannot be used.
        """
        if name not in self.registered and name in self.ours:
            import_module(self.ours[name])
        if name not in self.registered and name in plugins(self.group):
            self._load(name)
        return self.registered[name].value if name in self.registered else None

    def get(self, name: str) -> Value:
        """Return what a name stands for.

        Raises:
            ValueError: If it is unknown, or that of an installed plug-in that cannot be used.
        """
        value = self.find(name)
        if value is None:
            raise ValueError(unknown(self.kind, name, self.known()))
        return value

    def known(self) -> list[str]:
        """Return all names without importing anything, plug-ins that cannot be used included."""
        return list(dict.fromkeys([*self.ours, *self.registered, *plugins(self.group)]))

    def names(self) -> dict[str, str]:
        """Return all names with their descriptions; of plug-ins that cannot be used it warns, and leaves them out."""
        for name in self.known():
            try:
                self.find(name)
                self._check_shadowed(name)
            except PluginError as error:
                warnings.warn(str(error), PluginWarning, stacklevel=3)
        return {name: self.registered[name].description for name in self.known() if name in self.registered}

    def is_local(self, name: str) -> bool:
        """Return whether only this program, and not every process that imports skipgym, knows a name."""
        return name in self.registered and self.registered[name].source == "program"

    def _holder(self, name: str, module: str) -> str | None:
        """Return who has a name already, None if whoever is defined in this module may take it."""
        if name in self.registered:
            return {"skipgym": PACKAGE, "plug-in": "a plug-in", "program": "this program"}[self.registered[name].source]
        if self.ours.get(name, module) != module:
            return PACKAGE
        points = plugins(self.group).get(name, [])
        if name in self._loading or module.partition(".")[0] in (point.module.partition(".")[0] for point in points):
            return None
        return f"the plug-in {_package(points[0])}" if points else None

    def _load(self, name: str) -> None:
        """Import a plug-in, once: its module may register itself, and would find its name taken the second time."""
        points = plugins(self.group)[name]
        if name not in self._broken:
            self._loading.add(name)
            try:
                self._adopt(name, points)
            except Exception as error:  # whatever somebody's module raises
                self._broken[name] = _broken(points[0], f"{type(error).__name__}: {error}"), error
            finally:
                self._loading.discard(name)
        if name in self._broken:
            text, cause = self._broken[name]
            raise PluginError(text) from cause

    def _adopt(self, name: str, points: list[EntryPoint]) -> None:
        if len(points) > 1:
            raise ValueError(f"the name is taken twice, by {' and '.join(map(_package, points))}; one of them must go")
        found = points[0].load()
        if name not in self.registered:
            self.registered[name] = Named(*self.adopt(name, found), "plug-in")

    def _check_shadowed(self, name: str) -> None:
        """Raise a PluginError if a plug-in asks for a name that is ours: then ours is used."""
        if self.registered[name].source == "skipgym" and name in plugins(self.group):
            why = f"the name is taken by {PACKAGE}'s own {self.kind} {name}, which is used"
            raise PluginError(_broken(plugins(self.group)[name][0], why))


@cache
def plugins(group: str) -> dict[str, list[EntryPoint]]:
    """Return the entry points of a group by name; a name should be there once."""
    found: dict[str, list[EntryPoint]] = {}
    for point in entry_points(group=group):
        found.setdefault(point.name, []).append(point)
    return found


def first_line(described: Any) -> str:
    """Return the first line of a docstring, for descriptions."""
    return (described.__doc__ or "").strip().split("\n")[0]


def _package(point: EntryPoint) -> str:
    return f"{point.dist.name} {point.dist.version}" if point.dist else point.value


def _broken(point: EntryPoint, why: str) -> str:
    return (
        f"plug-in {_package(point)}: entry point {point.name} = {point.value} of {point.group} cannot be used: "
        f"{why.rstrip('.')}. Mend or uninstall it; everything else works."
    )
