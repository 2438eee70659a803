"""Harmony, as gpt-oss writes it: messages on channels.

`<|channel|>analysis<|message|>…<|end|>` is reasoning, `final` and `commentary` are text, and a message with a recipient
(`to=functions.NAME`) is a call, whose arguments are told as they come.
"""

import re
from collections.abc import Callable
from typing import ClassVar

from teengined.service.segments.fold import SegmentFold
from teengined.service.segments.markers import Markers

__all__ = ["HarmonyFold"]

_START, _CHANNEL, _MESSAGE, _CONSTRAIN = "<|start|>", "<|channel|>", "<|message|>", "<|constrain|>"
_ENDS = ("<|end|>", "<|return|>", "<|call|>")
_OPENINGS = Markers(_START, _CHANNEL)
_CLOSINGS = Markers(_START, _CHANNEL, *_ENDS)
_HEAD = re.compile(r"[^<]*(?:<\|(?:channel|constrain)\|>[^<]*)*<\|message\|>")
_MAX_HEAD_CHARACTERS = 512
_TO = r"(?:\s{1,4}to=([^\s<]+))?"
# A role, a channel, a recipient in either place, and the type of the content. Anything else is no header. White space
# is counted, or a header full of it could be divided in more ways than anyone can try.
_HEADER = re.compile(
    rf"(?:<\|start\|>\s{{0,4}}[\w.\-]*)?{_TO}"
    rf"(?:<\|channel\|>\s{{0,4}}(\w+){_TO}(?:\s{{1,4}}\w{{1,32}})?)?"
    r"\s{0,4}(?:<\|constrain\|>\s{0,4}\w{1,32})?\s{0,4}<\|message\|>"
)
_OPEN_PROMPT = re.compile(r"<\|start\|>assistant(?:<\|channel\|>[^<]*<\|message\|>)?\s*\Z")
_FUNCTIONS = "functions."
# A message to the model itself: what it imagines that a tool answered.
_OURSELVES = "assistant"


class HarmonyFold(SegmentFold):
    """Every word belongs to a message; what stands between two is text, because it should not be there."""

    kept_special_tokens: ClassVar[frozenset[str]] = frozenset({_START, _CHANNEL, _MESSAGE, _CONSTRAIN, *_ENDS})

    def __init__(self, request_id: str, prompt_tail: str) -> None:
        """Begin in the header, or in the message, that the prompt left open."""
        super().__init__(request_id)
        self._body: Callable[[str], None] = self._say
        opened = _OPEN_PROMPT.search(prompt_tail)
        header = _HEADER.fullmatch(opened.group().strip()) if opened else None
        if header:
            self._begin_message(header)
        elif opened:
            self._state = self._first_header

    def _outside(self, text: str, start: int, is_last: bool) -> int:
        marker, end = self._up_to(_OPENINGS, self._say, text, (start, is_last))
        if marker:
            self._lead, self._state = marker, self._header
        return end

    def _first_header(self, text: str, start: int, is_last: bool) -> int:
        """Tell a header from an answer without any: it begins with a channel, or with a space and a recipient."""
        first = text[start : start + 1]
        if first or is_last:
            self._state = self._header if first in ("<", " ") else self._outside
        return start

    def _header(self, text: str, start: int, is_last: bool) -> int:
        limit = start + _MAX_HEAD_CHARACTERS
        head = _HEAD.match(text, start, limit)
        header = _HEADER.fullmatch(self._lead + head.group()) if head else None
        if head and header:
            self._begin_message(header)
            return head.end()
        if head or is_last or len(text) >= limit:
            self._give_up(self._lead)
        return start

    def _begin_message(self, header: re.Match[str]) -> None:
        self._lead, self._state = "", self._message
        before, channel, after = header.groups()
        recipient = after or before
        if recipient and recipient != _OURSELVES:
            self._begin_call(recipient.removeprefix(_FUNCTIONS))
            self._body = self._add_arguments
        else:
            self._body = self._think if channel == "analysis" else self._say

    def _message(self, text: str, start: int, is_last: bool) -> int:
        marker, end = self._up_to(_CLOSINGS, self._body, text, (start, is_last))
        if marker in _ENDS:
            self._state = self._outside
        elif marker:
            self._lead, self._state = marker, self._header
        return end
