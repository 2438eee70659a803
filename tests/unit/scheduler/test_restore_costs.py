import itertools

import pytest

from teengined.core.plan import Tier
from teengined.scheduler.events import Run
from teengined.scheduler.restore_costs import RestoreCosts, Speeds
from teengined.scheduler.step_costs import StepLoad
from tests.unit.scheduler.machine import EOS, done, ends_of, next_run, scheduler, submitted

HOST, DISK = Tier.HOST, Tier.DISK


def costs(**speeds) -> RestoreCosts:
    return RestoreCosts(expected=Speeds(**speeds), block_tokens=16, max_step_tokens=64)


def test_computing_costs_its_steps_and_its_tokens():
    assert costs(step_seconds=1.0, token_seconds=0.1).compute_seconds(65) == pytest.approx(2 + 6.5)


@pytest.mark.parametrize(
    ("speeds", "tier", "expected"),
    [
        ({"token_seconds": 1.0, "host_block_seconds": 7.0}, HOST, True),
        ({"token_seconds": 1.0, "host_block_seconds": 8.0}, HOST, False),  # There and back takes as long as computing.
        ({"token_seconds": 1.0, "host_block_seconds": 1.0, "disk_block_seconds": 14.0}, DISK, True),
        ({"token_seconds": 1.0, "host_block_seconds": 1.0, "disk_block_seconds": 15.0}, DISK, False),
        ({"token_seconds": 0.0, "step_seconds": 64.0, "host_block_seconds": 7.0}, HOST, True),
    ],
)
def test_block_goes_where_it_comes_back_from_sooner_than_it_is_computed(
    speeds: dict[str, float], tier: Tier, expected: bool
):
    assert costs(**speeds).is_worthwhile(tier) is expected


def test_only_the_cheap_part_is_restored():
    slow_disk = costs(token_seconds=1.0, host_block_seconds=1.0, disk_block_seconds=100.0)

    assert slow_disk.num_restored([HOST, HOST, DISK], num_left=50, num_after=2) == 2
    assert slow_disk.num_restored([DISK, HOST, HOST], num_left=50, num_after=2) == 0
    # A dear one is worth it for what lies behind it.
    assert slow_disk.num_restored([DISK, *[HOST] * 9], num_left=162, num_after=2) == 10


def test_what_saves_a_step_is_restored_where_its_tokens_alone_would_not_pay():
    streamed = costs(step_seconds=100.0, token_seconds=0.0, host_block_seconds=20.0)

    assert streamed.num_restored([HOST, HOST], num_left=80, num_after=48) == 1
    assert streamed.num_restored([HOST, HOST], num_left=60, num_after=28) == 0


def test_steps_teach_what_a_step_and_a_token_cost():
    learned = costs(step_seconds=9.0, token_seconds=9.0)
    for _ in range(40):
        learned.learn_step(StepLoad(num_rows=1), 1.5)
        learned.learn_step(StepLoad(num_prompt_tokens=101), 51.5)

    assert learned.speeds.step_seconds == pytest.approx(1.0, rel=1e-2)
    assert learned.speeds.token_seconds == pytest.approx(0.5, rel=1e-2)


def test_deep_tokens_cost_more_to_compute():
    deep = costs(step_seconds=1.0, token_seconds=0.1, position_seconds=0.01)

    assert deep.compute_seconds(3, 10) == pytest.approx(1.0 + 0.3 + 0.01 * (11 + 12 + 13))
    assert deep.compute_seconds(2) == pytest.approx(1.0 + 0.2 + 0.01 * (1 + 2))


def test_blocks_go_below_once_contexts_are_long_enough_to_come_back_as_a_whole_sooner_than_computed():
    deep = costs(position_seconds=0.01, token_seconds=0.0, host_block_seconds=8.0)
    # 16 seconds there and back, for 16 tokens that each attend to half of the context.
    deep.learn_depth(190)
    assert not deep.is_worthwhile(HOST)
    deep.learn_depth(210)
    assert deep.is_worthwhile(HOST)
    deep.learn_depth(10)
    assert deep.is_worthwhile(HOST)


def test_deep_blocks_are_restored_where_those_before_them_would_be_computed():
    deep = costs(position_seconds=0.01, token_seconds=0.0, host_block_seconds=8.0)

    assert deep.num_restored([HOST] * 3, num_left=50, num_after=2) == 0
    assert deep.num_restored([HOST] * 3, num_left=50, num_after=2, num_before=96) == 3


def test_blocks_teach_their_tiers():
    learned = costs(host_block_seconds=1.0, disk_block_seconds=1.0)
    for _ in range(60):
        learned.learn_blocks(HOST, 4, 2.0)
        learned.learn_blocks(DISK, 2, 6.0)
    learned.learn_blocks(HOST, 0, 6.0)

    assert learned.speeds.host_block_seconds == pytest.approx(0.5, rel=1e-3)
    assert learned.speeds.disk_block_seconds == pytest.approx(3.0, rel=1e-3)


def simulated_seconds(run: Run) -> float:
    """Return what a run takes on a device of which each key of each token takes a thousandth of a step."""
    tokens = [(part.start_position, len(part.token_ids)) for part in run.parts]
    keys = sum(position + 1 for start, number in tokens for position in range(start, start + number))
    return 1.0 + 0.01 * sum(number for _, number in tokens) + 0.001 * keys


def test_scheduler_learns_from_its_own_steps_what_deep_tokens_cost():
    machine = scheduler(max_step_tokens=64, max_logit_rows=4, num_blocks=400, block_tokens=4, prefix_cache=False)
    lengths = [20, 900, 70, 300, 1200, 500] * 3
    for number, length in enumerate(lengths):
        machine.handle(submitted(number, prompt=(1,) * length, max_tokens=12), 0.0)
        for num_steps in itertools.count():
            run = next_run(machine)
            drawn = EOS if num_steps > length // 64 + 8 else 5
            if ends_of(machine.handle(done(run, drawn, simulated_seconds(run)), 0.0)):
                break
    state = machine._state

    assert state.loads == {}
    assert state.costs.compute_seconds(1024) == pytest.approx(16 + 10.24 + 0.001 * 1024 * 1025 / 2, rel=0.02)
    assert state.costs.compute_seconds(64, 960) == pytest.approx(1 + 0.64 + 0.001 * 64 * 992.5, rel=0.02)
