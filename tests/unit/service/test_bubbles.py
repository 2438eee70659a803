import pytest

from teengined.service.bubbles import PipelineMeter


def test_before_any_step_there_is_nothing_to_tell():
    meter = PipelineMeter(2)

    assert meter.bubbles == (0.0, 0.0)
    assert meter.tokens_per_second(10.0) == 0.0


def test_stages_that_take_turns_are_idle_in_turn():
    meter = PipelineMeter(2)

    for step in range(5):
        meter.start(step * 1.0)
        meter.finish(step + 1.0, [0.25, 0.75], num_tokens=3)

    assert meter.bubbles == pytest.approx((0.75, 0.25))
    assert meter.tokens_per_second(5.0) == pytest.approx(3.0)


def test_steps_that_overlap_leave_no_bubbles():
    meter = PipelineMeter(2)
    meter.start(0.0)
    meter.start(0.0)

    for step in range(1, 9):
        meter.finish(step * 0.5, [0.5, 0.5], num_tokens=1)
        meter.start(step * 0.5)

    assert meter.bubbles == pytest.approx((0.0, 0.0))


def test_time_without_a_step_is_nobodys_bubble():
    meter = PipelineMeter(1)
    meter.start(0.0)
    meter.finish(1.0, [1.0], num_tokens=1)
    meter.start(3.0)
    meter.finish(4.0, [1.0], num_tokens=1)

    assert meter.bubbles == pytest.approx((0.0,))
    assert meter.tokens_per_second(4.0) == pytest.approx(1.0)


def test_what_is_long_ago_hardly_counts():
    meter = PipelineMeter(1)
    meter.start(0.0)
    meter.finish(60.0, [0.0], num_tokens=0)
    for step in range(60, 90):
        meter.start(step)
        meter.finish(step + 1.0, [1.0], num_tokens=1)

    assert meter.bubbles[0] < 0.05


def test_a_step_longer_than_the_window_stands_for_itself():
    meter = PipelineMeter(2)
    meter.start(0.0)
    meter.finish(100.0, [90.0, 10.0], num_tokens=1)

    assert meter.bubbles == pytest.approx((0.1, 0.9))


def test_rate_falls_while_a_step_hangs_and_after_the_last_one():
    meter = PipelineMeter(1)
    meter.start(0.0)
    meter.finish(1.0, [1.0], num_tokens=10)
    meter.start(1.0)

    assert meter.tokens_per_second(3.0) == pytest.approx(10 / 3)
    meter.abandon()
    assert meter.tokens_per_second(2.0) == pytest.approx(10.0)
    assert meter.tokens_per_second(20.0) == 0.0


def test_bubbles_add_up_since_the_beginning():
    meter = PipelineMeter(2)
    for step in range(100):
        meter.start(step * 10.0)
        meter.finish(step * 10.0 + 1.0, [0.25, 1.0], num_tokens=1)

    assert meter.bubble_seconds == pytest.approx([75.0, 0.0])


def test_bubbles_never_fall_though_a_step_overlaps_with_the_one_before():
    meter = PipelineMeter(1)
    meter.start(0.0)
    meter.start(0.0)
    told = [0.0]
    for moment, seconds in ((1.0, 0.5), (1.25, 0.5), (2.0, 0.5)):
        meter.finish(moment, [seconds], num_tokens=1)
        meter.start(moment)
        told.append(meter.bubble_seconds[0])

    assert told == pytest.approx([0.0, 0.5, 0.5, 0.5])
