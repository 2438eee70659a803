"""Weights in bfloat16."""

from teengined.interfaces.hookspecs import hookimpl
from teengined.interfaces.precision import PrecisionStrategy
from teengined_plugins.precisions.floating import FloatingPrecision

__all__ = ["Bf16", "teengine_register_precisions"]


class Bf16(FloatingPrecision):
    """One part of 2 bytes an element."""

    name = "bf16"
    dtype_name = "bfloat16"
    element_bytes = 2


@hookimpl
def teengine_register_precisions() -> list[type[PrecisionStrategy]]:
    """Return the strategy."""
    return [Bf16]
