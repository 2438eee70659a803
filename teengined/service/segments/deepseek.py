"""DeepSeek: `<think>…</think>`, and calls between `<｜tool▁calls▁begin｜>` and `<｜tool▁calls▁end｜>`.

Each call is `<｜tool▁call▁begin｜>` and `<｜tool▁call▁end｜>` around a kind, a separator, a name and JSON in a fence;
newer models write a name, the separator and bare JSON there.
"""

import re
from typing import ClassVar

from teengined.service.segments.calls import call_named
from teengined.service.segments.json_text import JsonScan
from teengined.service.segments.layout import follows
from teengined.service.segments.markers import Markers
from teengined.service.segments.thinking import ThinkingFold

__all__ = ["DeepseekFold"]

_CALLS, _END_OF_CALLS = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
_CALL, _END_OF_CALL = "<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>"
_SEPARATOR = "<｜tool▁sep｜>"
_FENCE = "```"
_NAME = r"([^\s<>{}`]{1,128})"
_FENCED = re.compile(rf"\s{{0,8}}\w{{0,32}}{_SEPARATOR}{_NAME}\s{{1,8}}```(?:json)?\s{{0,8}}(?=\{{)")
_BARE = re.compile(rf"\s{{0,8}}{_NAME}{_SEPARATOR}\s{{0,8}}(?=\{{)")
_MAX_HEAD_CHARACTERS = 512


class DeepseekFold(ThinkingFold):
    """A call is told when its JSON is complete; the markers after it are taken where they come."""

    kept_special_tokens: ClassVar[frozenset[str]] = frozenset(
        {_CALLS, _END_OF_CALLS, _CALL, _END_OF_CALL, _SEPARATOR, "<think>", "</think>"}
    )
    markers: ClassVar[Markers] = Markers(_CALLS, _CALL, "<think>")
    _name = ""
    _ends: tuple[str, ...] = ()

    def _open(self, marker: str) -> None:
        self._lead, self._state = marker, self._head if marker == _CALL else self._first_call

    def _first_call(self, text: str, start: int, is_last: bool) -> int:
        end = follows(_CALL, text, start, is_last=is_last)
        if end is not None and end > start:
            self._lead, self._state = self._lead + text[start:end], self._head
        elif end is not None:
            self._give_up(self._lead)
        return start if end is None else end

    def _head(self, text: str, start: int, is_last: bool) -> int:
        limit = start + _MAX_HEAD_CHARACTERS
        fenced = _FENCED.match(text, start, limit)
        head = fenced or _BARE.match(text, start, limit)
        if head is not None:
            self._name = head.group(1)
            self._ends = (_FENCE, _END_OF_CALL) if fenced else (_END_OF_CALL,)
            self._begin_json(self._lead + head.group(), JsonScan("{"))
            return head.end()
        if is_last or len(text) >= limit:
            self._give_up(self._lead)
        return start

    def _settle(self, json_text: str) -> None:
        call = call_named(self._name, json_text)
        if call is None:
            self._give_up(self._lead + json_text)
        else:
            self._call(call)
            self._state = self._after_json

    def _after_json(self, text: str, start: int, is_last: bool) -> int:
        """Take what ends a call, as far as it comes, one word after the other."""
        end = follows(self._ends[0], text, start, is_last=is_last)
        if end is None:
            return start
        self._ends = self._ends[1:] if end > start else ()
        if not self._ends:
            self._state = self._after_call
        return end

    def _after_call(self, text: str, start: int, is_last: bool) -> int:
        """Take the end of all calls, or go on: the next call begins like the first one."""
        end = follows(_END_OF_CALLS, text, start, is_last=is_last)
        if end is None:
            return start
        self._end_segment()
        return end
