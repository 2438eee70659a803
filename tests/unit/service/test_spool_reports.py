from dataclasses import replace

from teengined.protocol.worker_messages import SlotMove, SpoolReport
from teengined.service.spool_reports import SpoolReports

WRITE = SlotMove(host=1, disk=2, to_disk=True)
FETCH = SlotMove(host=3, disk=4, to_disk=False, digests=(b"a", b"b"))


def report(stage_index: int, **fields) -> SpoolReport:
    return SpoolReport(deployment_id="d", stage_index=stage_index, **fields)


def reports(*moves: SlotMove) -> SpoolReports:
    made = SpoolReports(num_stages=2)
    made.expect(moves)
    return made


def test_move_is_over_when_the_last_stage_says_so_and_has_every_stages_digest():
    made = reports(WRITE)

    assert made.take(report(1, done=(replace(WRITE, digests=(b"one",)),))) is None
    over = made.take(report(0, done=(replace(WRITE, digests=(b"zero",)),), fetch_seconds=2.0))

    assert over is not None
    assert over.done == (replace(WRITE, digests=(b"zero", b"one")),)


def test_move_that_failed_on_one_stage_failed():
    made = reports(FETCH)

    assert made.take(report(0, failed=(FETCH,), problem="broken")) is None
    over = made.take(report(1, done=(FETCH,)))

    assert over is not None
    assert (over.done, over.failed, made.problem) == ((), (FETCH,), "broken")


def test_problem_is_over_with_the_next_write():
    made = reports(FETCH, WRITE)
    for index in range(2):
        made.take(report(index, failed=(FETCH,), problem="broken"))
    for index in range(2):
        made.take(report(index, done=(WRITE,)))

    assert made.problem == ""


def test_reports_of_stages_that_were_lost_are_dropped():
    made = reports(WRITE)
    made.abandon()

    assert made.take(report(0, done=(WRITE,))) is None
    assert made.take(report(1, done=(WRITE,))) is None
