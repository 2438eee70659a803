"""One request under way: what its sequences say becomes chunks, log-probabilities or a vector, and one end."""

import asyncio
from dataclasses import dataclass, field

from teengined.core.errors import InternalError, TeengineError
from teengined.core.request import FinishReason, TokenLogprobs, Usage
from teengined.protocol.messages import RequestItem
from teengined.scheduler.events import Emit, Tell
from teengined.service.account import Account
from teengined.service.choice import Choice
from teengined.service.chunk_stream import ChunkStream, Piece

__all__ = ["Answer", "Outcome"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a request ended that did not fail."""

    reason: FinishReason
    """Of the first choice; `cancelled` if any choice was."""
    usage: Usage
    prompt_logprobs: tuple[TokenLogprobs, ...] = ()
    """Of consecutive prompt tokens, the first of them at the position that was asked for."""
    vector: bytes | None = None


@dataclass(slots=True, kw_only=True, eq=False)
class Answer:
    """Folds the events of a request's sequences."""

    request_id: str
    model: str
    owner: str
    client_id: str
    priority: int
    max_tokens: int
    choices: tuple[Choice, ...]
    stream: ChunkStream | None
    """None where nothing is drawn."""
    account: Account
    ended: "asyncio.Future[Outcome]"
    """The one end: its outcome, or the error."""
    _logprobs: dict[int, TokenLogprobs] = field(default_factory=dict[int, TokenLogprobs])
    """Of the prompt, by position: a prompt that is computed again after a preemption tells them again."""
    _vector: bytes | None = None

    @property
    def live_sequences(self) -> tuple[int, ...]:
        """Sequences whose end is not known yet."""
        return tuple(choice.sequence_id for choice in self.choices if choice.reason is None)

    @property
    def too_slow(self) -> bool:
        """Whether more of it waits for its reader than may."""
        return self.stream is not None and self.stream.is_over

    def emit(self, choice: Choice, emit: Emit, now_seconds: float) -> None:
        """Take a token of a choice in. Its chunk leaves with `flush`, when it is known whether the choice goes on."""
        self.account.note_token(now_seconds, drafted=emit.drafted)
        delta = choice.add(emit.token, silent=emit.silent)
        logprobs = () if emit.token.logprobs is None else (emit.token.logprobs,)
        piece = Piece(choice=choice.index, said=delta, token_ids=(emit.token.token_id,), logprobs=logprobs)
        self._stream(piece)

    def tell(self, tell: Tell) -> None:
        """Take in what was found out about the prompt."""
        if tell.prompt_logprobs is not None:
            self._logprobs.update(enumerate(tell.prompt_logprobs.logprobs, tell.prompt_logprobs.start_position))
        if tell.vector is not None:
            self._vector = tell.vector.vector

    def end_choice(self, choice: Choice, reason: FinishReason) -> bool:
        """Note the end of a choice; return whether it was the last one."""
        rest = choice.end(reason)
        self._stream(Piece(choice=choice.index, said=rest, reason=choice.reason))
        return not self.live_sequences

    def flush(self) -> None:
        """Send the chunks that may leave."""
        if self.stream is not None:
            self.stream.flush()

    def finish(self, usage: Usage) -> None:
        """End as the choices ended."""
        reasons = [choice.reason or FinishReason.STOP for choice in self.choices]
        reason = FinishReason.CANCELLED if FinishReason.CANCELLED in reasons else reasons[0]
        try:
            logprobs = self._told_in_order()
        except InternalError as error:
            self.fail(error)
            return
        if not self.ended.done():
            outcome = Outcome(reason=reason, usage=usage, prompt_logprobs=logprobs, vector=self._vector)
            self.ended.set_result(outcome)

    def fail(self, error: TeengineError) -> None:
        """End with an error, whatever its other choices do."""
        if self.stream is not None:
            self.stream.drop()
        if not self.ended.done():
            self.ended.set_exception(error)
            self.ended.exception()  # Seen: whoever asked may be gone.

    def describe(self, now_seconds: float) -> RequestItem:
        """Return what `teengine requests` shows."""
        return RequestItem(
            request_id=self.request_id,
            model=self.model,
            owner=self.owner,
            client_id=self.client_id,
            state=self._state,
            priority=self.priority,
            num_choices=len(self.choices),
            num_prompt_tokens=self.account.num_prompt_tokens,
            num_cached_tokens=self.account.num_cached_tokens,
            num_emitted_tokens=self.account.num_tokens,
            max_tokens=self.max_tokens,
            age_seconds=now_seconds - self.account.submitted_seconds,
        )

    @property
    def _state(self) -> str:
        if self.stream is not None and self.stream.waits:
            return "waiting for its reader"
        if self.account.num_tokens:
            return "decode"
        return "prefill" if self.account.started else "queued"

    def _stream(self, piece: Piece) -> None:
        if self.stream is not None and not self.ended.done():
            self.stream.add(piece)

    def _told_in_order(self) -> tuple[TokenLogprobs, ...]:
        positions = sorted(self._logprobs)
        if positions and positions[-1] - positions[0] + 1 != len(positions):
            raise InternalError(f"the log-probabilities of some prompt tokens of request {self.request_id} are missing")
        return tuple(self._logprobs[position] for position in positions)
