"""JSON as the standard has it: Python's own decoder takes NaN and infinities besides."""

import json
import math
from typing import NoReturn

__all__ = ["STRICT_JSON"]


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):  # Written again, it would be one of the constants.
        raise ValueError(f"{text:.40} is larger than any number here")
    return number


STRICT_JSON = json.JSONDecoder(parse_constant=_refuse_constant, parse_float=_finite)
"""Raises ValueError for what is no JSON, and RecursionError for what is nested too deeply."""
