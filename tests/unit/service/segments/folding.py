"""Feeding folds, and what came of it: the sum of all deltas."""

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from teengined.service.segments import SegmentDelta, SegmentFold, open_fold

__all__ = ["Folded", "cut", "fold", "folded"]


@dataclass(frozen=True, slots=True)
class Folded:
    """An answer, told apart. Calls are name and arguments."""

    text: str = ""
    reasoning: str = ""
    calls: tuple[tuple[str, str], ...] = ()


def deltas(segments: SegmentFold, pieces: Iterable[str]) -> Iterator[SegmentDelta]:
    for piece in pieces:
        yield segments.feed(piece)
    yield segments.finish()


def fold(segments: SegmentFold, pieces: Iterable[str]) -> Folded:
    """Add the deltas up, and hold them to their promises: whole names first, indices in order, stable ids."""
    text = reasoning = ""
    calls: list[list[str]] = []
    ids: set[str] = set()
    for delta in deltas(segments, pieces):
        text += delta.text
        reasoning += delta.reasoning
        for call in delta.tool_calls:
            if call.id:
                assert call.name
                assert call.index == len(calls)
                assert call.id not in ids
                ids.add(call.id)
                calls.append([call.name, call.arguments])
            else:
                assert not call.name
                assert call.arguments
                assert call.index == len(calls) - 1
                calls[-1][1] += call.arguments
    assert segments._rest == "", "nothing may wait after the end"
    return Folded(text, reasoning, tuple((name, arguments) for name, arguments in calls))


def folded(name: str | None, answer: str, prompt: str = "") -> Folded:
    """Return the answer told apart when it comes in one piece and, the same, in single characters."""
    whole = fold(open_fold(name, "r1", prompt), [answer])
    assert fold(open_fold(name, "r1", prompt), answer) == whole
    return whole


def cut(answer: str, places: Iterable[int]) -> list[str]:
    """Return the answer in pieces, cut at each place (modulo its length)."""
    borders = sorted({place % (len(answer) + 1) for place in places} | {0, len(answer)})
    return [answer[start:end] for start, end in itertools.pairwise(borders)]
