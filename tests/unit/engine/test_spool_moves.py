import errno
import mmap
import os
import queue
import threading
from pathlib import Path

from teengined.engine.spool_file import SpoolFile, digest_of
from teengined.engine.spool_moves import MovesOver, SpoolMoves
from teengined.protocol.worker_messages import SlotMove

PAGE = 4096


class Story:
    """Four host slots, filled with their numbers, over a file."""

    def __init__(self, path: Path, **calls) -> None:
        memory = memoryview(mmap.mmap(-1, 4 * PAGE))
        self.rows = [memory[slot * PAGE : (slot + 1) * PAGE] for slot in range(4)]
        for slot, row in enumerate(self.rows):
            row[:] = bytes([slot + 1]) * PAGE
        self.told: queue.Queue[MovesOver] = queue.Queue()
        self.moves = SpoolMoves(SpoolFile(path / "spool", PAGE, **calls), self.rows, 1, self.told.put)

    def over(self) -> MovesOver:
        return self.told.get(timeout=20)


def write(host: int, disk: int) -> SlotMove:
    return SlotMove(host=host, disk=disk, to_disk=True)


def fetch(host: int, disk: int, number: int) -> SlotMove:
    digest = digest_of(memoryview(bytes([number]) * PAGE))
    return SlotMove(host=host, disk=disk, to_disk=False, digests=(b"of stage 0", digest))


def test_written_slot_is_fetched_into_another(tmp_path: Path):
    story = Story(tmp_path)
    story.moves.submit([write(2, 5)])
    (written,) = story.over().done
    story.moves.submit([fetch(0, 5, 3)])
    over = story.over()

    assert written.digests == (digest_of(story.rows[2]),)
    assert bytes(story.rows[0]) == bytes([3]) * PAGE
    assert over.done == [fetch(0, 5, 3)]
    assert over.fetch_seconds > 0
    assert story.moves.close()


def test_fetch_does_not_wait_for_a_write_that_hangs(tmp_path: Path):
    go_on = threading.Event()

    def hanging(fd, buffers, offset):
        if offset:
            assert go_on.wait(20)
        return os.pwritev(fd, buffers, offset)

    story = Story(tmp_path, pwritev=hanging)
    story.moves.submit([write(0, 0)])
    story.over()
    story.moves.submit([write(1, 1), fetch(3, 0, 1)])

    assert story.over().done == [fetch(3, 0, 1)]
    go_on.set()
    assert [move.host for move in story.over().done] == [1]
    assert story.moves.close()


def test_failure_is_told_and_the_next_move_is_tried(tmp_path: Path):
    def full(fd, buffers, offset):
        if offset == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return os.pwritev(fd, buffers, offset)

    story = Story(tmp_path, pwritev=full)
    story.moves.submit([write(0, 0), write(1, 1)])
    told = [story.over()]
    while sum(over.num_moves for over in told) < 2:
        told.append(story.over())

    assert [move for over in told for move in over.failed] == [write(0, 0)]
    assert [move.host for over in told for move in over.done] == [1]
    assert "No space left" in told[0].problem
    assert story.moves.close()


def test_mistake_of_ours_is_told_too(tmp_path: Path):
    story = Story(tmp_path)
    story.moves.submit([write(99, 0)])

    over = story.over()
    assert over.failed == [write(99, 0)]
    assert "IndexError" in over.problem
    assert story.moves.close()
