"""pluggy hooks. Each returns classes of one kind; behaviour is in the classes.

A plugin is a module named in the entry-point group `teengine` that implements any of these with `hookimpl`.
"""

import pluggy

from teengined.interfaces.driver import Driver
from teengined.interfaces.policy import PlacementPolicy, SchedulingPolicy
from teengined.interfaces.precision import PrecisionStrategy
from teengined.interfaces.precision_policy import PrecisionPolicy
from teengined.interfaces.source import ModelSource
from teengined.interfaces.transport import Transport

__all__ = ["PROJECT", "hookimpl", "hookspec"]

PROJECT = "teengine"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def teengine_register_drivers() -> list[type[Driver]]:  # type: ignore[empty-body]
    """Return driver classes."""


@hookspec
def teengine_register_placement_policies() -> list[type[PlacementPolicy]]:  # type: ignore[empty-body]
    """Return placement policy classes."""


@hookspec
def teengine_register_scheduling_policies() -> list[type[SchedulingPolicy]]:  # type: ignore[empty-body]
    """Return scheduling policy classes."""


@hookspec
def teengine_register_precision_policies() -> list[type[PrecisionPolicy]]:  # type: ignore[empty-body]
    """Return precision policy classes."""


@hookspec
def teengine_register_precisions() -> list[type[PrecisionStrategy]]:  # type: ignore[empty-body]
    """Return precision strategy classes."""


@hookspec
def teengine_register_transports() -> list[type[Transport]]:  # type: ignore[empty-body]
    """Return transport classes."""


@hookspec
def teengine_register_sources() -> list[type[ModelSource]]:  # type: ignore[empty-body]
    """Return model source classes."""
