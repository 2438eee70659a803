"""Hermes and Qwen: `<think>…</think>` and `<tool_call>{"name": …, "arguments": …}</tool_call>`."""

from typing import ClassVar

from teengined.service.segments.calls import call_in
from teengined.service.segments.json_text import JsonScan
from teengined.service.segments.layout import follows
from teengined.service.segments.markers import Markers
from teengined.service.segments.thinking import ThinkingFold

__all__ = ["HermesFold"]

_OPEN, _CLOSE = "<tool_call>", "</tool_call>"


class HermesFold(ThinkingFold):
    """Each call has its own pair of markers."""

    kept_special_tokens: ClassVar[frozenset[str]] = frozenset({_OPEN, _CLOSE, "<think>", "</think>"})
    markers: ClassVar[Markers] = Markers(_OPEN, "<think>")

    def _open(self, marker: str) -> None:
        self._begin_json(marker, JsonScan("{"))

    def _settle(self, json_text: str) -> None:
        call = call_in(json_text)
        if call is None:
            self._give_up(self._lead + json_text)
        else:
            self._call(call)
            self._state = self._after_call

    def _after_call(self, text: str, start: int, is_last: bool) -> int:
        """Take the closing marker. A call is one without it, too."""
        end = follows(_CLOSE, text, start, is_last=is_last)
        if end is None:
            return start
        self._end_segment()
        return end
