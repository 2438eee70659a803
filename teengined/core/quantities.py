"""Bytes and seconds as people write them: `"1.5GiB"`, `"250ms"`, and back."""

import math
import re
from fractions import Fraction

__all__ = ["format_bytes", "format_count", "format_seconds", "parse_bytes", "parse_count", "parse_seconds"]

_BYTE_FACTORS = {
    "": 1,
    "B": 1,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KIB": 2**10,
    "MIB": 2**20,
    "GIB": 2**30,
    "TIB": 2**40,
}
_COUNT_FACTORS = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9, "G": 10**9, "T": 10**12}
_SECOND_FACTORS = {"": 1.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
_NUMBER_AND_UNIT = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*")


def parse_bytes(text: str) -> int:
    """Return the number of bytes in `"512MiB"`, `"2 GB"` or `"4096"`.

    Raises:
        ValueError: the text is no size; the message lists the units.
    """
    match = _NUMBER_AND_UNIT.fullmatch(text)
    factor = _BYTE_FACTORS.get(match[2].upper()) if match else None
    if match is None or factor is None:
        raise ValueError(f"{text!r} is not a size; write a number and one of B, KB, MB, GB, TB, KiB, MiB, GiB, TiB")
    return int(Fraction(match[1]) * factor)


def parse_count(text: str) -> int:
    """Return the number in `"1T"`, `"30B"`, `"1.5M"` or `"4096"`, as sizes of models are written.

    Raises:
        ValueError: the text is no such number; the message lists the factors.
    """
    match = _NUMBER_AND_UNIT.fullmatch(text)
    factor = _COUNT_FACTORS.get(match[2].upper()) if match else None
    if match is None or factor is None:
        raise ValueError(f"{text!r} is not a number; write digits and one of K, M, B, T")
    return int(Fraction(match[1]) * factor)


def format_count(number: float) -> str:
    """Return a number as sizes of models are written, such as `"1.03T"`, `"30.5B"` or `"135M"`."""
    value, unit = float(number), ""
    for larger in ("K", "M", "B", "T"):
        if abs(value) < 999.5:
            break
        value, unit = value / 1000, larger
    return f"{value:.0f}" if not unit else f"{value:.3g}{unit}"


def parse_seconds(text: str) -> float:
    """Return the number of seconds in `"250ms"`, `"5m"` or `"1.5"`.

    Raises:
        ValueError: the text is no duration; the message lists the units.
    """
    match = _NUMBER_AND_UNIT.fullmatch(text)
    factor = _SECOND_FACTORS.get(match[2].lower()) if match else None
    seconds = float(match[1]) * factor if match is not None and factor is not None else math.inf
    if not math.isfinite(seconds):
        raise ValueError(f"{text!r} is not a duration; write a number and one of us, ms, s, m, h, d")
    return seconds


def format_bytes(num_bytes: float) -> str:
    """Return a size in SI units with at most four significant characters, such as `"42 GB"` or `"1.5 MB"`."""
    value, unit = float(num_bytes), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if abs(value) < 999.5:
            break
        value, unit = value / 1000, larger
    return f"{value:.0f} {unit}" if unit == "B" or abs(value) >= 99.95 else f"{value:.1f} {unit}"


def format_seconds(seconds: float) -> str:
    """Return a duration a person can read at a glance: `"850 µs"`, `"12 ms"`, `"3.4 s"`, `"4m28s"`, `"2h03m"`."""
    if seconds < 1e-3:
        return f"{seconds * 1e6:.0f} µs"
    if seconds < 1:
        return f"{seconds * 1e3:.3g} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    if seconds < 3600:
        return f"{int(seconds) // 60}m{int(seconds) % 60:02d}s"
    return f"{int(seconds) // 3600}h{int(seconds) % 3600 // 60:02d}m"
