"""The daemon's scheduler over the stages of a local pipeline, with nothing else between them."""

import time
from collections import deque
from dataclasses import dataclass, field, replace

from benchmarks.local_pipeline import LocalPipeline
from teengined.core.sampling import SamplingParams
from teengined.protocol.worker_messages import SampledToken
from teengined.scheduler.events import Emit, End, Event, Run, StepCompleted, Submitted
from teengined.scheduler.limits import SchedulerLimits
from teengined.scheduler.restore_costs import RestoreCosts
from teengined.scheduler.restoring import take_transfers
from teengined.scheduler.scheduler import Scheduler
from teengined.scheduler.state import State
from teengined.service.spool_reports import SpoolReports
from teengined_plugins.policies.fifo import FifoScheduling

__all__ = ["ScheduledPipeline", "Told"]

_FOREVER_SECONDS = 1e12


@dataclass(slots=True, kw_only=True)
class Told:
    """What clients would have heard of one sequence."""

    tokens: list[SampledToken] = field(default_factory=list[SampledToken])
    end: End | None = None


class ScheduledPipeline:
    """Runs sequences as a deployment would, one step in flight, on the caller's thread."""

    def __init__(
        self, pipeline: LocalPipeline, limits: SchedulerLimits, num_stages: int = 1, *, measures: bool = True
    ) -> None:
        """Take an opened pipeline; `limits` name the blocks and slots that its stages have.

        Without `measures` the scheduler hears of no times, and goes by what it expects.
        """
        self._measures = measures
        self.scheduler = Scheduler(FifoScheduling(), limits)
        self.told: dict[int, Told] = {}
        self._pipeline = pipeline
        self._reports = SpoolReports(num_stages=num_stages)
        self._num_moves = 0
        self._in_flight: deque[tuple[int, Run]] = deque()

    @property
    def problem(self) -> str:
        """What the last failed move told."""
        return self._reports.problem

    def submit(self, prompt: tuple[int, ...], sampling: SamplingParams, *, first_id: int = 0) -> int:
        """Queue a sequence and return its id, `first_id` or above; end tokens are not heeded."""
        sequence_id = first_id + len(self.told)
        self.told[sequence_id] = Told()
        self.handle(
            Submitted(
                sequence_ids=(sequence_id,),
                owner="benchmark",
                prompt=prompt,
                sampling=sampling,
                eos_token_ids=frozenset(),
                deadline_seconds=_FOREVER_SECONDS,
            )
        )
        return sequence_id

    def handle(self, event: Event) -> None:
        """Feed an event."""
        for instruction in self.scheduler.handle(event, time.monotonic()):
            told = self.told[instruction.sequence_id]
            if isinstance(instruction, Emit):
                told.tokens.append(instruction.token)
            elif isinstance(instruction, End):
                told.end = instruction

    def advance(self) -> bool:
        """Send what may be sent and take in what is over first; False where nothing is under way."""
        for run in self.scheduler.next_runs(time.monotonic()):
            self._send(run)
        if self._in_flight:
            self._complete(*self._in_flight.popleft())
        elif self._num_moves:
            self._pipeline.wait_for_spool()
        else:
            return False
        self._take_reports()
        return True

    def finish(self, sequence_id: int) -> list[int]:
        """Go on until a sequence has ended, and return its tokens."""
        while self.told[sequence_id].end is None and self.advance():
            pass
        return [token.token_id for token in self.told[sequence_id].tokens]

    def finish_moves(self) -> None:
        """Go on until no move is under way."""
        while self._num_moves and self.advance():
            pass

    def run_until_emitted(self, sequence_id: int, num_tokens: int) -> None:
        """Go on until a sequence has emitted so many tokens."""
        while len(self.told[sequence_id].tokens) < num_tokens and self.advance():
            pass

    def use_costs(self, costs: RestoreCosts) -> None:
        """Let the scheduler learn into these, and choose by them."""
        state = self._state
        state.costs = costs
        state.cache.tiers.is_worthwhile = costs.is_worthwhile

    def take_blocks(self, sequence_id: int, *, to_disk: bool = False) -> None:
        """Preempt a sequence and let others have had every block since; `to_disk`: and every slot of host memory."""
        state = self._state
        state.spool.write_early = to_disk
        state.preempt(state.sequences[sequence_id], time.monotonic())
        held = dict(state.waiting)
        state.waiting.clear()
        pool = state.cache.pool
        for block_id in [pool.allocate() for _ in range(pool.num_available)]:
            pool.release(block_id)
        if to_disk:
            self._spool_everything()
        state.waiting.update(held)

    def _spool_everything(self) -> None:
        """Have what is in host memory written, and given up there."""
        state = self._state
        transfers = take_transfers(state, -1)
        step = self._pipeline.send((), spooled=transfers.spooled, moves=transfers.moves)
        self._reports.expect(transfers.moves)
        self._num_moves += len(transfers.moves)
        self._pipeline.receive(step)
        while self._num_moves:
            self._pipeline.wait_for_spool()
            self._take_reports()
            moves = take_transfers(state, -1).moves
            if moves:
                self._reports.expect(moves)
                self._num_moves += len(moves)
                self._pipeline.receive(self._pipeline.send((), moves=moves))
        state.copies.pop(-1, None)
        for stored in [state.spool.store() for _ in range(state.spool.num_host_slots)]:
            if stored is not None:
                state.spool.drop(stored)

    @property
    def _state(self) -> State:
        return self.scheduler._state  # noqa: SLF001 # pyright: ignore[reportPrivateUsage] - what no event brings about

    def _send(self, run: Run) -> None:
        self._reports.expect(run.moves)
        self._num_moves += len(run.moves)
        step = self._pipeline.send(
            run.parts,
            closed=run.closed,
            opened=run.opened,
            copies=run.copies,
            spooled=run.spooled,
            restored=run.restored,
            moves=run.moves,
        )
        self._in_flight.append((step, run))

    def _complete(self, step: int, run: Run) -> None:
        done = self._pipeline.receive(step)
        self.handle(
            StepCompleted(
                step=run.step,
                tokens=done.tokens,
                prompt_logprobs=done.prompt_logprobs,
                vectors=done.vectors,
                seconds=done.seconds if self._measures else 0.0,
                copy_seconds=done.copy_seconds if self._measures else 0.0,
            )
        )

    def _take_reports(self) -> None:
        while self._pipeline.spool_reports:
            event = self._reports.take(self._pipeline.spool_reports.pop(0))
            if event is not None:
                self._num_moves -= len(event.done) + len(event.failed)
                self.handle(event if self._measures else replace(event, fetch_seconds=0.0))
