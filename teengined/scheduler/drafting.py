"""Guesses for the sequences of one run: as many as are worth it, and only from room that nobody else needs."""

from teengined.scheduler.lookup import LookupIndex
from teengined.scheduler.sequence import Guess, Sequence
from teengined.scheduler.state import State

__all__ = ["LOOKUP", "MAX_INDEXED_TOKENS", "Drafting", "num_possible_guesses", "open_lookup"]

LOOKUP = "lookup"
# Tokens taken into indexes while one run is put together: a long prompt's take some runs, and no run waits for them.
MAX_INDEXED_TOKENS = 2048


def num_possible_guesses(state: State, sequence: Sequence) -> int:
    """Return how many guesses could become part of the answer and have blocks without anyone giving way."""
    num_left = sequence.request.submitted.sampling.max_tokens - len(sequence.emitted) - 1
    # The token that runs anyway, and what the others may need to grow, comes first.
    num_spare = max(0, state.cache.pool.num_available - len(state.running) - 1)
    num_fitting = sequence.table.num_fitting(num_spare) - sequence.num_tokens
    return min(state.speculation.max_drafted, num_left, num_fitting)


def open_lookup(state: State, sequence: Sequence) -> LookupIndex | None:
    """Return a sequence's index, made at the first call; None where nothing is looked up."""
    if sequence.lookup is None and state.limits.lookup_tokens:
        num_at_end = sequence.request.num_prompt_tokens + sequence.request.submitted.sampling.max_tokens
        sequence.lookup = LookupIndex(num_at_end, state.limits.lookup_tokens)
    return sequence.lookup


class Drafting:
    """Proposes tokens while one run is put together, within the rows that are left for them."""

    def __init__(self, state: State, num_decoding: int, num_rows: int) -> None:
        """`num_decoding` sequences take part in the run; `num_rows` rows are left beside them."""
        self._state = state
        self._num_decoding = num_decoding
        self._num_rows_left = num_rows
        self._num_to_index = MAX_INDEXED_TOKENS
        self._is_allowed = num_rows > 0 and state.speculation.may_draft()

    def propose(self, sequence: Sequence) -> Guess | None:
        """Return what is guessed to follow an available sequence's tokens; most often nothing."""
        given, sequence.guess = sequence.guess, None
        if not self._is_allowed or not sequence.may_draft or not sequence.emitted:
            return None
        num_most = min(self._num_rows_left, num_possible_guesses(self._state, sequence))
        if num_most < 1:
            return None
        num_tokens = sequence.num_tokens
        if given is not None and given.num_tokens == num_tokens:
            guess = Guess(given.source, num_tokens, given.token_ids[:num_most])
        else:
            guess = Guess(LOOKUP, num_tokens, self._look_up(sequence, num_most))
        self._num_rows_left -= len(guess.token_ids)
        return guess if guess.token_ids else None

    def _look_up(self, sequence: Sequence, num_most: int) -> tuple[int, ...]:
        lookup, num_tokens = open_lookup(self._state, sequence), sequence.num_tokens
        if lookup is None:
            return ()
        self._num_to_index -= lookup.extend(sequence.tokens, num_tokens, self._num_to_index)
        token_ids = lookup.propose(sequence.tokens, num_tokens, num_most)
        if not token_ids:
            return ()
        request_class = sequence.request.request_class
        return token_ids[: self._state.speculation.num_wanted(request_class, LOOKUP, self._num_decoding)]
