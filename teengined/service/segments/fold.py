"""What all folds of segments share: input that waits, text that is held, and the pieces that go out."""

import hashlib
import string
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from teengined.protocol.messages import ToolCallDelta
from teengined.service.segments.calls import FoundCall
from teengined.service.segments.json_text import JsonScan
from teengined.service.segments.markers import Markers

__all__ = ["PlainFold", "SegmentDelta", "SegmentFold"]

State = Callable[[str, int, bool], int]
"""Takes text from a position on, told whether it is the last; returns the position after what it took, and may set the
next state. Taking nothing and staying means that it waits for more; it never waits with much, and never at the end."""

# Letters and digits, nine of them: some templates refuse any other id of a call when it comes back in a later turn.
_ID_SIGNS = string.digits + string.ascii_letters
_ID_LENGTH = 9


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentDelta:
    """What a piece of an answer adds."""

    text: str = ""
    reasoning: str = ""
    tool_calls: tuple[ToolCallDelta, ...] = ()


class SegmentFold:
    """Folds one answer's text into text, reasoning and tool calls; the sum is the same however the answer is cut.

    What begins like a marker waits until it is one or not. A call is told when it is whole and valid, so what turns out
    to be none becomes text, markers included. Line breaks right after a segment belong to its layout and are dropped.
    """

    kept_special_tokens: ClassVar[frozenset[str]] = frozenset()
    """Special tokens that the detokenizer must write, because they are markers."""

    def __init__(self, request_id: str) -> None:
        """Begin outside of any segment. `request_id` goes into the ids of the calls."""
        self._request_id = request_id
        self._rest = ""
        self._state: State = self._outside
        self._text: list[str] = []
        self._reasoning: list[str] = []
        self._calls: list[ToolCallDelta] = []
        self._num_calls = 0
        self._lead = ""
        """Markers before the JSON that is being scanned, in case that it is none."""
        self._scan = JsonScan("{")
        self._at_edge = True
        """Nothing but white space was said since the beginning or the last segment."""
        self._drops_breaks = False

    def feed(self, text: str) -> SegmentDelta:
        """Return what the next piece of the answer adds."""
        return self._advance(self._rest + text, is_last=False)

    def finish(self) -> SegmentDelta:
        """Return what still waited, at the end of the answer."""
        return self._advance(self._rest, is_last=True)

    def _advance(self, text: str, *, is_last: bool) -> SegmentDelta:
        position = 0
        while True:
            state = self._state
            moved = state(text, position, is_last)
            if moved == position and self._state == state:
                break
            position = moved
        self._rest = text[position:]
        delta = SegmentDelta(
            text="".join(self._text), reasoning="".join(self._reasoning), tool_calls=tuple(self._calls)
        )
        self._text, self._reasoning, self._calls = [], [], []
        return delta

    def _outside(self, text: str, start: int, is_last: bool) -> int:
        raise AssertionError("a fold says what it does outside of segments")

    def _say(self, text: str) -> None:
        if kept := self._without_breaks(text):
            self._text.append(kept)
            self._at_edge = self._at_edge and kept.isspace()

    def _think(self, text: str) -> None:
        if kept := self._without_breaks(text):
            self._reasoning.append(kept)

    def _without_breaks(self, text: str) -> str:
        if self._drops_breaks:
            text = text.lstrip("\r\n")
            self._drops_breaks = not text
        return text

    def _end_segment(self) -> None:
        """Go on outside."""
        self._state, self._at_edge, self._drops_breaks = self._outside, True, True

    def _up_to(
        self, markers: Markers, say: Callable[[str], None], text: str, span: tuple[int, bool]
    ) -> tuple[str, int]:
        """Say what comes before the first marker; return the marker (or nothing) and the position after it.

        `span` is where the text begins and whether it is the last.
        """
        start, is_last = span
        match = markers.search(text, start)
        if match is not None:
            say(text[start : match.start()])
            return match.group(), match.end()
        end = len(text) if is_last else markers.open_end(text, start)
        say(text[start:end])
        return "", end

    def _begin_json(self, lead: str, scan: JsonScan) -> None:
        """Scan JSON after the markers in `lead`."""
        self._lead, self._scan, self._state = lead, scan, self._json

    def _json(self, text: str, start: int, is_last: bool) -> int:
        end = self._scan.feed(text, start)
        if self._scan.done:
            self._settle(self._scan.text)
        elif self._scan.failed or is_last:
            self._give_up(self._lead + self._scan.text)
        return end

    def _settle(self, json_text: str) -> None:
        """Judge JSON that is complete, and set the next state."""
        raise AssertionError("a fold says what its JSON means")

    def _give_up(self, text: str) -> None:
        """Say what was held, because it is no segment, and go on outside."""
        self._state = self._outside
        self._say(text)

    def _call(self, call: FoundCall) -> None:
        """Tell a whole call."""
        self._begin_call(call.name)
        self._add_arguments(call.arguments)

    def _begin_call(self, name: str) -> None:
        index = self._num_calls
        self._num_calls += 1
        self._calls.append(ToolCallDelta(index=index, id=_call_id(self._request_id, index), name=name))

    def _add_arguments(self, arguments: str) -> None:
        """Add to the last call."""
        if not arguments:
            return
        last = self._calls[-1] if self._calls else None
        if last is not None:
            # One delta for each call in a piece.
            joined = ToolCallDelta(index=last.index, id=last.id, name=last.name, arguments=last.arguments + arguments)
            self._calls[-1] = joined
        else:
            self._calls.append(ToolCallDelta(index=self._num_calls - 1, arguments=arguments))


class PlainFold(SegmentFold):
    """An answer in no known format: everything is text."""

    def _outside(self, text: str, start: int, is_last: bool) -> int:
        self._say(text[start:])
        return len(text)


def _call_id(request_id: str, index: int) -> str:
    digest = hashlib.blake2b(f"{request_id}/{index}".encode("utf-8", errors="replace"), digest_size=8).digest()
    number = int.from_bytes(digest, "big")
    signs: list[str] = []
    for _ in range(_ID_LENGTH):
        number, place = divmod(number, len(_ID_SIGNS))
        signs.append(_ID_SIGNS[place])
    return "".join(signs)
