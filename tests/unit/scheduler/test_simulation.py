"""Thousands of seeded lives of a scheduler, in which nothing is real but its decisions."""

import random
from collections import Counter
from dataclasses import replace

import pytest

from teengined.core.errors import CapacityError, InternalError, NumericalFault, RequestError, TeengineError, WorkerLost
from teengined.core.request import FinishReason, Goal
from teengined.core.sampling import SamplingParams
from teengined.kvcache.prefix import PrefixIndex
from teengined.protocol.worker_messages import SampledToken, SlotMove
from teengined.scheduler.events import (
    Cancelled,
    DraftModelOffered,
    DraftWanted,
    Emit,
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
    Tell,
    Tick,
)
from teengined.scheduler.limits import SpoolLimits
from teengined.scheduler.restore_costs import Speeds
from teengined.scheduler.scheduler import Scheduler, SchedulerLimits
from teengined_plugins.policies.fair import FairScheduling
from teengined_plugins.policies.fifo import FifoScheduling
from tests.unit.scheduler.model_worker import EOS, NUM_TOKEN_IDS, ModelWorker, drawn, fingerprint, num_logit_rows
from tests.unit.scheduler.simulated_lives import Life, Moody, Oracle, Whimsical

NUM_SCHEDULES = 2400
NUM_GROUPS = 24
NEVER = 1e9


class Story:
    """One scheduler, its worker, and a random world around them."""

    def __init__(self, seed: int) -> None:
        self.random = rng = random.Random(seed)
        self.limits = SchedulerLimits(
            max_running=rng.choice([1, 2, 3, 6, 12]),
            max_waiting=rng.choice([0, 2, 8, 20]),
            max_waiting_tokens=rng.choice([20, 60, 300]),
            max_owner_waiting=rng.choice([0, 4, 12]),
            max_owner_waiting_tokens=rng.choice([20, 40, 200]),
            max_step_tokens=rng.choice([1, 2, 5, 9, 16, 40]),
            max_logit_rows=rng.choice([1, 2, 4, 50]),
            num_blocks=rng.choice([3, 6, 8, 12, 20, 40]),
            block_tokens=rng.choice([1, 2, 3, 4, 8]),
            num_microbatches=rng.choice([1, 1, 2, 3]),
            prefix_cache=rng.random() < 0.7,
            max_drafted=rng.choice([0, 1, 3, 8]),
            lookup_tokens=rng.choice([0, 4, 100]),
            draft_wait_seconds=rng.choice([1.0, 5.0, 1000.0]),
            max_promised_blocks=rng.choice([0, 0, 0, 20]),
            spool=SpoolLimits(
                num_host_slots=rng.choice([0, 0, 1, 3, 8, 40]),
                num_disk_slots=rng.choice([0, 0, 2, 6, 40]),
                max_restored_blocks=rng.choice([1, 2, 64]),
                checkpoint_tokens=rng.choice([0, 0, 3]),
                checkpoint_seconds=rng.choice([0.0, 0.0, 2.0]),
                speeds=rng.choice([Speeds(), Speeds(token_seconds=5.0), Speeds(host_block_seconds=1.0)]),
            ),
        )
        self.policy = rng.choice([FifoScheduling, FairScheduling, Whimsical])()
        self.machine = Scheduler(self.policy, self.limits, ready=rng.random() < 0.9)
        if rng.random() < 0.2:  # No two blocks have different digests: only the tokens tell them apart.
            cache = self.machine._state.cache
            cache._index = cache.tiers.index = PrefixIndex(digest=lambda parent, content: b"same")
        if moody := rng.random() < 0.7:
            self.machine._state.speculation = Moody(max_drafted=self.limits.max_drafted)
            self.machine._state.speculation.rng = rng
        self.guesses_well = moody or rng.random() < 0.5
        self.ready = self.machine.ready
        self.capacity = self.limits.num_blocks * self.limits.block_tokens
        self.prefixes = [self.tokens(rng.randint(0, min(24, self.capacity))) for _ in range(3)]
        self.worker = ModelWorker(self.limits.num_blocks, self.limits.block_tokens, self.limits.spool)
        self.lives: dict[int, Life] = {}
        self.in_flight: list[tuple[Run, Event]] = []
        self.next_id = 0
        self.next_step = 0
        self.now = 0.0
        self.stopped: set[int] = set()
        self.harmed: set[int] = set()
        """Sequences that a failing step, a fault or a lost token makes fail."""
        self.num_drafted = self.num_accepted = 0
        self.num_asked = 0
        self.asked: list[DraftWanted] = []
        if rng.random() < 0.5:
            self.take(DraftModelOffered(context_tokens=100))
        self.faults = rng.choice([0.0, 0.05])

    def tokens(self, number: int) -> tuple[int, ...]:
        return tuple(self.random.randrange(NUM_TOKEN_IDS) for _ in range(number))

    def play(self, num_events: int) -> None:
        for _ in range(num_events):
            self.take(self.next_event())
            if self.random.random() < 0.9:  # The shell may hear of several things before it asks for runs.
                self.ask()
        if not self.ready:
            self.take(PipelineReady())
        for _ in range(20_000):
            self.ask()
            if self.worker.moving and (not self.in_flight or self.random.random() < 0.3):
                self.take(self.report())
            elif self.in_flight:
                self.take(self.completion())
            elif self.asked:
                self.take(self.guess())
            else:
                break

    # --- the world ---

    def next_event(self) -> Event:
        choice = self.random.random()
        if choice < 0.25 or not self.lives:
            return self.submission()
        if choice < 0.31:
            return Cancelled(sequence_id=self.some_id())
        if choice < 0.33:
            return Stopped(sequence_id=self.some_id())
        if choice < 0.37:
            return Tick()
        if choice < 0.372:
            return DraftModelOffered(context_tokens=self.random.choice([0, 10, 100]))
        if choice < 0.5 and self.asked:
            return self.guess()
        if choice < 0.375:
            return PipelineLost(error=WorkerLost("gone"))
        if not self.ready:
            return PipelineReady()
        if choice < 0.5 and self.worker.moving:
            return self.report()
        return self.completion() if self.in_flight else Tick()

    def guess(self) -> GuessArrived:
        """Return what the draft model says to one of those that were asked for."""
        wanted = self.asked.pop(self.random.randrange(len(self.asked)))
        life, guess = self.lives[wanted.sequence_id], []
        assert life.end is not None or life.tokens[: len(wanted.tokens)] == wanted.tokens
        prints = life.prints[: len(wanted.tokens)]
        while len(guess) < self.random.randint(0, wanted.num_wanted + 1):
            token_id = drawn(life.opening, len(prints), prints[-1])
            guess.append(self.random.choice([token_id, token_id, token_id, self.random.randrange(NUM_TOKEN_IDS)]))
            prints.append(fingerprint(prints[-1], guess[-1]))
        return GuessArrived(sequence_id=wanted.sequence_id, num_tokens=len(wanted.tokens), token_ids=tuple(guess))

    def some_id(self) -> int:
        live = [sequence_id for sequence_id, life in self.lives.items() if life.end is None]
        return self.random.choice(live if live and self.random.random() < 0.9 else [*self.lives, self.next_id + 7])

    def completion(self) -> Event:
        return self.in_flight.pop(0)[1]

    def report(self) -> SpoolReported:
        """Some moves are over, in any order."""
        done: list[SlotMove] = []
        failed: list[SlotMove] = []
        for move in self.random.sample(self.worker.moving, self.random.randint(1, len(self.worker.moving))):
            fails = self.random.random() < self.faults
            self.worker.end_move(move, fails=fails)
            (failed if fails else done).append(replace(move, digests=(b"right",)) if move.to_disk else move)
        return SpoolReported(done=tuple(done), failed=tuple(failed), fetch_seconds=0.0)

    def submission(self) -> Submitted:
        rng = self.random
        prefix = rng.choice(self.prefixes)
        prompt = prefix[: rng.choice([len(prefix), rng.randint(0, len(prefix))])] + self.tokens(
            rng.choice([0, 0, 1, 5])
        )
        goal = rng.choice([Goal.GENERATE] * 6 + [Goal.SCORE, Goal.EMBED])
        num_choices = rng.choice([1, 1, 1, 2, 4]) if goal is Goal.GENERATE else 1
        most = self.capacity + 1 - len(prompt)  # More can never run; at times it is asked for all the same.
        max_tokens = rng.randint(1, max(1, min(24, most + rng.choice([0, 0, 0, 1]))))
        sampling = SamplingParams(
            max_tokens=max_tokens,
            min_tokens=rng.choice([0, 0, rng.randint(0, max_tokens)]),
            stop_token_ids=rng.choice([(), (), (3,)]),
            ignore_eos=rng.random() < 0.3,
            num_choices=num_choices,
            prompt_logprobs=rng.choice([None, None, None, 2]),
            presence_penalty=rng.choice([0.0, 1.0]),
        )
        ids = tuple(range(self.next_id, self.next_id + num_choices))
        self.next_id += num_choices
        return Submitted(
            sequence_ids=ids,
            owner=rng.choice(["a", "a", "b", "c"]),
            prompt=prompt or (0,),
            sampling=sampling,
            eos_token_ids=frozenset({EOS}),
            deadline_seconds=rng.choice([NEVER, NEVER, self.now + rng.randint(1, 60)]),
            priority=rng.choice([0, 0, 0, 1]),
            salt=rng.choice([b"", b"", b"x"]),
            speculates=rng.random() < 0.9,
            goal=goal,
            pooling=rng.choice(["mean", "last"]) if goal is Goal.EMBED else "",
            score_start=rng.randint(0, len(prompt) + 1) if goal is Goal.SCORE else 0,
        )

    # --- what the shell does ---

    def take(self, event: Event) -> None:
        self.now += 1
        before = self.counts()
        if isinstance(event, PipelineReady):
            self.ready, self.next_step = True, 0
            disk = self.worker.disk  # A file outlives the worker that wrote it.
            self.worker = ModelWorker(self.limits.num_blocks, self.limits.block_tokens, self.limits.spool)
            self.worker.disk = disk
        try:
            instructions = self.machine.handle(event, self.now)
        except (CapacityError, RequestError) as error:
            self.check_refusal(event, error)
            assert self.counts() == before
            return
        if isinstance(event, Submitted):
            for choice, sequence_id in enumerate(event.sequence_ids):
                self.lives[sequence_id] = life = Life(event, choice, [])
                for token_id in event.prompt:
                    life.add(token_id)
                if self.guesses_well:
                    self.machine._state.sequences[sequence_id].lookup = Oracle(self, life)
        if isinstance(event, PipelineLost):
            self.ready = False
            self.in_flight.clear()
            assert self.machine.num_used_blocks == self.machine.num_cached_blocks == 0
        for instruction in instructions:
            self.obey(instruction)
        self.check_event(event)

    def check_refusal(self, event: Event, error: TeengineError) -> None:
        assert isinstance(event, Submitted)
        says_when = (error.retry_after_seconds or 0) > 0
        assert says_when == isinstance(error, CapacityError)

    def counts(self) -> tuple[int, ...]:
        machine = self.machine
        return machine.num_waiting, machine.num_waiting_tokens, machine.num_running, machine.num_used_blocks

    def check_event(self, event: Event) -> None:
        match event:
            case Cancelled() | Stopped():
                if isinstance(event, Stopped):
                    self.stopped.add(event.sequence_id)
                life = self.lives.get(event.sequence_id)
                assert life is None or life.end is not None
            case StepFailed():
                assert event.step < self.next_step
            case Tick():
                late = [life for life in self.lives.values() if life.submitted.deadline_seconds <= self.now]
                assert all(life.end is not None for life in late)
            case PipelineLost():
                assert all(life.end is not None for life in self.lives.values())
            case _:
                pass

    def obey(self, instruction: Instruction) -> None:
        life = self.lives[instruction.sequence_id]
        assert life.end is None, f"{instruction} after the end"
        match instruction:
            case Emit():
                assert instruction.token.token_id == drawn(life.opening, len(life.tokens), life.prints[-1])
                self.num_accepted += instruction.drafted
                life.emitted.append(instruction.token.token_id)
                life.add(instruction.token.token_id)
                life.expected = self.expected_end(life)
                assert instruction.silent == (life.expected is FinishReason.STOP)
            case Tell():
                if instruction.prompt_logprobs is not None:
                    told = instruction.prompt_logprobs
                    life.told += [row.token_id for row in told.logprobs]
                    assert told.start_position == told.logprobs[0].token_id
                else:
                    assert instruction.vector is not None
                    assert instruction.vector.vector == life.prints[len(life.submitted.prompt) - 1]
            case End():
                life.end = instruction
                assert (instruction.reason is None) != (instruction.error is None)
                assert 0 <= instruction.cached_tokens < len(life.submitted.prompt)
                if isinstance(instruction.error, InternalError | NumericalFault):
                    assert instruction.sequence_id in self.harmed, instruction.error

    def expected_end(self, life: Life) -> FinishReason | None:
        sampling, token_id = life.submitted.sampling, life.emitted[-1]
        ends = token_id in sampling.stop_token_ids or (token_id == EOS and not sampling.ignore_eos)
        if ends and len(life.emitted) > sampling.min_tokens:
            return FinishReason.STOP
        return FinishReason.LENGTH if len(life.emitted) == sampling.max_tokens else None

    def ask(self) -> None:
        runs = self.machine.next_runs(self.now)
        assert self.ready or not runs
        for run in runs:
            self.send(run)
        live = {sequence_id for sequence_id, life in self.lives.items() if life.end is None}
        assert self.machine.num_running + self.machine.num_waiting == len(live)
        fetching = any(not move.to_disk for move in self.worker.moving)
        self.asked += self.machine.next_drafts()
        self.num_asked += bool(self.asked)
        assert self.in_flight or not live or not self.ready or self.asked or fetching, (
            "nothing runs, and something could"
        )
        self.check_slots()
        assert len(self.in_flight) == len(self.machine._state.in_flight) <= self.limits.num_microbatches
        assert len(self.machine._state.closed) <= self.limits.max_running
        assert self.machine.num_running <= self.limits.max_running

    def check_slots(self) -> None:
        """Every slot is free, busy, or in one table."""
        spool, limits = self.machine._state.spool, self.limits.spool
        tables = [*spool._dirty.values(), *spool._clean.values(), *spool._moving.values(), *spool._below.values()]
        tables += spool._settled.values()
        waiting = self.machine._state.sequences.values()
        pinned = [item.stored for sequence in waiting for item in sequence.table.pending]
        pinned += [stored for sequence in waiting if sequence.fetch for stored in sequence.fetch.stored]
        everything = {id(stored): stored for stored in (*tables, *pinned)}.values()
        hosts = [stored.host for stored in everything if stored.host is not None] + spool._free_host
        disks = [stored.disk for stored in everything if stored.disk is not None] + spool._free_disk
        assert sorted(hosts) == list(range(limits.num_host_slots))
        assert sorted(disks) == list(range(limits.num_disk_slots))
        assert not spool.num_failed or self.faults

    def send(self, run: Run) -> None:
        assert run.step == self.next_step
        self.next_step += 1
        self.check_run(run)
        fails = self.random.random() < self.faults
        completed = self.worker.obey(
            run, {part.sequence_id: self.lives[part.sequence_id].prints for part in run.parts}, fails=fails
        )
        self.check_rows(run)
        self.in_flight.append((run, self.failure(run) if fails else self.marred(completed)))

    def failure(self, run: Run) -> StepFailed:
        """Return the failure of a step; as often as not some of its sequences are to blame, and only these."""
        sequence_ids = [part.sequence_id for part in run.parts]
        blamed: list[int] = []
        if sequence_ids and self.random.random() < 0.5:
            blamed = self.random.sample(sequence_ids, self.random.randint(1, len(sequence_ids)))
        self.harmed |= set(blamed or sequence_ids)
        return StepFailed(step=run.step, error=InternalError("broken"), blamed_ids=tuple(blamed))

    def marred(self, completed: StepCompleted) -> StepCompleted:
        """Return the answer, now and then with a fault or without a token."""
        tokens = list(completed.tokens)
        if tokens and self.random.random() < self.faults:
            index = self.random.randrange(len(tokens))
            sequence_id = tokens[index].sequence_id
            self.harmed.add(sequence_id)
            if self.random.random() < 0.5:
                tokens = [token for token in tokens if token.sequence_id != sequence_id]
            else:
                after = [token for token in tokens[index + 1 :] if token.sequence_id != sequence_id]
                fault = SampledToken(
                    sequence_id=sequence_id, token_id=-1, fault="numerical_fault", message="no numbers"
                )
                tokens = [*tokens[:index], fault, *after]
        return StepCompleted(
            step=completed.step,
            tokens=tuple(tokens),
            seconds=self.random.random(),
            prompt_logprobs=completed.prompt_logprobs,
            vectors=completed.vectors,
        )

    def check_run(self, run: Run) -> None:
        busy = [part.sequence_id for earlier, _ in self.in_flight for part in earlier.parts]
        mine = [part.sequence_id for part in run.parts]
        live_busy = [sequence_id for sequence_id in busy if self.lives[sequence_id].end is None]
        assert len(set(mine)) == len(mine)
        assert not set(mine) & set(live_busy)
        assert sum(len(part.token_ids) for part in run.parts) <= self.limits.max_step_tokens
        assert run.parts or run.restored or run.moves or run.spooled, "a run for nothing"
        assert len(run.restored) <= self.limits.spool.max_restored_blocks
        for opening in run.opened:
            life = self.lives[opening.sequence_id]
            assert opening.choice == life.choice
            assert opening.history == (life.tokens if opening.sampling.uses_history else ())
        for part in run.parts:
            life = self.lives[part.sequence_id]
            stop = part.start_position + len(part.token_ids)
            assert life.end is None
            assert part.token_ids
            stop -= part.num_drafted
            assert part.token_ids[: stop - part.start_position] == life.tokens[part.start_position : stop]
            assert part.sample == (stop == len(life.tokens) and life.submitted.goal is Goal.GENERATE)
            assert not part.num_drafted or (part.sample and life.submitted.speculates and life.emitted)
            num_left = life.submitted.sampling.max_tokens - len(life.emitted) - 1
            assert part.num_drafted <= min(self.limits.max_drafted, num_left)
            self.num_drafted += part.num_drafted

    def check_rows(self, run: Run) -> None:
        known = self.worker.known
        assert (
            sum(num_logit_rows(known[part.sequence_id].opening, part) for part in run.parts)
            <= self.limits.max_logit_rows
        )

    # --- the end ---

    def check_ends(self) -> None:
        machine = self.machine
        for life in self.lives.values():
            assert life.end is not None
            error = life.end.error
            assert error is None or isinstance(error, TeengineError)
            if life.end.reason in (FinishReason.LENGTH, FinishReason.STOP) and life.expected:
                assert life.end.reason is life.expected
        assert (machine.num_running, machine.num_waiting, machine.num_waiting_tokens) == (0, 0, 0)
        assert machine.num_used_blocks == 0
        assert not machine._state.in_flight
        assert self.limits.prefix_cache or machine.num_cached_blocks == 0
        pool = machine._state.cache.pool
        assert pool.num_free + pool.num_cached == self.limits.num_blocks
        assert set(self.worker.known) == set(machine._state.closed)
        self.check_told()
        self.check_slots()
        assert all(stored.num_pins == 0 for stored in machine._state.spool._moving.values())
        assert machine._state.num_promised_blocks == 0
        assert not machine._state.copies

    def check_told(self) -> None:
        requests: dict[tuple[int, ...], list[Life]] = {}
        for life in self.lives.values():
            requests.setdefault(life.submitted.sequence_ids, []).append(life)
        for choices in requests.values():
            submitted = choices[0].submitted
            told = Counter(position for life in choices for position in life.told)
            assert not told or max(told.values()) == 1, "something was told twice"
            wants = submitted.goal is Goal.SCORE or (
                submitted.goal is Goal.GENERATE and submitted.sampling.prompt_logprobs is not None
            )
            start = max(1, submitted.score_start) if submitted.goal is Goal.SCORE else 1
            expected = range(start, len(submitted.prompt)) if wants else range(0)
            assert told.keys() <= set(expected)
            if any(life.emitted or self.reached_goal(life) for life in choices):
                assert sorted(told) == list(expected)

    def reached_goal(self, life: Life) -> bool:
        was_stopped = self.stopped & set(life.submitted.sequence_ids)
        return life.end is not None and life.end.reason is FinishReason.STOP and not was_stopped


@pytest.mark.parametrize("group", range(NUM_GROUPS))
def test_random_schedules_keep_every_promise(group: int, seed: int):
    num_drafted = num_accepted = num_asked = 0
    for number in range(NUM_SCHEDULES // NUM_GROUPS):
        story_seed = seed * 1_000_000 + group * 1_000 + number
        story = Story(story_seed)
        told = False
        try:
            story.play(80)
            story.check_ends()
            told = True
        finally:
            if not told:
                print(f"seed {story_seed}, event {story.now}, policy {story.policy.name}, {story.limits}")
        num_drafted, num_accepted = num_drafted + story.num_drafted, num_accepted + story.num_accepted
        num_asked += story.num_asked
    assert 0 < num_accepted < num_drafted
    assert num_asked > 0
