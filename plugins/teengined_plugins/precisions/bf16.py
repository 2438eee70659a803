"""Weights as bfloat16: the range of fp32 with eight bits of precision, and what most models were trained in."""

from teengined.interfaces.hookspecs import hookimpl
from teengined.interfaces.precision import PrecisionStrategy
from teengined_plugins.precisions.plain import PlainPrecision

__all__ = ["Bf16Precision"]


class Bf16Precision(PlainPrecision):
    """Stores bf16."""

    name = "bf16"
    dtype_name = "bfloat16"
    element_bytes = 2


@hookimpl
def teengine_register_precisions() -> list[type[PrecisionStrategy]]:
    """Return the bf16 strategy."""
    return [Bf16Precision]
