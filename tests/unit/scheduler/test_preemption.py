from teengined.scheduler.events import Cancelled
from teengined.scheduler.scheduler import Scheduler
from teengined_plugins.policies.fair import FairScheduling
from teengined_plugins.policies.fifo import FifoScheduling
from tests.unit.scheduler.machine import done, lengths, next_run, scheduler, step, submitted


def two_that_fill_the_pool(**more) -> Scheduler:
    """Two sequences of 4 tokens each, which have all 4 blocks of 2 tokens; each is about to need another."""
    machine = scheduler(FifoScheduling(), num_blocks=4, block_tokens=2, prefix_cache=False)
    machine.handle(submitted(1, prompt=(1, 2, 3, 4), **more), 0.0)
    machine.handle(submitted(2, prompt=(5, 6, 7, 8), **more), 0.1)
    return machine


def test_last_in_order_gives_up_its_blocks_and_the_first_goes_on():
    machine = two_that_fill_the_pool()

    second = step(machine, next_run(machine))

    assert lengths(second) == {1: 1}
    assert second.closed == (2,)
    assert machine.state_of(2) == "queued"
    assert (machine.num_preempted, machine.num_waiting_tokens) == (1, 5)


def test_preempted_sequence_computes_what_it_knew_again_and_draws_the_next_token():
    machine = two_that_fill_the_pool(presence_penalty=1.0)
    second = step(machine, next_run(machine), 7)
    machine.handle(Cancelled(sequence_id=1), 0.0)

    third = step(machine, second)

    (part,) = third.parts
    assert (part.token_ids, part.start_position, part.sample) == ((5, 6, 7, 8, 7), 0, True)
    assert [(opening.sequence_id, opening.history) for opening in third.opened] == [(2, (5, 6, 7, 8, 7))]


def test_preempted_sequence_goes_before_those_that_came_later():
    machine = two_that_fill_the_pool()
    first = next_run(machine)
    machine.handle(submitted(3), 0.2)
    second = step(machine, first)
    machine.handle(Cancelled(sequence_id=1), 0.3)

    assert next(iter(lengths(step(machine, second)))) == 2


def test_sequence_with_higher_priority_keeps_its_blocks():
    machine = scheduler(FifoScheduling(), num_blocks=4, block_tokens=2, prefix_cache=False)
    machine.handle(submitted(1, prompt=(1, 2, 3, 4)), 0.0)
    machine.handle(submitted(2, prompt=(5, 6, 7, 8), priority=1), 0.1)

    second = step(machine, next_run(machine))

    assert lengths(second) == {2: 1}
    assert second.closed == (1,)


def test_priority_takes_no_blocks_of_an_owner_that_was_served_less():
    machine = scheduler(FairScheduling(), num_blocks=5, block_tokens=2, prefix_cache=False, max_step_tokens=10)
    machine.handle(submitted(1, prompt=(1, 2, 3, 4), owner="modest"), 0.0)
    machine.handle(submitted(2, prompt=(5, 6, 7, 8, 9, 10), owner="urgent", priority=100), 0.1)
    first = next_run(machine)

    second = step(machine, first)

    assert sorted(lengths(first)) == [1, 2]
    assert sorted(lengths(second)) == [1]
    assert second.closed == (2,)


def test_sequence_for_which_nobody_gives_way_keeps_its_blocks_and_waits():
    machine = scheduler(FifoScheduling(), num_blocks=5, block_tokens=2, prefix_cache=False)
    machine.handle(submitted(1, prompt=(1, 2, 3, 4), max_tokens=2), 0.0)
    machine.handle(submitted(2, prompt=(5, 6, 7, 8)), 0.1)

    second = step(machine, next_run(machine))
    third = step(machine, second)

    assert lengths(second) == {1: 1}  # It took the last block, and the other one is not before it.
    assert machine.num_preempted == 0
    assert lengths(third) == {2: 1}


def test_sequence_in_flight_is_waited_for():
    machine = scheduler(FifoScheduling(), num_blocks=4, block_tokens=2, prefix_cache=False, num_microbatches=2)
    machine.handle(submitted(1, prompt=(1, 2, 3, 4)), 0.0)
    machine.handle(submitted(2, prompt=(5, 6, 7, 8)), 0.1)
    first, other = machine.next_runs(0.2)

    machine.handle(done(first), 0.3)
    assert machine.next_runs(0.3) == ()
    machine.handle(done(other), 0.4)

    assert lengths(next_run(machine)) == {1: 1}
    assert machine.num_preempted == 1


def test_first_in_order_gets_the_last_block_whoever_waited_longer():
    machine = scheduler(FifoScheduling(), num_blocks=5, block_tokens=2, prefix_cache=False)
    machine.handle(submitted(1, prompt=(1, 2, 3)), 0.0)
    first = next_run(machine)
    machine.handle(submitted(2, prompt=(5, 6, 7, 8), priority=1), 0.1)

    second = step(machine, first)
    third = step(machine, second)

    assert lengths(second) == {1: 1, 2: 4}
    assert lengths(third) == {2: 1}  # Both need another block, and one is left.


def test_owner_is_not_charged_for_what_a_preemption_repeats():
    machine = scheduler(FifoScheduling(), num_blocks=5, block_tokens=2, prefix_cache=False, max_step_tokens=3)
    machine.handle(submitted(1, prompt=(1, 2, 3, 4), owner="a", max_tokens=6), 0.0)
    machine.handle(submitted(2, prompt=(5, 6, 7, 8), owner="b"), 0.1)
    run = next_run(machine)
    while not machine.num_preempted:
        run = step(machine, run)
    machine.handle(Cancelled(sequence_id=1), 0.0)
    served = [machine._state.owners["b"].served_tokens]

    for _ in range(2):
        run = step(machine, run)
        served.append(machine._state.owners["b"].served_tokens)

    assert lengths(run) == {2: 2}
    assert served == [4, 4, 5]
