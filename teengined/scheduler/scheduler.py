"""The scheduler of one deployment: a state machine. Events go in, instructions and runs come out.

    Submitted ──> queued ──(place, blocks)──> prefill ──> decode ──> End
                    ^                            │           │
                    └──────(preempted)───────────┴───────────┘
    Cancelled, Stopped, deadline, a failed step, PipelineLost ──> End, from anywhere; exactly one for each sequence

Stages run steps in the order in which they are sent. So a sequence that ends while it is part of a step in flight gives
up its blocks at once: whoever gets them next writes to them in a later step, which also tells the stages to forget it.
"""

from collections.abc import Iterable
from typing import Literal, assert_never

from teengined.core.errors import DeadlineExceeded, TeengineError, UnknownRequest
from teengined.core.plan import Tier
from teengined.core.request import FinishReason, Goal
from teengined.interfaces.policy import SchedulingPolicy
from teengined.kvcache.block_table import BlockTable
from teengined.protocol.loading_messages import KvTiers
from teengined.scheduler.admission import check_admission, check_room, num_queued_tokens
from teengined.scheduler.batch import Composition
from teengined.scheduler.completion import Completion, end_sequence
from teengined.scheduler.draft_requests import DraftRequests
from teengined.scheduler.events import (
    BlocksFound,
    Cancelled,
    DraftModelOffered,
    DraftWanted,
    End,
    Event,
    GuessArrived,
    Instruction,
    PipelineLost,
    PipelineReady,
    Run,
    SpoolReported,
    StepCompleted,
    StepFailed,
    Stopped,
    Submitted,
    Tick,
)
from teengined.scheduler.keeping import Keeping, note_spool, saving_run
from teengined.scheduler.limits import SchedulerLimits
from teengined.scheduler.ordering import Ordering
from teengined.scheduler.sequence import Request, Sequence, num_promised_blocks
from teengined.scheduler.speculation import Drafted
from teengined.scheduler.state import State
from teengined.scheduler.step_costs import StepLoad

__all__ = ["Scheduler", "SchedulerLimits"]


class Scheduler:
    """Sequences of one deployment. Not for concurrent use; the shell feeds events one after the other."""

    def __init__(self, policy: SchedulingPolicy, limits: SchedulerLimits, *, ready: bool = True) -> None:
        """`ready`: the stages are open and empty; else sequences are taken and wait for `PipelineReady`."""
        self.limits = limits
        self._policy = policy
        self._ready = ready
        self._state = State(limits)
        self._drafts = DraftRequests(self._state)
        self._next_step = 0

    @property
    def ready(self) -> bool:
        """Whether there are stages to send runs to."""
        return self._ready

    @property
    def num_waiting(self) -> int:
        """Sequences without blocks, preempted ones among them."""
        return len(self._state.waiting)

    @property
    def num_waiting_tokens(self) -> int:
        """Tokens that these have to prefill."""
        return self._state.num_waiting_tokens

    @property
    def num_running(self) -> int:
        """Sequences with blocks."""
        return len(self._state.running)

    @property
    def num_used_blocks(self) -> int:
        """KV blocks that sequences hold."""
        return self._state.cache.pool.num_used

    @property
    def num_cached_blocks(self) -> int:
        """KV blocks that only the prefix cache holds."""
        return self._state.cache.pool.num_cached

    @property
    def num_preempted(self) -> int:
        """How often a sequence had to give up its blocks, since the beginning."""
        return self._state.num_preempted

    @property
    def drafted(self) -> tuple[Drafted, ...]:
        """What became of tokens that were guessed ahead."""
        return self._state.speculation.describe()

    @property
    def tiers(self) -> KvTiers:
        """What lies below the device, and what became of it."""
        state, spool = self._state, self._state.spool
        speeds = state.costs.speeds
        return KvTiers(
            num_host_slots=spool.num_host_slots,
            num_host_blocks=spool.num_host,
            num_disk_slots=spool.num_disk_slots,
            num_disk_blocks=spool.num_disk,
            num_spooled=state.cache.tiers.num_stored,
            num_restored=state.cache.tiers.num_restored,
            num_fetched=spool.num_fetched,
            num_dropped=spool.num_lost,
            num_failed=spool.num_failed,
            num_recomputed_tokens=state.num_recomputed_tokens,
            num_promised_blocks=state.num_promised_blocks,
            compute_block_seconds=state.costs.compute_block_seconds,
            host_block_seconds=speeds.host_block_seconds,
            disk_block_seconds=speeds.disk_block_seconds,
        )

    @property
    def keeping(self) -> Keeping:
        """What outlives the deployment."""
        return Keeping(self._state)

    def state_of(self, sequence_id: int) -> Literal["queued", "prefill", "decode"]:
        """Return where a sequence stands.

        Raises:
            UnknownRequest: it has ended, or was never submitted.
        """
        sequence = self._sequence(sequence_id)
        if not sequence.is_running:
            return "queued"
        return "decode" if sequence.emitted and sequence.num_remaining <= 1 else "prefill"

    def num_cached_tokens(self, sequence_id: int) -> int:
        """Return how many tokens of a sequence's prompt came from the prefix cache.

        Raises:
            UnknownRequest: it has ended, or was never submitted.
        """
        return self._sequence(sequence_id).cached_tokens or 0

    def _sequence(self, sequence_id: int) -> Sequence:
        sequence = self._state.sequences.get(sequence_id)
        if sequence is None:
            raise UnknownRequest(f"no live sequence has the id {sequence_id}")
        return sequence

    def handle(self, event: Event, now_seconds: float) -> tuple[Instruction, ...]:
        """Take an event in and return what to tell clients, in order. `now_seconds` is monotonic.

        Raises, for `Submitted` only and with nothing changed:
            QueueFull: too much waits; the error says when to try again.
            QuotaExceeded: too much of the same owner waits.
            ContextTooLong: there could never be blocks enough.
            RequestError: there is no prompt, or more choices than can ever wait.
        """
        match event:
            case Submitted():
                return self._submit(event, now_seconds)
            case Cancelled() | Stopped():
                reason = FinishReason.STOP if isinstance(event, Stopped) else FinishReason.CANCELLED
                return self._end(self._live([event.sequence_id]), reason=reason)
            case StepCompleted():
                return self._complete(event, now_seconds)
            case StepFailed():
                return self._fail(event, now_seconds)
            case SpoolReported() | BlocksFound():
                note_spool(self._state, event, now_seconds)
                return ()
            case PipelineLost():
                return self._lose(event)
            case PipelineReady():
                return self._begin(event)
            case Tick():
                self._drafts.expire(now_seconds)
                return self._expire(now_seconds)
            case DraftModelOffered() | GuessArrived():
                self._drafts.handle(event, now_seconds)
                return ()
            case _:
                assert_never(event)

    def check_room(self, owner: str, num_choices: int) -> None:
        """Refuse, before any work is done for it, a request that would be refused with any prompt.

        Raises:
            QueueFull, QuotaExceeded, RequestError: as for `Submitted`.
        """
        check_room(self._state, owner, num_choices, ready=self._ready)

    def next_runs(self, now_seconds: float) -> tuple[Run, ...]:
        """Return the runs that may be sent now, in order; each counts as in flight from here on.

        Raises:
            PluginError: the policy broke its contract. Only `PipelineLost` leads on from there.
        """
        runs: list[Run] = []
        state = self._state
        ordering = Ordering(self._policy, state.owners, now_seconds)
        while self._ready and len(state.in_flight) < self.limits.num_microbatches:
            if not state.sequences:
                run = saving_run(state, self._next_step)
            elif self._drafts.holds(now_seconds):
                break
            else:
                run = Composition(state, ordering, now_seconds).compose(self._next_step)
            if run is None:
                break
            runs.append(run)
            self._next_step += 1
        return tuple(runs)

    def next_drafts(self) -> tuple[DraftWanted, ...]:
        """Return what the draft model is to be asked now. Asked for after the runs."""
        return self._drafts.take()

    def _submit(self, event: Submitted, now_seconds: float) -> tuple[Instruction, ...]:
        check_admission(self._state, event, ready=self._ready)
        request = Request(submitted=event, arrived_seconds=now_seconds)
        for choice, sequence_id in enumerate(event.sequence_ids):
            if event.goal is not Goal.GENERATE:  # Each tells of its prompt, and ends when it is computed.
                request = Request(submitted=event, arrived_seconds=now_seconds)
            table = BlockTable(self.limits.block_tokens)
            sequence = Sequence(id=sequence_id, choice=choice, request=request, table=table, may_draft=event.speculates)
            self._state.owners.enter(event.owner)
            self._state.sequences[sequence_id] = sequence
            self._state.num_promised_blocks += num_promised_blocks(event, self.limits.block_tokens)
            self._state.enqueue(sequence, num_queued_tokens(event, choice), now_seconds)
        return ()

    def _live(self, sequence_ids: Iterable[int]) -> list[Sequence]:
        sequences = self._state.sequences
        return [sequences[sequence_id] for sequence_id in sequence_ids if sequence_id in sequences]

    def _end(
        self, sequences: list[Sequence], *, reason: FinishReason | None = None, error: TeengineError | None = None
    ) -> tuple[End, ...]:
        return tuple(end_sequence(self._state, sequence, reason=reason, error=error) for sequence in sequences)

    def _fail(self, event: StepFailed, now_seconds: float) -> tuple[Instruction, ...]:
        self._state.loads.pop(event.step, None)
        self._state.copies.pop(event.step, None)
        live = self._live(flight.sequence.id for flight in self._state.in_flight.pop(event.step, ()))
        if not event.blamed_ids:
            return self._end(live, error=event.error)
        for sequence in live:
            if sequence.id not in event.blamed_ids:
                self._state.preempt(sequence, now_seconds)
        return self._end(self._live(event.blamed_ids), error=event.error)

    def _complete(self, event: StepCompleted, now_seconds: float) -> tuple[Instruction, ...]:
        flights = self._state.in_flight.pop(event.step, ())  # None for an answer of stages that were lost since.
        load = self._state.loads.pop(event.step, StepLoad())
        self._state.pacer.learn(load.num_rows, load.num_prompt_tokens, event.seconds)
        if load.num_prompt_tokens == 0:
            has_drafts = any(flight.guess is not None for flight in flights)
            self._state.speculation.learn_step(load.num_rows, event.seconds, has_drafts=has_drafts)
        self._state.costs.learn_step(load, event.seconds)
        self._state.costs.learn_blocks(Tier.HOST, self._state.copies.pop(event.step, 0), event.copy_seconds)
        completion = Completion(self._state, event, now_seconds)
        instructions: list[Instruction] = []
        for flight in flights:
            if not flight.sequence.has_ended:
                instructions += completion.settle(flight)
        return tuple(instructions)

    def _begin(self, event: PipelineReady) -> tuple[Instruction, ...]:
        self._ready, self._next_step = True, 0
        if event.computes_otherwise:
            self._state.spool.lose_host(and_disk=True)
        return ()

    def _lose(self, event: PipelineLost) -> tuple[Instruction, ...]:
        self._ready = False
        ends = self._end(list(self._state.sequences.values()), error=event.error)
        self._state.lose_stages()
        self._drafts.forget()
        return ends

    def _expire(self, now_seconds: float) -> tuple[Instruction, ...]:
        self._state.spool.may_write = now_seconds >= self._state.write_again_seconds
        live = self._state.sequences.values()
        late = [item for item in live if now_seconds >= item.request.submitted.deadline_seconds]
        message = "the request did not finish within its time"
        return self._end(late, error=DeadlineExceeded(message, hint="ask for more time or fewer tokens"))
