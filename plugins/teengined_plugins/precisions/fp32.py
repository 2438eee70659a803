"""Weights in float32."""

from teengined.interfaces.hookspecs import hookimpl
from teengined.interfaces.precision import PrecisionStrategy
from teengined_plugins.precisions.floating import FloatingPrecision

__all__ = ["Fp32", "teengine_register_precisions"]


class Fp32(FloatingPrecision):
    """One part of 4 bytes an element."""

    name = "fp32"
    dtype_name = "float32"
    element_bytes = 4


@hookimpl
def teengine_register_precisions() -> list[type[PrecisionStrategy]]:
    """Return the strategy."""
    return [Fp32]
