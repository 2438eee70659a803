"""Llama 3: `{"name": …, "parameters": …}` as the whole answer, or after `<|python_tag|>`; several with `;` between."""

from typing import ClassVar

from teengined.service.segments.calls import call_in
from teengined.service.segments.fold import SegmentFold
from teengined.service.segments.json_text import JsonScan
from teengined.service.segments.markers import Markers

__all__ = ["LlamaFold"]

_TAG = "<|python_tag|>"
_MARKERS = Markers(_TAG)
# An answer may be JSON of its own. One that begins with another key is no call, and need not wait for its end.
_FIRST_KEYS = frozenset({"name", "type", "parameters", "arguments"})
_SEPARATORS = " \t\r\n;"


class LlamaFold(SegmentFold):
    """A call stands at the beginning of the answer, after the tag, or after another call."""

    kept_special_tokens: ClassVar[frozenset[str]] = frozenset({_TAG})

    def __init__(self, request_id: str) -> None:
        """Begin where a call may stand."""
        super().__init__(request_id)
        self._expect_call("")

    def _outside(self, text: str, start: int, is_last: bool) -> int:
        marker, end = self._up_to(_MARKERS, self._say, text, (start, is_last))
        if marker:
            self._expect_call(marker)
        return end

    def _expect_call(self, lead: str) -> None:
        leading = _SEPARATORS if self._num_calls else " \t\r\n"
        self._begin_json(lead, JsonScan("{", leading, _FIRST_KEYS))

    def _settle(self, json_text: str) -> None:
        call = call_in(json_text.lstrip(_SEPARATORS), needs_arguments=True)
        if call is None:
            self._give_up(self._lead + json_text)
            return
        self._call(call)
        self._end_segment()
        self._expect_call("")
