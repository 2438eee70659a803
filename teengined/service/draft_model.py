"""A small model that guesses for a large one: another deployment of this daemon, asked as any client would be.

It draws with the seed of the request it guesses for. A draw depends on seed and position alone, so where both models
think alike they draw alike, also above temperature 0.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from teengined.core.errors import RequestError, TeengineError, UnknownModel, WorkerLost
from teengined.protocol.messages import TokenChunk
from teengined.scheduler.events import DraftModelOffered, DraftWanted, GuessArrived
from teengined.service.answer import Outcome
from teengined.service.chunk_stream import ChunkStream
from teengined.service.submission import Submission

if TYPE_CHECKING:
    from teengined.service.deployment import LoadedModel

__all__ = ["DraftModel", "check_draft_model"]

logger = logging.getLogger(__name__)

OnEvent = Callable[[DraftModelOffered | GuessArrived], None]
# Of one guess: it never waits for a reader.
_MAX_BUFFER_BYTES = 1 << 20


def check_draft_model(draft: "LoadedModel", target: str, vocabulary: dict[str, int]) -> None:
    """Refuse a model whose tokens mean something else than those of `vocabulary`. Slow: it compares every token.

    Raises:
        RequestError: the vocabularies differ.
    """
    theirs = draft.text.vocabulary()
    if theirs == vocabulary:
        return
    text = min((text for text, _ in theirs.items() ^ vocabulary.items()), default="")
    raise RequestError(
        f"{draft.name} cannot draft for {target}: it has a vocabulary of {len(theirs)} tokens, {target} one of"
        f" {len(vocabulary)}, and they differ in {text!r:.60}",
        hint="name a smaller model of the same family",
    )


@dataclass(slots=True, kw_only=True, eq=False)
class DraftModel:
    """Asks one deployment for guesses. What goes wrong there costs the guesses, and nothing else."""

    name: str
    vocab_size: int
    """Of the model that is guessed for: an id beyond it is no guess."""
    find: Callable[[str], "LoadedModel"]
    """Returns the loaded model of a name, or raises `UnknownModel`."""
    max_seconds: float
    """Longest that a guess is waited for."""
    on_event: OnEvent | None = None
    _num_asked: int = 0

    def offer(self) -> DraftModelOffered:
        """Return what tells the scheduler whether there is such a model now."""
        try:
            return DraftModelOffered(context_tokens=self.find(self.name).stages.plan.context_tokens)
        except UnknownModel:
            return DraftModelOffered(context_tokens=0)

    def ask(self, wanted: DraftWanted) -> None:
        """Ask for a guess; it is told as an event, later and in any case, or that there is no draft model any more."""
        token_ids: list[int] = []
        self._num_asked += 1

        def hear(chunk: TokenChunk) -> None:
            token_ids.extend(chunk.token_ids)

        stream = ChunkStream(
            request_id=f"draft-{self._num_asked}", send=hear, credits=None, max_buffer_bytes=_MAX_BUFFER_BYTES
        )
        try:
            model = self.find(self.name)
            answer = model.submit(_submission(wanted, stream, time.monotonic() + self.max_seconds))
        except (UnknownModel, WorkerLost) as error:
            logger.warning("no more guesses by %s: %s", self.name, error.message)
            self._tell_soon(DraftModelOffered(context_tokens=0))
            return
        except TeengineError as error:
            logger.debug("no guess by %s: %s", self.name, error.message)
            self._tell_soon(self._guess(wanted, ()))
            return

        def finish(_ended: "asyncio.Future[Outcome]") -> None:
            model.release(answer)
            self._tell(self._guess(wanted, token_ids))

        answer.ended.add_done_callback(finish)

    def _guess(self, wanted: DraftWanted, token_ids: "list[int] | tuple[int, ...]") -> GuessArrived:
        known = [token_id for token_id in token_ids if token_id < self.vocab_size]
        is_whole = len(known) == len(token_ids)
        return GuessArrived(
            sequence_id=wanted.sequence_id, num_tokens=len(wanted.tokens), token_ids=tuple(known) if is_whole else ()
        )

    def _tell_soon(self, event: DraftModelOffered | GuessArrived) -> None:
        """Tell it when whoever asked is done with asking."""
        asyncio.get_running_loop().call_soon(self._tell, event)

    def _tell(self, event: DraftModelOffered | GuessArrived) -> None:
        if self.on_event is not None:
            self.on_event(event)


def _submission(wanted: DraftWanted, stream: ChunkStream, deadline_seconds: float) -> Submission:
    sampling = replace(
        wanted.sampling,
        max_tokens=wanted.num_wanted,
        min_tokens=0,
        stop=(),
        num_choices=1,
        logprobs=None,
        prompt_logprobs=None,
        grammar=None,
    )
    return Submission(
        request_id=stream.request_id,
        owner=wanted.owner,
        prompt=wanted.tokens,
        sampling=sampling,
        deadline_seconds=deadline_seconds,
        salt=wanted.salt,
        stream=stream,
        speculates=False,
    )
