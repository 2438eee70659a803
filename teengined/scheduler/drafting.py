"""Guesses for the sequences of one run: as many as are worth it, and only from room that nobody else needs."""

from teengined.scheduler.lookup import LookupIndex
from teengined.scheduler.sequence import Sequence
from teengined.scheduler.state import State

__all__ = ["LOOKUP", "Drafting"]

LOOKUP = "lookup"
# Tokens taken into indexes while one run is put together: a long prompt's take some runs, and no run waits for them.
_MAX_INDEXED_TOKENS = 2048


class Drafting:
    """Proposes tokens while one run is put together, within the rows that are left for them."""

    def __init__(self, state: State, num_decoding: int, num_rows: int) -> None:
        """`num_decoding` sequences take part in the run; `num_rows` rows are left beside them."""
        self._state = state
        self._num_decoding = num_decoding
        self._num_rows_left = num_rows
        self._num_to_index = _MAX_INDEXED_TOKENS
        self._is_allowed = num_rows > 0 and state.speculation.may_draft()

    def propose(self, sequence: Sequence) -> tuple[int, ...]:
        """Return the tokens that are guessed to follow an available sequence's; most often none."""
        if not self._is_allowed or not sequence.may_draft or not sequence.emitted:
            return ()
        num_most = min(self._num_rows_left, self._num_possible(sequence))
        guess = self._look_up(sequence, num_most) if num_most > 0 else ()
        self._num_rows_left -= len(guess)
        return guess

    def _num_possible(self, sequence: Sequence) -> int:
        """Return how many guesses could become part of the answer and have blocks without anyone giving way."""
        state, table = self._state, sequence.table
        num_left = sequence.request.submitted.sampling.max_tokens - len(sequence.emitted) - 1
        # The token that runs anyway, and what the others may need to grow, comes first.
        num_spare = max(0, state.cache.pool.num_available - len(state.running) - 1)
        num_fitting = table.num_fitting(num_spare) - sequence.num_tokens
        return min(state.speculation.max_drafted, num_left, num_fitting)

    def _look_up(self, sequence: Sequence, num_most: int) -> tuple[int, ...]:
        num_tokens = sequence.num_tokens
        if sequence.lookup is None:
            num_at_end = sequence.request.num_prompt_tokens + sequence.request.submitted.sampling.max_tokens
            sequence.lookup = LookupIndex(num_at_end, self._state.limits.lookup_tokens)
        self._num_to_index -= sequence.lookup.extend(sequence.tokens, num_tokens, self._num_to_index)
        guess = sequence.lookup.propose(sequence.tokens, num_tokens, num_most)
        if not guess:
            return ()
        request_class = sequence.request.request_class
        num_wanted = self._state.speculation.num_wanted(request_class, LOOKUP, self._num_decoding)
        return guess[:num_wanted]
