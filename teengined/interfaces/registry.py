"""Finds the installed drivers and plugins, holds them to their contracts, and hands them out by name.

Every plugin, a built-in or a stranger's, comes through the entry-point group `teengine`. One that breaks its contract
stops the load with an error that names it: a daemon that quietly runs without a driver is worse than one that says why
it does not start. Imports no torch, and no plugin by name.
"""

import importlib.metadata
import inspect
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Generic, TypeVar

import pluggy

from teengined.core.errors import ConfigError, PluginError, SourceError
from teengined.core.nearest import nearest
from teengined.interfaces import hookspecs
from teengined.interfaces.driver import Driver
from teengined.interfaces.policy import PlacementPolicy, SchedulingPolicy
from teengined.interfaces.precision import PrecisionStrategy
from teengined.interfaces.precision_policy import PrecisionPolicy
from teengined.interfaces.source import ModelSource
from teengined.interfaces.transport import Transport

__all__ = ["ENTRY_POINT_GROUP", "PluginRegistry", "RegisteredPlugin"]

ENTRY_POINT_GROUP = "teengine"

# Loaded first, so that a stranger's duplicate of a built-in is the one that is named as the duplicate.
_OWN_DISTRIBUTION = "teengine"
# A hub id looks like many things; a source that knows the reference for its own is asked before.
_LAST_SOURCE = "hub"
# What fits in a plan, a flag and a file name; a colon would end a driver's name inside a device id.
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class RegisteredPlugin:
    """One registered class and where it came from."""

    kind: str
    """`driver`, `precision`, `precision policy`, `transport`, `placement policy`, `scheduling policy` or `source`."""
    name: str
    entry_point: str
    distribution: str
    """Name and version of the installed distribution."""


class PluginRegistry:
    """The plugins of one process: one instance of each registered class, by kind and name."""

    def __init__(self) -> None:
        """Start empty; `load` fills one from what is installed."""
        self._drivers = _Shelf("driver", Driver, "teengine_register_drivers")
        self._precisions = _Shelf("precision", PrecisionStrategy, "teengine_register_precisions")
        self._precision_policies = _Shelf("precision policy", PrecisionPolicy, "teengine_register_precision_policies")
        self._transports = _Shelf("transport", Transport, "teengine_register_transports")
        self._placement_policies = _Shelf("placement policy", PlacementPolicy, "teengine_register_placement_policies")
        self._scheduling_policies = _Shelf(
            "scheduling policy", SchedulingPolicy, "teengine_register_scheduling_policies"
        )
        self._sources = _Shelf("source", ModelSource, "teengine_register_sources")
        self._items: list[RegisteredPlugin] = []

    @classmethod
    def load(cls, blocked: Collection[str] = ()) -> "PluginRegistry":
        """Return a registry of every installed plugin that is not blocked.

        `blocked` names entry points (`driver.cuda`), or distributions to leave out whole; they are not imported.

        Raises:
            PluginError: a plugin cannot be imported, raises, is a duplicate or breaks its contract; names the plugin,
                its distribution and its entry point.
            ConfigError: `blocked` names nothing that is installed.
        """
        found = _find_entry_points()
        _check_blocked(blocked, found)
        manager = pluggy.PluginManager(hookspecs.PROJECT)
        manager.add_hookspecs(hookspecs)
        registry = cls()
        for origin in found:
            if not origin.known_as & set(blocked):
                registry._add(origin, manager)
        return registry

    def driver(self, name: str) -> Driver:
        """Return the driver; ConfigError lists what is installed where there is none of that name."""
        return self._drivers.get(name)

    def precision(self, name: str) -> PrecisionStrategy:
        """Return the precision strategy; ConfigError as for `driver`."""
        return self._precisions.get(name)

    def transport(self, name: str) -> Transport:
        """Return the transport; ConfigError as for `driver`."""
        return self._transports.get(name)

    def placement_policy(self, name: str) -> PlacementPolicy:
        """Return the placement policy; ConfigError as for `driver`."""
        return self._placement_policies.get(name)

    def scheduling_policy(self, name: str) -> SchedulingPolicy:
        """Return the scheduling policy; ConfigError as for `driver`."""
        return self._scheduling_policies.get(name)

    def source(self, name: str) -> ModelSource:
        """Return the model source; ConfigError as for `driver`."""
        return self._sources.get(name)

    def source_for(self, reference: str) -> ModelSource:
        """Return the first source, by name with the hub last, that recognises `reference`.

        Raises:
            SourceError: none does.
            PluginError: a source raised instead of answering.
        """
        ordered = sorted(self._sources.instances.items(), key=lambda item: (item[0] == _LAST_SOURCE, item[0]))
        for name, source in ordered:
            try:
                if source.matches(reference):
                    return source
            except Exception as error:
                raise PluginError(
                    f"{self._sources.origin(name)} raised on {reference!r:.80}: {_told(error)}"
                ) from error
        raise SourceError(
            f"{reference!r:.200} is no model reference that any installed source knows ({', '.join(self.sources())})",
            hint="name a directory with config.json and safetensors files, a .gguf file, or a hub id ORG/NAME",
        )

    def drivers(self) -> Mapping[str, Driver]:
        """Return drivers by name, in order of their names."""
        return self._drivers.view()

    def precisions(self) -> Mapping[str, PrecisionStrategy]:
        """Return precision strategies by name, in order of their names."""
        return self._precisions.view()

    def precision_policies(self) -> Mapping[str, PrecisionPolicy]:
        """Return precision policies by name, in order of their names."""
        return self._precision_policies.view()

    def transports(self) -> Mapping[str, Transport]:
        """Return transports by name, in order of their names."""
        return self._transports.view()

    def placement_policies(self) -> Mapping[str, PlacementPolicy]:
        """Return placement policies by name, in order of their names."""
        return self._placement_policies.view()

    def scheduling_policies(self) -> Mapping[str, SchedulingPolicy]:
        """Return scheduling policies by name, in order of their names."""
        return self._scheduling_policies.view()

    def sources(self) -> Mapping[str, ModelSource]:
        """Return model sources by name, in order of their names."""
        return self._sources.view()

    def items(self) -> tuple[RegisteredPlugin, ...]:
        """Return every registered class with its origin, by kind and name."""
        return tuple(sorted(self._items, key=lambda item: (item.kind, item.name)))

    def _add(self, origin: "_Origin", manager: pluggy.PluginManager) -> None:
        module = origin.load_module()
        _register_module(manager, module, origin)
        shelves = (
            self._drivers,
            self._precisions,
            self._precision_policies,
            self._transports,
            self._placement_policies,
            self._scheduling_policies,
            self._sources,
        )
        num_before = len(self._items)
        for shelf in shelves:
            for registered in _ask(manager, shelf.hook, module, origin):
                name = shelf.add(registered, origin)
                self._items.append(
                    RegisteredPlugin(
                        kind=shelf.kind,
                        name=name,
                        entry_point=origin.entry_point.name,
                        distribution=origin.distribution,
                    )
                )
        if len(self._items) == num_before:
            raise origin.error("registers nothing: no hook of it returned a class")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Origin:
    """An entry point and the distribution that it belongs to."""

    entry_point: importlib.metadata.EntryPoint
    distribution_name: str
    distribution: str

    @property
    def known_as(self) -> set[str]:
        return {self.entry_point.name, self.distribution_name}

    def load_module(self) -> Any:
        try:
            return self.entry_point.load()
        except (Exception, SystemExit) as error:
            raise self.error(f"cannot be imported from {self.entry_point.value}: {_told(error)}") from error

    def error(self, problem: str) -> PluginError:
        return PluginError(
            f"plugin {self.entry_point.name!r} of distribution {self.distribution}: {problem}",
            hint=f'mend or uninstall {self.distribution_name}, or run without it: blocked = ["{self.entry_point.name}"]'
            " in the [plugins] table",
        )


class _Shelf(Generic[T]):
    """The registered instances of one kind."""

    def __init__(self, kind: str, contract: type[T], hook: str) -> None:
        self.kind = kind
        self.hook = hook
        self.instances: dict[str, T] = {}
        self._contract = contract
        self._origins: dict[str, _Origin] = {}

    def get(self, name: str) -> T:
        if name in self.instances:
            return self.instances[name]
        installed = sorted(self.instances)
        near = nearest(name, installed)
        raise ConfigError(
            f"no {self.kind} named {name!r:.80} is installed; there are: {', '.join(installed) or 'none'}",
            hint=f"did you mean {near[0]!r}?" if near else "`teengine plugins ls` shows every plugin",
        )

    def origin(self, name: str) -> str:
        return f"{self.kind} {name!r} of {self._origins[name].distribution}"

    def view(self) -> Mapping[str, T]:
        return MappingProxyType(dict(sorted(self.instances.items())))

    def add(self, registered: Any, origin: _Origin) -> str:
        """Check one registered class, keep an instance of it, and return its name."""
        contract = self._contract
        if not (inspect.isclass(registered) and issubclass(registered, contract)):
            raise origin.error(f"{self.hook} returned {registered!r:.80}, which is no subclass of {contract.__name__}")
        if missing := sorted(getattr(registered, "__abstractmethods__", ())):
            raise origin.error(f"{self.kind} class {registered.__name__} lacks {', '.join(missing)}")
        name = getattr(registered, "name", None)
        if not (isinstance(name, str) and _NAME.fullmatch(name)):
            raise origin.error(
                f"{self.kind} class {registered.__name__} has no usable name ({name!r:.80}); set `name` to lower-case"
                " letters, digits, '.', '_' and '-'"
            )
        if earlier := self._origins.get(name):
            raise origin.error(
                f"{self.kind} {name!r} is a duplicate: entry point {earlier.entry_point.name!r} of"
                f" {earlier.distribution} registered that name"
            )
        self.instances[name] = _construct(registered, origin)
        self._origins[name] = origin
        return name


def _find_entry_points() -> list[_Origin]:
    origins: list[_Origin] = []
    for entry_point in importlib.metadata.entry_points(group=ENTRY_POINT_GROUP):
        distribution = entry_point.dist
        name = distribution.name if distribution else "unknown"
        version = distribution.version if distribution else ""
        origins.append(
            _Origin(entry_point=entry_point, distribution_name=name, distribution=f"{name} {version}".strip())
        )
    origins.sort(key=lambda o: (o.distribution_name != _OWN_DISTRIBUTION, o.distribution_name, o.entry_point.name))
    return origins


def _check_blocked(blocked: Collection[str], found: list[_Origin]) -> None:
    known = {name for origin in found for name in origin.known_as}
    for name in blocked:
        if name not in known:
            near = nearest(name, sorted(known))
            raise ConfigError(
                f"blocked plugin {name!r} is not installed",
                hint=f"did you mean {near[0]!r}?" if near else "`teengine plugins ls` shows every plugin",
            )


def _register_module(manager: pluggy.PluginManager, module: Any, origin: _Origin) -> None:
    try:
        manager.register(module, name=f"{origin.distribution_name}:{origin.entry_point.name}")
        manager.check_pending()
    except (ValueError, pluggy.PluginValidationError) as error:
        raise origin.error(f"its hooks do not match: {error}") from error


def _ask(manager: pluggy.PluginManager, hook: str, module: Any, origin: _Origin) -> list[Any]:
    """Return what `module` alone registers with `hook`, so that whatever goes wrong has a name."""
    caller: pluggy.HookCaller = getattr(manager.hook, hook)
    classes: list[Any] = []
    for implementation in caller.get_hookimpls():
        if implementation.plugin is not module:
            continue
        try:
            returned: Any = implementation.function()
        except Exception as error:
            raise origin.error(f"{hook} raised {_told(error)}") from error
        if not isinstance(returned, (list, tuple)):
            raise origin.error(f"{hook} returned {returned!r:.80} instead of a list of classes")
        classes.extend(returned)  # type: ignore[reportUnknownArgumentType] - each item is checked by its shelf
    return classes


def _construct(registered: type[T], origin: _Origin) -> T:
    try:
        return registered()
    except Exception as error:
        raise origin.error(f"class {registered.__name__} raised when constructed: {_told(error)}") from error


def _told(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"
