"""Weights in float16."""

from teengined.interfaces.hookspecs import hookimpl
from teengined.interfaces.precision import PrecisionStrategy
from teengined_plugins.precisions.floating import FloatingPrecision

__all__ = ["Fp16", "teengine_register_precisions"]


class Fp16(FloatingPrecision):
    """One part of 2 bytes an element."""

    name = "fp16"
    dtype_name = "float16"
    element_bytes = 2


@hookimpl
def teengine_register_precisions() -> list[type[PrecisionStrategy]]:
    """Return the strategy."""
    return [Fp16]
