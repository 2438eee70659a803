"""The requests under way, by the id that the daemon gave them, and the names that their callers gave them."""

import asyncio
import contextlib
import time
from collections.abc import Generator
from dataclasses import dataclass, field

from teengined.core.errors import Conflict, SlowReader, UnknownRequest
from teengined.core.request import FinishReason
from teengined.service.answer import Answer, Outcome
from teengined.service.deployment import LoadedModel

__all__ = ["LiveRequest", "RequestTable"]


@dataclass(slots=True, kw_only=True, eq=False)
class LiveRequest:
    """An answer, the model that gives it, and the connection that it goes to."""

    model: LoadedModel
    answer: Answer
    client: bytes
    granted: asyncio.Event = field(default_factory=asyncio.Event)
    """Set by each `Grant`."""

    cancelled: bool = False

    def cancel(self) -> None:
        """Stop the request, also one that is over but for its reader."""
        self.cancelled = True
        self.model.cancel(self.answer)
        self.granted.set()

    async def outcome(self, until_seconds: float) -> Outcome:
        """Return how the request ended, when nothing of it waits for its reader any more.

        Raises:
            TeengineError: it failed.
            SlowReader: it was not read before `until_seconds` (monotonic).
        """
        outcome = await asyncio.shield(self.answer.ended)
        if not self.cancelled and outcome.reason is not FinishReason.CANCELLED:
            await self._wait_until_read(until_seconds)
        return outcome

    async def _wait_until_read(self, until_seconds: float) -> None:
        stream = self.answer.stream
        try:
            async with asyncio.timeout(until_seconds - time.monotonic()):
                while stream is not None and stream.waits and not self.cancelled:
                    self.granted.clear()
                    await self.granted.wait()
        except TimeoutError as error:
            raise SlowReader(
                "the answer was complete, and its reader did not take it in time", hint="read it while it arrives"
            ) from error


class RequestTable:
    """All requests of one daemon."""

    def __init__(self) -> None:
        """Start empty."""
        self._live: dict[str, LiveRequest] = {}
        self._names: set[tuple[str, str]] = set()

    @contextlib.contextmanager
    def name(self, owner: str, client_id: str) -> Generator[None]:
        """Keep a name of an owner's choosing for as long as its request is under way.

        Raises:
            Conflict: one with this name is.
        """
        key = (owner, client_id)
        if key in self._names:
            raise Conflict(
                f"a request with client_id {client_id!r:.60} is under way",
                hint="choose another name, or cancel that one",
            )
        if client_id:
            self._names.add(key)
        try:
            yield
        finally:
            self._names.discard(key)

    @contextlib.contextmanager
    def under_way(self, model: LoadedModel, answer: Answer, client: bytes) -> Generator[LiveRequest]:
        """List an answer until its caller is done with it; one that is not over then is cancelled."""
        live = self._live[answer.request_id] = LiveRequest(model=model, answer=answer, client=client)
        try:
            yield live
        finally:
            del self._live[answer.request_id]
            model.release(answer)

    def find(self, request_id: str) -> LiveRequest:
        """Return a request.

        Raises:
            UnknownRequest: none with that id is under way.
        """
        if live := self._live.get(request_id):
            return live
        raise UnknownRequest(f"no request {request_id:.80} is under way", hint="it may have finished")

    def grant(self, client: bytes, request_id: str, num_chunks: int) -> None:
        """Let chunks go to a reader; a word about another's request, or one that is over, changes nothing."""
        live = self._live.get(request_id)
        if live is not None and live.client == client:
            live.model.grant(live.answer, num_chunks)
            live.granted.set()
