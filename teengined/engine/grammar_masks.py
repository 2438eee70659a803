"""Which tokens a grammar allows next, found out beside the step's path.

A matcher is a fold over the answer's tokens. As soon as a token is folded, a thread begins with the next mask (the
library lets other threads run), and the draw after the next pass of the model finds it there. After a preemption the
fold is done again over the tokens of the answer so far, which gives the same state.

Where a grammar allows the end the sequence's end-of-sequence and stop tokens are allowed, and nowhere else but where it
names a special token itself. When it is complete they are all that is left; a sequence that has none of them fails
there, since nothing could end its answer.

Shapes: V = vocabulary of the model, which may be wider than the tokenizer's; what the tokenizer lacks is not allowed.
"""

import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from teengined.core.errors import DeadlineExceeded, RequestError
from teengined.engine.grammar import compile_grammar, first_lines, mapped, read_tokenizer
from teengined.protocol.worker_messages import SequenceOpen

if TYPE_CHECKING:
    import llguidance

__all__ = ["GrammarMasks", "GrammarState"]

Allowed = npt.NDArray[np.bool_]

# A mask takes microseconds to some milliseconds; two threads keep up with 64 sequences beside the model's own.
_NUM_THREADS = 2
# The whole step waits, and every sequence in it. A grammar's own limits end it within tens of milliseconds, and the
# tokenizer was read when the stage opened; this is for a machine that is too busy for either.
_WAIT_SECONDS = 5.0
# Tokenizers differ by their end-of-sequence tokens alone, and a model has one set of those, rarely two.
_MAX_TOKENIZERS = 4


class GrammarState:
    """The grammar of one sequence. Its matcher belongs to the one task that computes the next mask."""

    def __init__(self, masks: "GrammarMasks", opened: SequenceOpen) -> None:
        """Begin to compile, to fold the answer so far, and to compute the next mask."""
        self._masks = masks
        self._ends = frozenset(opened.eos_token_ids + opened.sampling.stop_token_ids)
        self._not_allowed: tuple[int, ...] = ()
        self._matcher: llguidance.LLMatcher | None = None
        self._has_ended = False
        self._next = masks.submit(partial(self._start, opened))

    def allowed(self) -> Allowed:
        """Return which tokens may come next (V,), at least one; waits for the mask.

        Raises:
            RequestError: the grammar is invalid or too complex, or nothing may come next.
            PackageError: the tokenizer cannot be read.
            DeadlineExceeded: it took so long that the other sequences should not wait for it.
        """
        try:
            return self._next.result(_WAIT_SECONDS)
        except TimeoutError as error:
            raise DeadlineExceeded(f"the grammar took more than {_WAIT_SECONDS:g} s for one token") from error

    def fold(self, token_id: int) -> None:
        """Take the token that was drawn from the mask, and begin with the mask of the one after it."""
        self._next = self._masks.submit(partial(self._advance, (token_id,)))

    def close(self) -> None:
        """Let go of a mask that nobody wants any more."""
        self._next.cancel()

    def _start(self, opened: SequenceOpen) -> Allowed:
        assert opened.sampling.grammar is not None
        tokenizer = self._masks.tokenizer(opened.eos_token_ids or opened.sampling.stop_token_ids)
        known = [token_id for token_id in self._ends if token_id < tokenizer.vocab_size]
        special = frozenset(token_id for token_id in known if tokenizer.is_special_token(token_id))
        self._not_allowed = self._masks.within({*tokenizer.eos_tokens, *self._ends} - special)
        self._matcher = compile_grammar(tokenizer, opened.sampling.grammar)
        return self._advance(opened.history[opened.num_prompt_tokens :])

    def _advance(self, token_ids: Sequence[int]) -> Allowed:
        assert self._matcher is not None, "a token was folded into a grammar that did not compile"
        for token_id in token_ids:
            self._has_ended = self._has_ended or (token_id in self._ends and self._matcher.is_accepting())
            if not self._has_ended:
                self._matcher.consume_token(token_id)
        return self._mask(self._matcher)

    def _mask(self, matcher: "llguidance.LLMatcher") -> Allowed:
        may_end = self._has_ended or matcher.is_accepting()
        allowed_V = self._masks.unpacked(b"" if self._has_ended else matcher.compute_bitmask())
        if matcher.is_error():
            raise RequestError(f"the grammar cannot be followed: {first_lines(matcher.get_error())}")
        allowed_V[list(self._not_allowed)] = False
        if may_end:
            allowed_V[list(self._masks.within(self._ends))] = True
        if not allowed_V.any() and may_end:
            raise RequestError(
                "the grammar is complete, and the model has no token to end the answer with",
                hint="give stop_token_ids",
            )
        if not allowed_V.any():
            raise RequestError("no token of the model's vocabulary can follow in the grammar")
        return allowed_V


class GrammarMasks:
    """What the grammars of a stage share: the tokenizer and a few threads."""

    def __init__(self, *, vocab_size: int, package_dir: Path, num_threads: int = _NUM_THREADS) -> None:
        """Remember where the tokenizer is; it is read at `prepare`, or with the first grammar."""
        self._vocab_size = vocab_size
        self._package_dir = package_dir
        self._pool = ThreadPoolExecutor(num_threads, thread_name_prefix="grammar")
        self._lock = threading.Lock()
        self._tokenizers: dict[tuple[int, ...], llguidance.LLTokenizer] = {}

    def prepare(self, end_ids: tuple[int, ...]) -> None:
        """Begin to read the tokenizer. What is wrong with it is told to the sequences that need it."""
        self._pool.submit(self.tokenizer, end_ids)

    def open(self, opened: SequenceOpen) -> GrammarState:
        """Return the state of a sequence that has a grammar."""
        return GrammarState(self, opened)

    def shutdown(self) -> None:
        """Drop what waits and end the threads, each after the mask that it is at."""
        self._pool.shutdown(cancel_futures=True)

    def submit(self, task: Callable[[], Allowed]) -> "Future[Allowed]":
        """Run a task on one of the threads."""
        return self._pool.submit(_guarded, task)

    def tokenizer(self, end_ids: tuple[int, ...]) -> "llguidance.LLTokenizer":
        """Return the tokenizer that knows these as ends of a text. Read once."""
        with self._lock:
            if end_ids not in self._tokenizers:
                if len(self._tokenizers) == _MAX_TOKENIZERS:
                    self._tokenizers.pop(next(iter(self._tokenizers)))
                self._tokenizers[end_ids] = read_tokenizer(self._package_dir, end_ids)
            return self._tokenizers[end_ids]

    def within(self, token_ids: Iterable[int]) -> tuple[int, ...]:
        """Return those that the model has."""
        return tuple(token_id for token_id in token_ids if token_id < self._vocab_size)

    def unpacked(self, bitmask: bytes) -> Allowed:
        """Return a mask of one bit a token as (V,); tokens that it does not reach are not allowed."""
        bits = np.unpackbits(np.frombuffer(bitmask, np.uint8), bitorder="little", count=self._vocab_size)
        return bits.view(np.bool_)


def _guarded(task: Callable[[], Allowed]) -> Allowed:
    try:
        return task()
    except BaseException as error:
        raise mapped(error, "the grammar") from error
