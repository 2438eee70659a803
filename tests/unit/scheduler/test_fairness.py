from teengined.scheduler.events import End
from teengined.scheduler.fairness import Owners
from teengined_plugins.policies.fair import FairScheduling
from tests.unit.scheduler.machine import done, lengths, scheduler, submitted


def test_owner_that_was_idle_begins_at_the_least_of_the_others():
    owners = Owners(max_idle=8)
    owners.enter("a")
    owners.enter("b")
    owners.charge("a", 100)
    owners.charge("b", 40)

    owners.enter("new")

    assert owners["new"].served_tokens == 40


def test_owner_that_comes_back_soon_keeps_what_it_had_more_than_the_others():
    owners = Owners(max_idle=8)
    owners.enter("a")
    owners.enter("b")
    owners.charge("b", 50)
    owners.leave("b")

    owners.enter("b")

    assert owners["b"].served_tokens == 50


def test_nobody_is_owed_anything_once_all_are_idle():
    owners = Owners(max_idle=8)
    owners.enter("a")
    owners.charge("a", 1000)
    owners.leave("a")

    owners.enter("b")
    owners.enter("a")

    assert owners["a"].served_tokens == owners["b"].served_tokens == 0


def test_only_so_many_idle_owners_are_remembered():
    owners = Owners(max_idle=2)
    owners.enter("stays")
    for name in ("a", "b", "c"):
        owners.enter(name)
        owners.charge(name, 10)
        owners.leave(name)

    for name in ("a", "c"):
        owners.enter(name)

    assert (owners["a"].served_tokens, owners["c"].served_tokens) == (0, 10)


def steps_to_first_token(num_flooding: int, num_prompt_tokens: int, priority: int = 0) -> int:
    """Return the steps until a second owner's request has its first token, beside a flood that has run for a while."""
    machine = scheduler(
        FairScheduling(),
        max_running=16,
        max_waiting=2000,
        max_owner_waiting=2000,
        max_waiting_tokens=1 << 20,
        max_owner_waiting_tokens=1 << 20,
        max_step_tokens=64,
        max_logit_rows=32,
        num_blocks=512,
        block_tokens=8,
    )
    for number in range(num_flooding):
        prompt = tuple(range(number, number + 40))
        flooding = submitted(number, prompt=prompt, owner="flood", max_tokens=10 + number % 7, priority=priority)
        machine.handle(flooding, float(number))
    for _ in range(60):
        for run in machine.next_runs(1e4):
            machine.handle(done(run), 1e4)
    machine.handle(submitted(5000, prompt=(1,) * num_prompt_tokens, owner="second"), 2e4)
    for num_steps in range(1, 1000):
        (run,) = machine.next_runs(2e4)
        machine.handle(done(run), 2e4)
        if any(part.sequence_id == 5000 and part.sample for part in run.parts):
            return num_steps
    raise AssertionError("never served")


def test_flood_of_one_client_delays_anothers_first_token_by_about_twice():
    alone, beside = steps_to_first_token(0, 640), steps_to_first_token(1000, 640)

    assert alone == 10
    assert beside <= 2 * alone + 3


def test_flood_at_the_highest_priority_delays_another_owner_no_more():
    assert steps_to_first_token(1000, 640, priority=100) <= 2 * steps_to_first_token(0, 640) + 3


def test_owners_that_ask_for_equal_work_are_served_equally():
    machine = scheduler(
        FairScheduling(),
        max_running=4,
        max_waiting=100,
        max_owner_waiting=100,
        max_waiting_tokens=1 << 20,
        max_owner_waiting_tokens=1 << 20,
        max_step_tokens=32,
        num_blocks=256,
    )
    for number in range(80):
        owner = "few" if number % 4 == 0 else "many"
        machine.handle(submitted(number, prompt=(number,) * 20, owner=owner), 0.0)
    served = {"few": 0, "many": 0}
    while served["few"] + served["many"] < 800:
        for run in machine.next_runs(0.0):
            for sequence_id, num_tokens in lengths(run).items():
                served["few" if sequence_id % 4 == 0 else "many"] += num_tokens
            assert not any(isinstance(item, End) and item.error for item in machine.handle(done(run), 0.0))

    assert abs(served["few"] - served["many"]) <= 100
