"""Mistral: `[TOOL_CALLS]` before a JSON array of calls, or before a name and arguments; `[THINK]…[/THINK]`."""

import re
from typing import ClassVar

from teengined.service.segments.calls import FoundCall, call_in, call_named
from teengined.service.segments.json_text import JsonScan, array_elements
from teengined.service.segments.markers import Markers
from teengined.service.segments.thinking import ThinkingFold

__all__ = ["MistralFold"]

_CALLS = "[TOOL_CALLS]"
_ARGUMENTS, _CALL_ID = "[ARGS]", "[CALL_ID]"
# A name with the model's own id of the call, which we replace by ours, up to where the arguments begin.
_HEAD = re.compile(r"\s{0,8}([\w.\-]{1,128})(?:\[CALL_ID\]\w{1,64})?(?:\[ARGS\])?\s{0,8}(?=\{)")
_MAX_HEAD_CHARACTERS = 256
_SPACE = re.compile(r"\s{0,8}")


class MistralFold(ThinkingFold):
    """Newer models write one marker for each call, older ones one for all."""

    kept_special_tokens: ClassVar[frozenset[str]] = frozenset({_CALLS, _ARGUMENTS, _CALL_ID, "[THINK]", "[/THINK]"})
    markers: ClassVar[Markers] = Markers(_CALLS, "[THINK]")
    think: ClassVar[str] = "[THINK]"
    _end_of_thinking: ClassVar[Markers] = Markers("[/THINK]")
    _name = ""

    def _open(self, marker: str) -> None:
        self._lead, self._name, self._state = marker, "", self._head

    def _head(self, text: str, start: int, is_last: bool) -> int:
        """Tell the two forms apart by what comes first."""
        end = start + _MAX_HEAD_CHARACTERS
        spaces = _SPACE.match(text, start)
        first = text[spaces.end() : spaces.end() + 1] if spaces else ""
        if first == "[":
            self._begin_json(self._lead, JsonScan("["))
        elif head := _HEAD.match(text, start, end):
            self._name = head.group(1)
            self._begin_json(self._lead + head.group(), JsonScan("{"))
            return head.end()
        elif is_last or len(text) >= end:
            self._give_up(self._lead)
        return start

    def _settle(self, json_text: str) -> None:
        calls = [call_named(self._name, json_text)] if self._name else _calls_in(json_text)
        found = [call for call in calls if call is not None]
        if len(found) < len(calls) or not found:
            self._give_up(self._lead + json_text)
            return
        for call in found:
            self._call(call)
        self._end_segment()


def _calls_in(json_text: str) -> list[FoundCall | None]:
    return [call_in(element) if element.startswith("{") else None for element in array_elements(json_text) or ()]
