"""Guesses by a draft model: whom to ask it for, and what becomes of the answers.

While it is asked nothing is composed: whoever would run meanwhile would run in a step of its own, and a step is what
guesses are to save. So it is asked only when no step is under way and no prompt could use the time; an answer that does
not come in time is done without. What it takes counts against the guesses (`speculation.py`).
"""

from collections.abc import Iterator
from dataclasses import dataclass

from teengined.scheduler.drafting import LOOKUP, MAX_INDEXED_TOKENS, num_possible_guesses, open_lookup
from teengined.scheduler.events import DraftModelOffered, DraftWanted, GuessArrived
from teengined.scheduler.sequence import Guess, Sequence
from teengined.scheduler.state import State

__all__ = ["MODEL", "DraftRequests"]

MODEL = "draft"
# Weight of the newest answer in the time that one token takes.
_NEWEST = 0.2


@dataclass(frozen=True, slots=True)
class _Asked:
    sequence: Sequence
    num_tokens: int
    """Known when it was asked."""
    num_wanted: int
    since_seconds: float
    is_first: bool
    """Of its sequence: the draft model has yet to compute the prompt."""


class DraftRequests:
    """What the draft model is asked for one deployment."""

    def __init__(self, state: State) -> None:
        """Ask nothing until there is a draft model."""
        self._state = state
        self._context_tokens = 0
        self._asked: dict[int, _Asked] = {}
        self._seconds_each = 0.0
        self._begun: set[int] = set()
        """Running sequences that it was asked about before."""
        self._outgoing: list[DraftWanted] = []

    def handle(self, event: DraftModelOffered | GuessArrived, now_seconds: float) -> None:
        """Take in what is heard of the draft model."""
        if isinstance(event, GuessArrived):
            self._arrive(event, now_seconds)
            return
        self._context_tokens = event.context_tokens
        if event.context_tokens == 0:
            self.forget()

    def forget(self) -> None:
        """Wait for nothing any more."""
        self._asked.clear()
        self._outgoing.clear()

    def take(self) -> tuple[DraftWanted, ...]:
        """Return what is to be asked, once."""
        outgoing, self._outgoing = tuple(self._outgoing), []
        return outgoing

    def holds(self, now_seconds: float) -> bool:
        """Ask where it is worth it; say whether the next run should wait for answers."""
        state = self._state
        self._asked = {key: asked for key, asked in self._asked.items() if asked.sequence.id in state.running}
        self._begun &= state.running.keys()
        if self._asked or not self._context_tokens:
            return bool(self._asked)
        if state.in_flight or state.prompts or state.waiting or not state.decodes or not state.speculation.may_draft():
            return False
        for sequence in self._candidates():
            self._ask(sequence, now_seconds)
        return bool(self._asked)

    def expire(self, now_seconds: float) -> None:
        """Go on without the answers that take too long."""
        for sequence_id, asked in tuple(self._asked.items()):
            if now_seconds - asked.since_seconds >= self._state.limits.draft_wait_seconds:
                del self._asked[sequence_id]
                self._learn(asked, now_seconds)
                asked.sequence.guess = Guess(MODEL, asked.num_tokens, ())

    def _arrive(self, event: GuessArrived, now_seconds: float) -> None:
        """Take an answer in; one that came too late, or for a sequence that is gone, is dropped."""
        asked = self._asked.get(event.sequence_id)
        if asked is None or asked.num_tokens != event.num_tokens:
            return
        del self._asked[event.sequence_id]
        self._learn(asked, now_seconds)
        token_ids = event.token_ids[: asked.num_wanted]
        # Where there are none it is a guess all the same: it is not asked again for the same step.
        asked.sequence.guess = Guess(MODEL, asked.num_tokens, token_ids)

    def _candidates(self) -> Iterator[Sequence]:
        """Yield the sequences that would decode and have nothing better to go by."""
        state = self._state
        for sequence in state.decodes.values():
            is_fresh = sequence.guess is not None and sequence.guess.num_tokens == sequence.num_tokens
            if is_fresh or not sequence.may_draft or not sequence.emitted:
                continue
            if not (state.speculation.is_on(sequence.request.request_class, LOOKUP) and self._is_alike(sequence)):
                yield sequence

    def _is_alike(self, sequence: Sequence) -> bool:
        """Whether what followed last time can be guessed to follow again."""
        lookup = open_lookup(self._state, sequence)
        if lookup is None:
            return False
        lookup.extend(sequence.tokens, sequence.num_tokens, MAX_INDEXED_TOKENS)
        return bool(lookup.propose(sequence.tokens, sequence.num_tokens, 1))

    def _ask(self, sequence: Sequence, now_seconds: float) -> None:
        state, submitted = self._state, sequence.request.submitted
        num_most = min(num_possible_guesses(state, sequence), self._context_tokens - sequence.num_tokens)
        if num_most < 1:
            return
        request_class = sequence.request.request_class
        num_wanted = min(
            num_most, state.speculation.num_wanted(request_class, MODEL, len(state.decodes), self._seconds_each)
        )
        if num_wanted < 1:
            return
        is_first = sequence.id not in self._begun
        self._begun.add(sequence.id)
        self._asked[sequence.id] = _Asked(sequence, sequence.num_tokens, num_wanted, now_seconds, is_first)
        self._outgoing.append(
            DraftWanted(
                sequence_id=sequence.id,
                owner=submitted.owner,
                salt=submitted.salt,
                sampling=submitted.sampling,
                tokens=sequence.tokens(0, sequence.num_tokens),
                num_wanted=num_wanted,
            )
        )

    def _learn(self, asked: _Asked, now_seconds: float) -> None:
        if asked.is_first:
            return
        seconds_each = max(0.0, now_seconds - asked.since_seconds) / asked.num_wanted
        before = self._seconds_each or seconds_each
        self._seconds_each = before + _NEWEST * (seconds_each - before)
