"""One answer under way: tokens in, numbered chunks out, and the account of what it used."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from teengined.core.errors import TeengineError
from teengined.core.request import FinishReason, Usage
from teengined.protocol.messages import Finished, TokenChunk
from teengined.service.detokenizer import Detokenizer

__all__ = ["Answer"]


@dataclass(slots=True, kw_only=True)
class Answer:
    """Folds the events of one sequence. Times are monotonic seconds, passed in."""

    request_id: str
    sequence_id: int
    num_prompt_tokens: int
    detokenizer: Detokenizer
    deliver: Callable[[TokenChunk], None]
    """Hands a chunk to the client without waiting."""
    ended: "asyncio.Future[Finished]"
    """The one end: `Finished`, or the error."""
    started_seconds: float | None = None
    """When its first part went to the stages."""
    streamed_bytes: float = 0.0
    decode_streamed_bytes: float = 0.0
    _num_chunks: int = 0
    _num_tokens: int = 0
    _first_token_seconds: float = 0.0
    _last_token_seconds: float = 0.0

    @property
    def num_tokens(self) -> int:
        """Tokens delivered so far."""
        return self._num_tokens

    def begin(self, now_seconds: float) -> None:
        """Note the start of its prefill, the first time."""
        if self.started_seconds is None:
            self.started_seconds = now_seconds

    def note_streamed(self, num_bytes: float) -> None:
        """Account for its share of the weights that a step moved."""
        self.streamed_bytes += num_bytes
        if self._num_tokens:
            self.decode_streamed_bytes += num_bytes

    def emit(self, token_id: int, now_seconds: float, *, silent: bool) -> None:
        """Deliver a token; a silent one (end of sequence) is delivered without text."""
        self._last_token_seconds = now_seconds
        if self._num_tokens == 0:
            self._first_token_seconds = now_seconds
        self._num_tokens += 1
        text = "" if silent else self.detokenizer.add(token_id)
        self._send((token_id,), text)

    def finish(self, reason: FinishReason, predicted_seconds: float, bytes_per_second: float) -> None:
        """Deliver the text that still waited for the rest of a code point, then end.

        `predicted_seconds` is the planned compute of one token, `bytes_per_second` the measured disk: the larger of the
        two times is the bound that the answer's speed is held against.
        """
        if rest := self.detokenizer.flush():
            self._send((), rest)
        started = self.started_seconds if self.started_seconds is not None else self._first_token_seconds
        decode_steps = max(1, self._num_tokens - 1)
        streamed_seconds = self.decode_streamed_bytes / decode_steps / bytes_per_second
        usage = Usage(
            prompt_tokens=self.num_prompt_tokens,
            completion_tokens=self._num_tokens,
            prefill_seconds=max(0.0, self._first_token_seconds - started),
            decode_seconds=max(0.0, self._last_token_seconds - self._first_token_seconds),
            streamed_bytes=int(self.streamed_bytes),
            bound_seconds_per_token=max(predicted_seconds, streamed_seconds),
        )
        self._end(Finished(request_id=self.request_id, sequence=self._num_chunks, reason=reason, usage=usage))

    def fail(self, error: TeengineError) -> None:
        """End with an error."""
        if not self.ended.done():
            self.ended.set_exception(error)
            self.ended.exception()  # Seen: whoever asked may be gone.

    def _send(self, token_ids: tuple[int, ...], text: str) -> None:
        chunk = TokenChunk(request_id=self.request_id, sequence=self._num_chunks, token_ids=token_ids, text=text)
        self._num_chunks += 1
        self.deliver(chunk)

    def _end(self, finished: Finished) -> None:
        if not self.ended.done():
            self.ended.set_result(finished)
