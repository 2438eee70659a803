"""Weights as IEEE half precision: eleven bits of precision, magnitudes up to 65504."""

from teengined.interfaces.hookspecs import hookimpl
from teengined.interfaces.precision import PrecisionStrategy
from teengined_plugins.precisions.plain import PlainPrecision

__all__ = ["Fp16Precision"]


class Fp16Precision(PlainPrecision):
    """Stores fp16."""

    name = "fp16"
    dtype_name = "float16"
    element_bytes = 2


@hookimpl
def teengine_register_precisions() -> list[type[PrecisionStrategy]]:
    """Return the fp16 strategy."""
    return [Fp16Precision]
