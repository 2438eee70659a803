"""Weights as IEEE single precision: the reference, at four bytes a parameter."""

from teengined.interfaces.hookspecs import hookimpl
from teengined.interfaces.precision import PrecisionStrategy
from teengined_plugins.precisions.plain import PlainPrecision

__all__ = ["Fp32Precision"]


class Fp32Precision(PlainPrecision):
    """Stores fp32."""

    name = "fp32"
    dtype_name = "float32"
    element_bytes = 4


@hookimpl
def teengine_register_precisions() -> list[type[PrecisionStrategy]]:
    """Return the fp32 strategy."""
    return [Fp32Precision]
