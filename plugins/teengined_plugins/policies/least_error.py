"""The choice of precisions whose errors add up to the least within the bytes: a knapsack, solved as a front.

Parts are taken one after the other. Of the choices so far only those are kept that no other beats in both bytes and
error; since layers are alike in size, few totals of bytes occur, and the front stays short. Beyond a limit its bytes
are rounded up, so that a choice that is kept always fits.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from teengined.core.errors import DoesNotFit
from teengined.core.quantities import format_bytes
from teengined.interfaces.hookspecs import hookimpl
from teengined.interfaces.precision_policy import PrecisionOption, PrecisionPart, PrecisionPolicy

__all__ = ["LeastErrorPrecision"]

# Choices kept after each part: exact for every model of alike layers, and half a second for hundreds of parts.
_MAX_FRONT = 4000


@dataclass(frozen=True, slots=True)
class _Choice:
    size_bytes: int
    error: float
    option: PrecisionOption | None
    before: "_Choice | None"


class LeastErrorPrecision(PrecisionPolicy):
    """Minimises the sum of errors."""

    name: ClassVar[str] = "least-error"

    def choose(self, parts: Sequence[PrecisionPart], budget_bytes: int) -> tuple[PrecisionOption, ...]:
        """Return the best choice; exact while the front is short, else within a thousandth of the budget."""
        least_after = _least_bytes_after(parts)
        if least_after[0] > budget_bytes:
            raise DoesNotFit(
                f"the parts of the model take {format_bytes(least_after[0])} at the least, "
                f"{format_bytes(budget_bytes)} are allowed",
                hint=f"allow {format_bytes(least_after[0])} or more",
            )
        front = [_Choice(0, 0.0, None, None)]
        for part, least_bytes in zip(parts, least_after[1:], strict=True):
            extended = (
                _Choice(choice.size_bytes + option.size_bytes, choice.error + option.error, option, choice)
                for choice in front
                for option in part.options
                if choice.size_bytes + option.size_bytes + least_bytes <= budget_bytes
            )
            front = _thinned(_front(extended))
        return _options(min(front, key=lambda choice: (choice.error, choice.size_bytes)))


def _least_bytes_after(parts: Sequence[PrecisionPart]) -> list[int]:
    """Return what the parts from each place on take at the least; one entry more than parts."""
    least = [0]
    for part in reversed(parts):
        least.append(least[-1] + min(option.size_bytes for option in part.options))
    return least[::-1]


def _front(choices: Iterable[_Choice]) -> list[_Choice]:
    kept: list[_Choice] = []
    for choice in sorted(choices, key=lambda one: (one.size_bytes, one.error)):
        if not kept or choice.error < kept[-1].error:
            kept.append(choice)
    return kept


def _thinned(front: list[_Choice]) -> list[_Choice]:
    """Keep the best of each of `_MAX_FRONT` ranges of bytes, and the smallest of all, which surely leads to an end."""
    if len(front) <= _MAX_FRONT:
        return front
    width = front[-1].size_bytes / _MAX_FRONT
    best = {int(choice.size_bytes / width): choice for choice in front}
    return [front[0], *(choice for choice in best.values() if choice is not front[0])]


def _options(choice: _Choice) -> tuple[PrecisionOption, ...]:
    options: list[PrecisionOption] = []
    last: _Choice | None = choice
    while last is not None and last.option is not None:
        options.append(last.option)
        last = last.before
    return tuple(reversed(options))


@hookimpl
def teengine_register_precision_policies() -> list[type[PrecisionPolicy]]:
    """Register the class."""
    return [LeastErrorPrecision]
