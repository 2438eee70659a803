import pytest

from teengined.scheduler.step_times import StepTimes


def measured(*steps: tuple[int, float]) -> StepTimes:
    times = StepTimes()
    for num_rows, seconds in steps:
        times.learn(num_rows, seconds)
    return times


def test_nothing_is_said_of_what_was_never_near():
    assert StepTimes().seconds(1) is None
    assert measured((1, 1.0)).seconds(1) == 1.0
    assert measured((1, 1.0)).seconds(2) is None
    assert measured((1, 1.0), (4, 2.0)).seconds(11) is None


def test_between_and_just_beyond_the_measured_numbers_lie_straight_lines():
    times = measured((1, 1.0), (5, 2.0))

    assert [times.seconds(rows) for rows in (1, 3, 5, 9)] == [1.0, 1.5, 2.0, 3.0]


def test_more_rows_never_seem_to_take_less():
    assert measured((4, 0.5), (1, 1.0)).seconds(4) == 1.0
    assert measured((1, 1.0), (4, 0.5)).seconds(1) == 0.5  # The newer measurement counts.


def test_newest_steps_count_and_one_odd_one_does_not():
    times = measured(*[(1, 1.0)] * 20, (1, 1000.0), (1, 1.0), (1, 1000.0), (1, 0.1))

    assert times.seconds(1) == 1.0
    for _ in range(30):
        times.learn(1, 1.5)
    assert times.seconds(1) == pytest.approx(1.5, rel=0.05)


def test_several_odd_steps_in_a_row_are_how_it_is_now():
    times = measured(*[(1, 1.0)] * 20, *[(1, 20.0)] * 3)

    assert times.seconds(1) == 20.0


def test_step_without_a_time_says_nothing():
    assert measured((1, 0.0), (0, 1.0)).seconds(1) is None
