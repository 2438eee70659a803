"""A scheduler in small, and the words to drive it with."""

from typing import Any

from teengined.core.request import Goal
from teengined.core.sampling import SamplingParams
from teengined.interfaces.policy import SchedulingPolicy
from teengined.protocol.worker_messages import SampledToken
from teengined.scheduler.events import End, Instruction, Run, StepCompleted, Submitted
from teengined.scheduler.scheduler import Scheduler, SchedulerLimits

EOS = 9
DRAWN = 5


class ByArrival(SchedulingPolicy):
    name = "by-arrival"

    def order(self, sequences, now_seconds):
        return [view.id for view in sorted(sequences, key=lambda view: (view.arrived_seconds, view.id))]


def limits(**changed) -> SchedulerLimits:
    values: dict[str, Any] = {
        "max_running": 4,
        "max_waiting": 8,
        "max_waiting_tokens": 1000,
        "max_owner_waiting": 8,
        "max_owner_waiting_tokens": 1000,
        "max_step_tokens": 8,
        "max_logit_rows": 8,
        "num_blocks": 32,
        "block_tokens": 4,
    }
    return SchedulerLimits(**values | changed)


def scheduler(policy: SchedulingPolicy | None = None, *, ready: bool = True, **changed) -> Scheduler:
    return Scheduler(policy or ByArrival(), limits(**changed), ready=ready)


def submitted(*sequence_ids: int, prompt: tuple[int, ...] = (1, 2, 3), **more) -> Submitted:
    own: dict[str, Any] = {
        "owner": "someone",
        "deadline_seconds": 1e9,
        "goal": Goal.GENERATE,
        "priority": 0,
        "salt": b"",
    }
    own |= {name: more.pop(name) for name in (*own, "score_start", "pooling", "speculates") if name in more}
    sampling: dict[str, Any] = {"max_tokens": 4, "num_choices": len(sequence_ids)} | more
    return Submitted(
        sequence_ids=sequence_ids,
        prompt=prompt,
        sampling=SamplingParams(**sampling),
        eos_token_ids=frozenset({EOS}),
        **own,
    )


def done(run: Run, token_id: int = DRAWN, seconds: float = 0.0) -> StepCompleted:
    tokens = [SampledToken(sequence_id=part.sequence_id, token_id=token_id) for part in run.parts if part.sample]
    return StepCompleted(step=run.step, tokens=tuple(tokens), seconds=seconds)


def next_run(machine: Scheduler, now_seconds: float = 0.0) -> Run:
    (run,) = machine.next_runs(now_seconds)
    return run


def step(machine: Scheduler, run: Run, token_id: int = DRAWN, now_seconds: float = 0.0) -> Run:
    """Complete a run and return the next one."""
    machine.handle(done(run, token_id), now_seconds)
    return next_run(machine, now_seconds)


def ends_of(instructions: tuple[Instruction, ...]) -> list[End]:
    return [item for item in instructions if isinstance(item, End)]


def lengths(run: Run) -> dict[int, int]:
    """Return how many tokens each sequence has in a run."""
    return {part.sequence_id: len(part.token_ids) for part in run.parts}
