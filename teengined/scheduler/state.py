"""Where each sequence of a deployment stands: waiting, running, in flight, or gone. Moves it and keeps the counts.

enqueue ──> waiting ──start──> running ──depart──> in flight ──arrive──> running …
               ^                  │
               └────preempt───────┘          end: from anywhere
"""

from collections import OrderedDict
from dataclasses import dataclass

from teengined.kvcache.kv_cache import KVCache, Prefix
from teengined.kvcache.spool import Spool
from teengined.scheduler.drain_rate import DrainRate
from teengined.scheduler.fairness import Owners
from teengined.scheduler.limits import SchedulerLimits
from teengined.scheduler.pacing import Pacer
from teengined.scheduler.restore_costs import RestoreCosts
from teengined.scheduler.sequence import Guess, Sequence, num_promised_blocks
from teengined.scheduler.speculation import Speculation
from teengined.scheduler.step_costs import StepLoad

__all__ = ["Flight", "State"]


@dataclass(frozen=True, slots=True)
class Flight:
    """One sequence's share of a step in flight."""

    sequence: Sequence
    stop: int
    """Tokens on the stages once the step is over, guesses not counted."""
    samples: bool
    guess: Guess | None = None
    """What its part of the step ends with."""


class State:
    """The sequences of one deployment. Whoever changes where one stands does it here."""

    def __init__(self, limits: SchedulerLimits) -> None:
        """Begin empty."""
        self.limits = limits
        self.costs = RestoreCosts(
            expected=limits.spool.speeds, block_tokens=limits.block_tokens, max_step_tokens=limits.max_step_tokens
        )
        self.spool = Spool(
            num_host_slots=limits.spool.num_host_slots,
            num_disk_slots=limits.spool.num_disk_slots,
            write_early=limits.spool.has_checkpoints,
            outlives=limits.spool.outlives,
        )
        self.cache = KVCache(limits.num_blocks, limits.block_tokens, prefix_cache=limits.prefix_cache, spool=self.spool)
        self.cache.tiers.is_worthwhile = self.costs.is_worthwhile
        self.owners = Owners(limits.max_idle_owners)
        self.drain = DrainRate()
        self.sequences: dict[int, Sequence] = {}
        """All that have not ended."""
        self.waiting: dict[int, Sequence] = {}
        self.running: dict[int, Sequence] = {}
        self.decodes: OrderedDict[int, Sequence] = OrderedDict()
        """Running and available, with one token to run; who waited longest is first."""
        self.prompts: OrderedDict[int, Sequence] = OrderedDict()
        """Running and available, with more."""
        self.in_flight: dict[int, tuple[Flight, ...]] = {}
        """By step."""
        self.pacer = Pacer(max_tokens=limits.max_step_tokens, stretch=limits.prompt_stretch)
        self.loads: dict[int, StepLoad] = {}
        """By step in flight."""
        self.speculation = Speculation(max_drafted=limits.max_drafted)
        self.copies: dict[int, int] = {}
        """By step in flight: blocks that it copies to and from host memory."""
        self.closed: list[int] = []
        """Sequences that the stages have yet to forget, which the next run tells them; never more than may run."""
        self.num_waiting_tokens = 0
        self.num_preempted = 0
        self.num_recomputed_tokens = 0
        """Computed for a second time, because their blocks were taken and not restored."""
        self.num_promised_blocks = 0
        """That the live sequences may come to need, each counted alone."""
        self.write_again_seconds = 0.0
        """When the disk is tried again after a write failed."""
        self.may_start = True
        """False once no waiting sequence found blocks, until something changes that may help."""

    def enqueue(self, sequence: Sequence, num_tokens: int, now_seconds: float) -> None:
        """Let a new or preempted sequence wait, with so many tokens to prefill."""
        if not self.waiting:
            self.drain.started(now_seconds)
        sequence.num_queued = num_tokens
        self.waiting[sequence.id] = sequence
        self._count_waiting(sequence, 1)
        self.may_start = True

    def _count_waiting(self, sequence: Sequence, sign: int) -> None:
        owner = self.owners[sequence.request.submitted.owner]
        owner.num_waiting += sign
        owner.num_waiting_tokens += sign * sequence.num_queued
        self.num_waiting_tokens += sign * sequence.num_queued

    def start(self, sequence: Sequence, prefix: Prefix, now_seconds: float) -> None:
        """Let a waiting sequence run, beginning with a prefix whose KV is there."""
        del self.waiting[sequence.id]
        self._count_waiting(sequence, -1)
        self.drain.left(sequence.num_queued, now_seconds)
        self.cache.adopt(sequence.table, prefix)
        sequence.is_running = True
        sequence.checkpointed_seconds = now_seconds
        sequence.num_computed = prefix.num_tokens
        self.end_fetch(sequence)
        self.num_recomputed_tokens += max(0, sequence.num_charged - prefix.num_reached)
        sequence.num_charged = max(sequence.num_charged, prefix.num_reached)
        if sequence.cached_tokens is None:
            sequence.cached_tokens = prefix.num_reached if prefix.is_cached else 0
        self.running[sequence.id] = sequence.request.running[sequence.id] = sequence

    def depart(self, sequence: Sequence, stop: int) -> None:
        """Put a running sequence's tokens up to `stop` into a step, and charge its owner for those that are new."""
        self.decodes.pop(sequence.id, None)
        self.prompts.pop(sequence.id, None)
        sequence.num_in_flight = stop - sequence.num_computed
        sequence.is_open = True
        if stop > sequence.num_charged:
            self.owners.charge(sequence.request.submitted.owner, stop - sequence.num_charged)
            sequence.num_charged = stop

    def arrive(self, sequence: Sequence, stop: int) -> None:
        """Take a sequence's tokens out of a step that is over: their KV is there."""
        if sequence.num_in_flight > 1 or stop == sequence.request.num_prompt_tokens:
            self.may_start = True  # What begins alike has less to compute now.
        sequence.num_computed = stop
        sequence.num_in_flight = 0
        self.costs.learn_depth(stop)
        self.cache.commit(sequence.table, sequence.tokens, sequence.request.submitted.salt, stop)

    def accept(self, sequence: Sequence) -> None:
        """Count a guess that was right: the KV of one more token is there, and its owner was served it."""
        sequence.num_computed += 1
        if sequence.num_computed > sequence.num_charged:
            self.owners.charge(sequence.request.submitted.owner, 1)
            sequence.num_charged = sequence.num_computed
        self.cache.commit(sequence.table, sequence.tokens, sequence.request.submitted.salt, sequence.num_computed)

    def make_available(self, sequence: Sequence) -> None:
        """Let the next steps take a running sequence."""
        available = self.decodes if sequence.num_remaining == 1 else self.prompts
        available[sequence.id] = sequence

    def preempt(self, sequence: Sequence, now_seconds: float) -> None:
        """Take the blocks of an available sequence; it waits until its tokens can be computed again."""
        self.num_preempted += 1
        self.cache.tiers.swap_out(sequence.table, sequence.num_computed)
        sequence.fetch = None
        self._stop(sequence)
        self.enqueue(sequence, sequence.num_tokens, now_seconds)

    def _stop(self, sequence: Sequence) -> None:
        """Take blocks and place of a running sequence. One in flight may go too: the stages run steps in order."""
        del self.running[sequence.id], sequence.request.running[sequence.id]
        self.decodes.pop(sequence.id, None)
        self.prompts.pop(sequence.id, None)
        self.cache.release(sequence.table)
        sequence.is_running = False
        sequence.num_computed = sequence.num_in_flight = 0
        sequence.has_drafted = False
        if sequence.is_open:
            self.closed.append(sequence.id)
            sequence.is_open = False

    def end(self, sequence: Sequence) -> None:
        """Forget a sequence."""
        if sequence.is_running:
            self._stop(sequence)
        else:
            del self.waiting[sequence.id]
            self._count_waiting(sequence, -1)
            self.end_fetch(sequence)
            self.cache.tiers.discard(sequence.table)
        sequence.has_ended = True
        del self.sequences[sequence.id]
        self.num_promised_blocks -= num_promised_blocks(sequence.request.submitted, self.limits.block_tokens)
        self.owners.leave(sequence.request.submitted.owner)
        self.may_start = True

    def restored(self, sequence: Sequence, num_tokens: int) -> None:
        """Note that so many tokens more of a running sequence are there."""
        sequence.num_computed += num_tokens
        if sequence.id in self.prompts and not sequence.table.pending:
            del self.prompts[sequence.id]
            self.make_available(sequence)

    def end_fetch(self, sequence: Sequence) -> None:
        """Let go of what a sequence waited for."""
        if sequence.fetch is not None:
            for stored in sequence.fetch.stored:
                self.spool.unpin(stored)
            sequence.fetch.stored.clear()

    def lose_stages(self) -> None:
        """Forget steps in flight and all KV. For when no sequence is left."""
        self.in_flight.clear()
        self.loads.clear()
        self.copies.clear()
        self.closed.clear()
        self.cache.reset()
