"""Moves between spool slots as all stages of a deployment tell of them: over when the last stage has said so. Pure."""

from dataclasses import dataclass, field, replace

from teengined.protocol.worker_messages import SlotMove, SpoolReport
from teengined.scheduler.events import SpoolReported

__all__ = ["SpoolReports"]

_Slots = tuple[int, int, bool]


@dataclass(slots=True, kw_only=True)
class _Underway:
    move: SlotMove
    digests: dict[int, bytes] = field(default_factory=dict[int, bytes])
    """By stage that is done: of the bytes that it wrote."""
    reported: set[int] = field(default_factory=set[int])
    failed: bool = False


@dataclass(slots=True, kw_only=True)
class SpoolReports:
    """Gathers reports. What nobody asked for, or asked for before the stages were lost, is dropped."""

    num_stages: int
    problem: str = ""
    """What the last failed move told; empty again after a successful write."""
    _underway: dict[_Slots, _Underway] = field(default_factory=dict[_Slots, _Underway])

    def expect(self, moves: tuple[SlotMove, ...]) -> None:
        """Note what a run has begun."""
        for move in moves:
            self._underway[_slots(move)] = _Underway(move=move)

    def abandon(self) -> None:
        """Forget what is under way: the stages are gone."""
        self._underway.clear()

    def take(self, report: SpoolReport) -> SpoolReported | None:
        """Return what is over now, if anything is."""
        if report.problem:
            self.problem = report.problem
        over = [each for move in report.done if (each := self._note(report.stage_index, move, failed=False))]
        over += [each for move in report.failed if (each := self._note(report.stage_index, move, failed=True))]
        if not over:
            return None
        done = tuple(self._with_digests(each) for each in over if not each.failed)
        if any(move.to_disk for move in done):
            self.problem = ""
        return SpoolReported(
            done=done,
            failed=tuple(each.move for each in over if each.failed),
            fetch_seconds=report.fetch_seconds,
        )

    def _note(self, stage_index: int, move: SlotMove, *, failed: bool) -> _Underway | None:
        """Return the move if every stage has reported it now."""
        underway = self._underway.get(_slots(move))
        if underway is None:
            return None
        underway.reported.add(stage_index)
        underway.failed |= failed
        if move.digests:
            underway.digests[stage_index] = move.digests[0]
        if len(underway.reported) < self.num_stages:
            return None
        return self._underway.pop(_slots(move))

    def _with_digests(self, underway: _Underway) -> SlotMove:
        if not underway.move.to_disk:
            return underway.move
        digests = tuple(underway.digests.get(index, b"") for index in range(self.num_stages))
        return replace(underway.move, digests=digests)


def _slots(move: SlotMove) -> _Slots:
    return move.host, move.disk, move.to_disk
