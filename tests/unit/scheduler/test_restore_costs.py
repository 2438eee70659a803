import pytest

from teengined.core.plan import Tier
from teengined.scheduler.restore_costs import RestoreCosts, Speeds

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
        learned.learn_step(1, 1.5)
        learned.learn_step(101, 51.5)
    learned.learn_step(0, 5.0)
    learned.learn_step(5, 0.0)

    assert learned.speeds.step_seconds == pytest.approx(1.0)
    assert learned.speeds.token_seconds == pytest.approx(0.5)


def test_prompts_alone_teach_the_rate_beside_what_was_expected_of_a_step():
    learned = costs(step_seconds=10.0, token_seconds=9.0)
    learned.learn_step(100, 60.0)

    assert learned.speeds.token_seconds == pytest.approx(0.5)


def test_blocks_teach_their_tiers():
    learned = costs(host_block_seconds=1.0, disk_block_seconds=1.0)
    for _ in range(60):
        learned.learn_blocks(HOST, 4, 2.0)
        learned.learn_blocks(DISK, 2, 6.0)
    learned.learn_blocks(HOST, 0, 6.0)

    assert learned.speeds.host_block_seconds == pytest.approx(0.5, rel=1e-3)
    assert learned.speeds.disk_block_seconds == pytest.approx(3.0, rel=1e-3)
