"""JSON as the standard has it: Python's own decoder takes NaN and infinities besides."""

import json
from typing import NoReturn

__all__ = ["STRICT_JSON"]


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


STRICT_JSON = json.JSONDecoder(parse_constant=_refuse_constant)
"""Raises ValueError for what is no JSON, and RecursionError for what is nested too deeply."""
