"""Reasoning between two markers, which comes before everything else that a model says."""

from typing import ClassVar

from teengined.service.segments.fold import SegmentFold
from teengined.service.segments.markers import Markers

__all__ = ["ThinkingFold"]


class ThinkingFold(SegmentFold):
    """Knows reasoning; each format adds its other segments in `markers` and `_open`.

    Reasoning begins at the start of an answer or right after another segment. Elsewhere its marker is a word that the
    model writes about, and stays in the text.
    """

    think: ClassVar[str] = "<think>"
    markers: ClassVar[Markers]
    """Of everything that begins outside of segments, `think` included."""
    _end_of_thinking: ClassVar[Markers] = Markers("</think>")

    def __init__(self, request_id: str, prompt_tail: str) -> None:
        """Begin inside reasoning where the prompt ends with its marker."""
        super().__init__(request_id)
        if prompt_tail.rstrip().endswith(self.think):
            self._begin_thinking()

    def _outside(self, text: str, start: int, is_last: bool) -> int:
        marker, end = self._up_to(self.markers, self._say, text, (start, is_last))
        if marker == self.think and not self._at_edge:
            self._say(marker)
        elif marker == self.think:
            self._begin_thinking()
        elif marker:
            self._open(marker)
        return end

    def _open(self, marker: str) -> None:
        """Set the state inside the segment that `marker` begins."""
        raise AssertionError("a fold says what its markers begin")

    def _begin_thinking(self) -> None:
        self._state, self._drops_breaks = self._thinking, True

    def _thinking(self, text: str, start: int, is_last: bool) -> int:
        marker, end = self._up_to(self._end_of_thinking, self._think, text, (start, is_last))
        if marker:
            self._end_segment()
        return end
