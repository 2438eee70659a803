from teengined.modelpack.progress import Progress, ProgressMeter


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_rate_and_remaining_time_follow_from_amounts_and_the_clock() -> None:
    clock, seen = Clock(), list[Progress]()
    meter = ProgressMeter("convert", 1000, report=seen.append, clock=clock)
    clock.now += 2
    meter.advance(400)
    assert (seen[-1].done, seen[-1].bytes_per_second, seen[-1].eta_seconds) == (400, 200.0, 3.0)


def test_reports_are_spaced_out_and_the_last_one_always_comes() -> None:
    clock, seen = Clock(), list[Progress]()
    meter = ProgressMeter("convert", 100, report=seen.append, clock=clock, interval_seconds=1)
    for _ in range(100):
        clock.now += 0.1
        meter.advance(1)
    assert 10 <= len(seen) <= 12
    assert (seen[-1].done, seen[-1].eta_seconds) == (100, 0.0)


def test_work_of_an_earlier_run_counts_as_done_and_not_as_speed() -> None:
    clock, seen = Clock(), list[Progress]()
    meter = ProgressMeter("convert", 1000, report=seen.append, clock=clock)
    meter.credit(900)
    assert seen[-1].eta_seconds is None
    clock.now += 1
    meter.advance(50)
    assert (seen[-1].done, seen[-1].bytes_per_second, seen[-1].eta_seconds) == (950, 50.0, 1.0)
