"""How long the scheduler takes for a step, with no worker: the time between two steps that belongs to nobody.

    python -m benchmarks.scheduler [--json] [--steps N] [--policy NAME]

A step is one completed run handled and the next one composed. In steady state all sequences decode and none comes or
goes. With churn every answer has a random length, and each that ends is replaced, while four times as many wait.
"""

import argparse
import random
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from benchmarks.table import print_json, print_table
from teengined.core.sampling import SamplingParams
from teengined.interfaces.policy import SchedulingPolicy
from teengined.interfaces.registry import PluginRegistry
from teengined.protocol.worker_messages import SampledToken
from teengined.scheduler.events import End, Run, StepCompleted, Submitted
from teengined.scheduler.scheduler import Scheduler, SchedulerLimits

__all__ = ["main"]

_NUM_SEQUENCES = (1, 16, 64, 256)
_PROMPT_TOKENS = 128
_CHURN_ANSWER_TOKENS = 128
_WAITING_FOR_EACH = 4
_OWNERS = 16


@dataclass(frozen=True, slots=True)
class Case:
    """Seconds of scheduling for a step."""

    churn: bool
    sequences: int
    median_seconds: float
    p99_seconds: float


class Load:
    """A scheduler that always has as many sequences as it is to have."""

    def __init__(self, policy: SchedulingPolicy, num_sequences: int, *, churn: bool) -> None:
        """Submit the first sequences."""
        num_waiting = num_sequences * _WAITING_FOR_EACH if churn else 0
        limits = SchedulerLimits(
            max_running=num_sequences,
            max_waiting=num_waiting + num_sequences,
            max_waiting_tokens=1 << 30,
            max_owner_waiting=num_waiting + num_sequences,
            max_owner_waiting_tokens=1 << 30,
            max_step_tokens=max(512, 2 * num_sequences),
            max_logit_rows=2 * num_sequences,
            num_blocks=num_sequences * 1024,
            block_tokens=16,
        )
        self._random = random.Random(num_sequences)
        self._scheduler = Scheduler(policy, limits)
        self._churn = churn
        self._next_id = 0
        for _ in range(num_sequences + num_waiting):
            self._submit(0.0)

    def _submit(self, now_seconds: float) -> None:
        num_tokens = self._random.randint(1, 2 * _CHURN_ANSWER_TOKENS) if self._churn else 16_000
        submitted = Submitted(
            sequence_ids=(self._next_id,),
            owner=f"owner-{self._random.randrange(_OWNERS)}",
            prompt=tuple(self._random.randrange(1 << 15) for _ in range(_PROMPT_TOKENS)),
            sampling=SamplingParams(max_tokens=num_tokens),
            eos_token_ids=frozenset({0}),
            deadline_seconds=1e9,
        )
        self._next_id += 1
        self._scheduler.handle(submitted, now_seconds)

    def warm_up(self) -> Run:
        """Run until every place is taken and decodes; return the next run."""
        (run,) = self._scheduler.next_runs(0.0)
        while sum(part.sample for part in run.parts) < self._scheduler.limits.max_running:
            run, _ = self.step(run, 0.0)
        return run

    def step(self, run: Run, now_seconds: float) -> tuple[Run, float]:
        """Complete a run and return the next one with the seconds it took; replacements are not part of them."""
        tokens = tuple(SampledToken(sequence_id=part.sequence_id, token_id=7) for part in run.parts if part.sample)
        completed = StepCompleted(step=run.step, tokens=tokens)
        start = time.perf_counter()
        instructions = self._scheduler.handle(completed, now_seconds)
        handled = time.perf_counter() - start
        for instruction in instructions:
            if isinstance(instruction, End):
                self._submit(now_seconds)
        start = time.perf_counter()
        (next_run,) = self._scheduler.next_runs(now_seconds)
        return next_run, handled + time.perf_counter() - start


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scheduler", description="Measure the scheduler.")
    parser.add_argument("--json", action="store_true", help="print one JSON object on the last line")
    parser.add_argument("--steps", type=int, default=1000, metavar="N", help="steps to time in each case")
    parser.add_argument("--policy", default="fair", metavar="NAME", help="scheduling policy")
    options = parser.parse_args(arguments)
    policy = PluginRegistry.load().scheduling_policies()[options.policy]
    cases = [
        _measure(policy, number, options.steps, churn=churn) for churn in (False, True) for number in _NUM_SEQUENCES
    ]
    print(f"Scheduling a step under the policy {options.policy!r}, {options.steps} steps each")
    rows = [
        (
            "churn" if case.churn else "steady",
            str(case.sequences),
            f"{case.median_seconds * 1e3:.3f} ms",
            f"{case.p99_seconds * 1e3:.3f} ms",
        )
        for case in cases
    ]
    print_table(("LOAD", "SEQUENCES", "MEDIAN", "P99"), rows)
    if options.json:
        print_json({"policy": options.policy, "cases": [asdict(case) for case in cases]})


def _measure(policy: SchedulingPolicy, num_sequences: int, num_steps: int, *, churn: bool) -> Case:
    load = Load(policy, num_sequences, churn=churn)
    run = load.warm_up()
    seconds: list[float] = []
    for step in range(num_steps):
        run, taken = load.step(run, float(step))
        seconds.append(taken)
    return Case(churn, num_sequences, statistics.median(seconds), sorted(seconds)[int(0.99 * (num_steps - 1))])


if __name__ == "__main__":
    main()
