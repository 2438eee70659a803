"""What goes into one run: a token for each sequence that decodes, then prompts in the order of the policy."""

from teengined.protocol.worker_messages import BlockCopy, SequenceOpen, SequencePart
from teengined.scheduler.beginnings import choose_beginning, may_begin
from teengined.scheduler.drafting import Drafting
from teengined.scheduler.events import Run
from teengined.scheduler.ordering import Ordering
from teengined.scheduler.preemption import Preemption
from teengined.scheduler.restoring import begin_fetch, brings_back, checkpoint, is_fetching, take_transfers
from teengined.scheduler.sequence import Guess, Sequence
from teengined.scheduler.state import Flight, State
from teengined.scheduler.step_costs import StepLoad, num_attended

__all__ = ["Composition"]

# Where sequences decode that could take every row of the head, one row in so many is for prompts that are told of.
_TOLD_SHARE = 8


class Composition:
    """Puts one run together, and counts its parts as in flight while it does."""

    def __init__(self, state: State, ordering: Ordering, now_seconds: float) -> None:
        """Begin with an empty run."""
        self._state = state
        self._ordering = ordering
        self._now_seconds = now_seconds
        self._preemption = Preemption(state, ordering, now_seconds)
        self._num_tokens_left = state.limits.max_step_tokens
        self._num_rows_left = state.limits.max_logit_rows
        self._num_restores_left = state.limits.spool.max_restored_blocks
        self._parts: list[SequencePart] = []
        self._opened: list[SequenceOpen] = []
        self._copies: list[BlockCopy] = []
        self._flights: list[Flight] = []

    def compose(self, step: int) -> Run | None:
        """Return the run of this number, or None where no sequence can go on now.

        Raises:
            PluginError: the policy broke its contract; nothing can be composed any more.
        """
        self._add_decodes(self._num_kept_rows(step))
        num_decoding = len(self._parts)
        self._num_tokens_left = min(self._num_tokens_left, self._num_paced_tokens(num_decoding))
        self._add_prompts()
        if not self._parts:  # The rows kept for prompts found no use: those have to wait for blocks.
            self._add_decodes(0)
            num_decoding = len(self._parts)
        if not self._parts and not brings_back(self._state):
            return None
        running = (flight.sequence for flight in self._flights)
        checkpoint(self._state, running, self._num_restores_left, self._now_seconds)
        transfers = take_transfers(self._state, step)
        self._state.cache.settle()
        self._state.in_flight[step] = tuple(self._flights)
        self._state.loads[step] = _load(self._parts[:num_decoding], self._parts[num_decoding:])
        closed = tuple(self._state.closed)
        self._state.closed.clear()
        return Run(
            step=step,
            parts=tuple(self._parts),
            closed=closed,
            opened=tuple(self._opened),
            copies=tuple(self._copies),
            spooled=transfers.spooled,
            restored=transfers.restored,
            moves=transfers.moves,
        )

    def _num_paced_tokens(self, num_decoding: int) -> int:
        num_prompts = len(self._state.prompts) + len(self._state.waiting)
        return self._state.pacer.num_prompt_tokens(num_decoding, num_prompts)

    def _add_decodes(self, num_kept_rows: int) -> None:
        """Add sequences with one token to run. A long prompt never stops an answer that is being read."""
        state = self._state
        if not state.decodes:
            return
        num_rows = min(self._num_tokens_left, self._num_rows_left - num_kept_rows)
        num_most = min(num_rows, self._decode_share())
        candidates = list(state.decodes.values())
        drafting = self._open_drafting(min(num_most, len(candidates)), num_rows)
        if self._lacks_blocks(candidates):
            candidates = self._ordering.sort(candidates)  # Who is first gets the blocks.
        for sequence in candidates:
            if len(self._parts) == num_most:
                break
            if sequence.is_available:  # Not preempted meanwhile.
                self._add(sequence, 1, drafting)

    def _open_drafting(self, num_decoding: int, num_rows: int) -> Drafting:
        """Leave to guesses the rows that decoding leaves; half of them where prompts want some too."""
        num_left = max(0, num_rows - num_decoding)
        has_prompts = bool(self._state.prompts or self._state.waiting)
        return Drafting(self._state, num_decoding, num_left // 2 if has_prompts else num_left)

    def _num_kept_rows(self, step: int) -> int:
        """Return how many rows are kept from those who decode, for prompts that run and of which something is told.

        Of fewer rows than `_TOLD_SHARE`, one is kept now and then.
        """
        num_rows, prompts = self._num_rows_left, self._state.prompts.values()
        if any(item.request.told_until < item.request.num_prompt_tokens for item in prompts):
            return num_rows * (step + 1) // _TOLD_SHARE - num_rows * step // _TOLD_SHARE
        return 0

    def _decode_share(self) -> int:
        """Return how many decoding sequences one run takes, so that all runs in flight are about equal."""
        state, num_runs = self._state, self._state.limits.num_microbatches
        if num_runs == 1:
            return len(state.decodes)
        return -(-sum(sequence.num_remaining <= 1 for sequence in state.running.values()) // num_runs)

    def _lacks_blocks(self, candidates: list[Sequence]) -> bool:
        cache = self._state.cache
        if cache.pool.num_available >= len(candidates):
            return False
        needed = sum(cache.num_needed(item.table, item.num_computed, item.num_computed + 1) for item in candidates)
        return needed > cache.pool.num_available

    def _add_prompts(self) -> None:
        """Add chunks of prompts that run already, and begin those that wait, as far as room allows."""
        state = self._state
        can_begin = may_begin(state)
        candidates = [*state.prompts.values(), *(state.waiting.values() if can_begin else ())]
        if not candidates or self._num_tokens_left == 0:
            return
        num_tokens = min(self._num_tokens_left, self._prompt_share(candidates))
        num_after = self._num_tokens_left - num_tokens
        for sequence in self._ordering.sort(candidates):
            num_most = self._num_tokens_left - num_after
            if num_most == 0:
                break
            if sequence.is_running:
                if sequence.is_available:
                    self._add(sequence, num_most)
            elif can_begin and not self._begin(sequence, num_most):
                can_begin = False

    def _prompt_share(self, candidates: list[Sequence]) -> int:
        """Return how many prompt tokens one run takes, so that several prompts spread over the runs in flight."""
        num_runs = min(self._state.limits.num_microbatches, len(candidates))
        if num_runs == 1:
            return self._num_tokens_left
        num_tokens = sum(item.num_remaining if item.is_running else item.num_queued for item in candidates)
        return max(1, -(-num_tokens // num_runs))

    def _begin(self, sequence: Sequence, num_most: int) -> bool:
        """Let a waiting sequence run if it can; say whether those after it may be looked at."""
        state = self._state
        if len(state.running) >= state.limits.max_running:
            return False
        if sequence.request.running and sequence.request.source() is None:
            return True  # Another choice computes the prompt; this one will begin with it.
        if is_fetching(state, sequence, self._now_seconds):
            return True
        beginning = choose_beginning(state, sequence)
        if beginning is None:
            state.may_start = False
            return False
        if begin_fetch(state, sequence, beginning, self._now_seconds):
            return True
        state.start(sequence, beginning, self._now_seconds)
        state.make_available(sequence)  # Where the head has no row left, it waits for its turn among those that run.
        self._add(sequence, num_most)
        return True

    def _add(self, sequence: Sequence, num_most: int, drafting: Drafting | None = None) -> None:
        """Add the next tokens of an available sequence, as many as bounds and blocks allow, and guesses after them."""
        if sequence.table.pending and not self._restore(sequence):
            return
        state, start, table = self._state, sequence.num_computed, sequence.table
        num_tokens = sequence.largest_part(start, num_most, self._num_rows_left)
        if num_tokens == 0:
            return
        if not state.cache.has_room(table, start, start + num_tokens):
            num_least = state.cache.num_needed(table, start, start + 1)
            self._preemption.make_room(sequence, num_least)
            num_tokens = min(num_tokens, state.cache.num_writable(table, start))
            if num_tokens <= 0:
                return
        guess = drafting.propose(sequence) if drafting is not None else None
        self._append(sequence, start, start + num_tokens, guess)

    def _restore(self, sequence: Sequence) -> bool:
        """Bring blocks of a running sequence back, as many as one step may; say whether it has them all."""
        state = self._state
        if not state.cache.pool.num_available:
            self._preemption.make_room(sequence, 1)
        num_blocks, num_tokens = state.cache.tiers.restore(sequence.table, self._num_restores_left)
        self._num_restores_left -= num_blocks
        state.restored(sequence, num_tokens)
        return not sequence.table.pending

    def _append(self, sequence: Sequence, start: int, stop: int, guess: Guess | None) -> None:
        state, table = self._state, sequence.table
        guessed = () if guess is None else guess.token_ids
        begins_with = () if sequence.is_open else tuple(table.block_ids)
        extension = state.cache.extend(table, start, stop + len(guessed))
        if not sequence.is_open:
            self._opened.append(sequence.opening())
        if extension.copied is not None:
            copied = extension.copied
            self._copies.append(
                BlockCopy(sequence_id=sequence.id, index=copied.index, source=copied.source, target=copied.target)
            )
        samples = sequence.samples(stop)
        self._num_tokens_left -= stop - start + len(guessed)
        self._num_rows_left -= sequence.num_logit_rows(start, stop) + len(guessed)
        self._flights.append(Flight(sequence, stop, samples, guess))
        self._parts.append(
            SequencePart(
                sequence_id=sequence.id,
                token_ids=sequence.tokens(start, stop) + guessed,
                start_position=start,
                new_blocks=begins_with + extension.new_block_ids,
                sample=samples,
                num_drafted=len(guessed),
            )
        )
        sequence.has_drafted = sequence.has_drafted or bool(guessed)
        state.depart(sequence, stop)


def _load(decoding: list[SequencePart], prompts: list[SequencePart]) -> StepLoad:
    return StepLoad(
        num_rows=sum(len(part.token_ids) for part in decoding),
        num_prompt_tokens=sum(len(part.token_ids) for part in prompts),
        num_row_positions=sum(num_attended(part.start_position, len(part.token_ids)) for part in decoding),
        num_prompt_positions=sum(num_attended(part.start_position, len(part.token_ids)) for part in prompts),
    )
