"""The process that reads `.pt` files: it has their descriptors, gives up everything else, and tells what they hold.

`outcome.py` has the form of question and answers, `confinement.py` what is given up.
"""

import json
import os
import struct
import sys
from typing import Any

from teengined_plugins.sources.pickled.archive import ArchiveEntry, ReadBytes, read_archive
from teengined_plugins.sources.pickled.confinement import bound_time, confine
from teengined_plugins.sources.pickled.machine import MAX_PICKLE_BYTES, read_pickle
from teengined_plugins.sources.pickled.outcome import ReadingBounds, Wanted, told
from teengined_plugins.sources.pickled.values import RefusedFile

__all__ = ["answer_about", "main"]

_MAX_QUESTION_BYTES = 1 << 20


def main() -> None:
    """Answer about each file of the question, and end."""
    question: dict[str, Any] = json.loads(sys.stdin.buffer.read(_MAX_QUESTION_BYTES))
    bounds = ReadingBounds(**question["bounds"])
    confine(bounds.memory_bytes)
    for fd in question["files"]:
        bound_time(bounds.cpu_seconds, bounds.wall_seconds)
        _write_all(_frame(_answer(fd, question["wanted"]), bounds.max_reply_bytes))
    bound_time(0, 0)


def answer_about(read: ReadBytes, file_bytes: int, wanted: Wanted) -> dict[str, Any]:
    """Return the wanted values of a file.

    Raises:
        RefusedFile: it is damaged, or holds what is not read.
    """
    entries = read_archive(read, file_bytes)
    descriptions = [name for name in entries if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(descriptions) != 1:
        raise RefusedFile(f"holds {len(descriptions)} descriptions (data.pkl) instead of one")
    root = descriptions[0].removesuffix("data.pkl")
    _check_byte_order(entries.get(f"{root}byteorder"), read)
    description = entries[descriptions[0]]
    if description.size_bytes > MAX_PICKLE_BYTES:
        raise RefusedFile(f"has a description of {description.size_bytes} bytes; {MAX_PICKLE_BYTES} are read at most")
    value = read_pickle(read(description.offset_bytes, description.size_bytes))
    return told(value, wanted, {name: entry for name, entry in entries.items() if name.startswith(f"{root}data/")})


def _check_byte_order(entry: ArchiveEntry | None, read: ReadBytes) -> None:
    if entry is not None and read(entry.offset_bytes, min(entry.size_bytes, 16)) != b"little":
        raise RefusedFile("was written on a machine of the other byte order")


def _answer(fd: int, wanted: Wanted) -> dict[str, Any]:
    try:
        return {
            "values": answer_about(lambda offset, size: _read_exactly(fd, offset, size), os.fstat(fd).st_size, wanted)
        }
    except RefusedFile as error:
        return {"problem": str(error)}
    except MemoryError:
        return {"problem": "takes more memory to describe than any checkpoint does"}
    except OSError as error:
        return {"problem": f"cannot be read: {error.strerror}"}


def _read_exactly(fd: int, offset: int, size: int) -> bytes:
    pieces: list[bytes] = []
    while size > 0 and (piece := os.pread(fd, size, offset)):
        pieces.append(piece)
        offset, size = offset + len(piece), size - len(piece)
    if size:
        raise RefusedFile("became shorter while it was read")
    return b"".join(pieces)


def _frame(answer: dict[str, Any], max_bytes: int) -> bytes:
    content = json.dumps(answer).encode("ascii")
    if len(content) > max_bytes:
        content = json.dumps({"problem": f"needs more than {max_bytes >> 20} MiB to describe"}).encode("ascii")
    return struct.pack("<I", len(content)) + content


def _write_all(content: bytes) -> None:
    view = memoryview(content)
    while view:
        view = view[os.write(1, view) :]


if __name__ == "__main__":
    main()
