import pytest

from teengined.core.errors import CapacityError, ContextTooLong, QueueFull, QuotaExceeded, RequestError
from teengined.core.request import Goal
from teengined.scheduler.events import Cancelled
from tests.unit.scheduler.machine import next_run, scheduler, submitted


def test_queue_that_is_full_refuses_and_changes_nothing():
    machine = scheduler(max_running=1, max_waiting=1)
    machine.handle(submitted(1), 0.0)
    next_run(machine)
    machine.handle(submitted(2), 0.0)

    with pytest.raises(QueueFull, match="1 sequences wait already; the limit is 1") as caught:
        machine.handle(submitted(3), 0.0)

    assert (machine.num_waiting, machine.num_waiting_tokens) == (1, 3)
    assert (caught.value.retry_after_seconds or 0) > 0


def test_no_waiting_room_still_lets_a_free_place_be_taken():
    machine = scheduler(max_running=1, max_waiting=0, max_owner_waiting=0)
    machine.handle(submitted(1), 0.0)

    assert next_run(machine).step == 0


def test_stages_that_are_not_there_have_no_free_places():
    machine = scheduler(max_waiting=1, ready=False)
    machine.handle(submitted(1), 0.0)

    with pytest.raises(QueueFull):
        machine.handle(submitted(2), 0.0)


def test_choices_count_each_and_are_taken_together_or_not_at_all():
    machine = scheduler(max_running=1, max_waiting=2)

    with pytest.raises(RequestError, match="4 choices are more than can ever wait here"):
        machine.handle(submitted(1, 2, 3, 4), 0.0)
    machine.handle(submitted(5), 0.0)
    with pytest.raises(QueueFull):
        machine.handle(submitted(6, 7, 8), 0.0)

    assert machine.num_waiting == 1


def test_tokens_that_wait_are_bounded_but_one_long_prompt_may_always_wait():
    machine = scheduler(max_waiting_tokens=10)
    machine.handle(submitted(1, prompt=tuple(range(40))), 0.0)

    with pytest.raises(QueueFull, match="40 prompt tokens wait already; the limit is 10"):
        machine.handle(submitted(2), 0.0)


def test_prompt_of_several_choices_waits_once():
    machine = scheduler()
    machine.handle(submitted(1, 2, 3, prompt=tuple(range(10))), 0.0)

    assert machine.num_waiting_tokens == 12


@pytest.mark.parametrize("bound", [{"max_owner_waiting": 1}, {"max_owner_waiting_tokens": 3}])
def test_one_owners_flood_leaves_room_for_others(bound):
    machine = scheduler(max_running=1, **bound)
    machine.handle(submitted(1, owner="flood"), 0.0)
    next_run(machine)
    machine.handle(submitted(2, owner="flood"), 0.0)

    with pytest.raises(QuotaExceeded, match="of 'flood' wait already") as caught:
        machine.handle(submitted(3, owner="flood"), 0.0)
    machine.handle(submitted(4, owner="other"), 0.0)

    assert (caught.value.retry_after_seconds or 0) > 0
    assert machine.num_waiting == 2


def test_request_that_could_never_run_is_refused_for_good():
    machine = scheduler(num_blocks=3, block_tokens=4)

    with pytest.raises(ContextTooLong, match="may take 13 tokens; the KV of this deployment has room for 12"):
        machine.handle(submitted(1, prompt=tuple(range(10)), max_tokens=4), 0.0)
    with pytest.raises(RequestError, match="no tokens"):
        machine.handle(submitted(1, prompt=()), 0.0)
    machine.handle(submitted(1, prompt=tuple(range(10)), max_tokens=3), 0.0)


def test_prompt_that_is_only_scored_needs_no_room_for_an_answer():
    machine = scheduler(num_blocks=3, block_tokens=4)

    machine.handle(submitted(1, prompt=tuple(range(12)), goal=Goal.SCORE), 0.0)

    assert machine.num_waiting == 1


def test_what_is_admitted_can_be_refused_again_only_for_good_reason():
    assert not issubclass(ContextTooLong, CapacityError)
    assert QueueFull.retryable
    assert QuotaExceeded.retryable


def test_room_is_asked_for_before_the_prompt_is_known_and_changes_nothing():
    machine = scheduler(max_running=1, max_waiting=2, max_owner_waiting=1)
    machine.check_room("someone", 2)
    machine.handle(submitted(1), 0.0)
    next_run(machine)
    machine.check_room("someone", 1)
    machine.handle(submitted(2, owner="someone"), 0.0)

    with pytest.raises(QuotaExceeded, match="1 sequences of 'someone' wait already"):
        machine.check_room("someone", 1)
    machine.check_room("another", 1)
    with pytest.raises(RequestError, match="3 choices are more than can ever wait here"):
        machine.check_room("another", 3)

    assert machine.num_waiting == 1


def test_no_room_is_told_where_prompt_tokens_wait():
    machine = scheduler(max_waiting_tokens=10)
    machine.handle(submitted(1, prompt=tuple(range(10))), 0.0)

    with pytest.raises(QueueFull, match="10 prompt tokens wait already; the limit is 10"):
        machine.check_room("someone", 1)


def test_more_kv_than_may_be_promised_is_refused_until_some_is_given_back():
    machine = scheduler(max_promised_blocks=6, max_waiting=20)
    machine.handle(submitted(1, prompt=(1,) * 9, max_tokens=4), 0.0)  # Three blocks, and as many for the next.
    machine.handle(submitted(2, prompt=(1,) * 9, max_tokens=4), 0.0)

    with pytest.raises(QueueFull, match="6 blocks of KV are promised already") as refused:
        machine.handle(submitted(3, prompt=(1,), max_tokens=1), 0.0)
    with pytest.raises(QueueFull):
        machine.check_room("someone", 1)

    assert (refused.value.retry_after_seconds or 0) > 0
    machine.handle(Cancelled(sequence_id=1), 0.0)
    machine.handle(submitted(3, prompt=(1,), max_tokens=1), 0.0)
    assert machine.tiers.num_promised_blocks == 4


def test_one_request_alone_may_have_all_the_kv():
    machine = scheduler(max_promised_blocks=1)

    machine.handle(submitted(1, prompt=(1,) * 9, max_tokens=4), 0.0)

    assert machine.num_waiting == 1
