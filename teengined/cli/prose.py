"""Small phrases that several verbs share: ages, counts of parameters, and text made safe for a terminal."""

import unicodedata

__all__ = ["age", "count", "percent", "printable", "rate"]


def age(then_unix_seconds: float, now_unix_seconds: float) -> str:
    """Return `just now`, `5 minutes ago`, `3 days ago`."""
    seconds = max(now_unix_seconds - then_unix_seconds, 0)
    for unit, size in (("day", 86400), ("hour", 3600), ("minute", 60)):
        if seconds >= size:
            number = int(seconds // size)
            return f"{number} {unit}{'s' if number > 1 else ''} ago"
    return "just now"


def count(number: int) -> str:
    """Return a count of parameters as models are named: `135M`, `1.2B`."""
    for size, letter in ((10**12, "T"), (10**9, "B"), (10**6, "M"), (10**3, "K")):
        if number >= size:
            value = number / size
            return f"{value:.1f}{letter}" if value < 9.95 else f"{value:.0f}{letter}"
    return str(number)


def percent(share: float) -> str:
    """Return `41%`."""
    return f"{share * 100:.0f}%"


def rate(tokens_per_second: float) -> str:
    """Return tokens per second for a table; empty for nothing measured yet."""
    return f"{tokens_per_second:.1f}" if tokens_per_second > 0 else ""


def printable(text: str) -> str:
    """Return a model's text without the control characters that could drive a terminal; breaks and tabs stay."""
    return "".join(character for character in text if character in "\n\t" or unicodedata.category(character) != "Cc")
