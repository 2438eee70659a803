from teengined.scheduler.drain_rate import DrainRate


def test_before_anything_was_measured_the_hint_is_a_second_for_each_place():
    assert DrainRate().seconds_for(2, 0) == 2.0


def test_hint_follows_how_fast_the_queue_emptied():
    drain = DrainRate()
    drain.started(100.0)
    for number in range(1, 400):
        drain.left(50, 100.0 + 0.5 * number)

    assert 0.4 < drain.seconds_for(1, 0) < 0.6
    assert 1.8 < drain.seconds_for(1, 200) < 2.2


def test_time_without_a_queue_does_not_count():
    drain = DrainRate()
    for number in range(200):
        drain.started(1000.0 * number)
        drain.left(10, 1000.0 * number + 0.1)

    assert drain.seconds_for(1, 0) < 0.2


def test_hint_is_neither_nothing_nor_forever():
    drain = DrainRate()
    longest = drain.seconds_for(10_000, 0)
    drain.started(0.0)
    for _ in range(400):
        drain.left(10, 0.0)

    assert (drain.seconds_for(1, 0), longest) == (0.05, 60.0)
