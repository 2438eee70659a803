import random
import struct
import zipfile
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from teengined_plugins.sources.pickled.archive import ArchiveEntry, read_archive
from teengined_plugins.sources.pickled.values import RefusedFile
from tests.fakes.deepspeed_files import write_torch_file
from tests.fakes.hostile_torch_files import archive

PLAIN = archive({"x/data.pkl": b"description", "x/data/0": bytes(range(64)), "x/data/1": b"more"})
CENTRAL = PLAIN.index(b"PK\x01\x02")
END = PLAIN.index(b"PK\x05\x06")


def entries_of(content: bytes) -> dict[str, ArchiveEntry]:
    def read(offset: int, size: int) -> bytes:
        assert 0 <= offset <= offset + size <= len(content), "a reader asks for no byte that is not there"
        return content[offset : offset + size]

    return dict(read_archive(read, len(content)))


def patched(at: int, form: str, value: int) -> bytes:
    content = bytearray(PLAIN)
    struct.pack_into(form, content, at, value)
    return bytes(content)


def test_entries_lie_where_the_library_that_wrote_them_finds_them(tmp_path: Path) -> None:
    path = write_torch_file({"a": torch.randn(5, 3), "b": torch.arange(3)}, tmp_path / "t.pt")
    content = path.read_bytes()
    with zipfile.ZipFile(path) as file:
        expected = {name: file.read(name) for name in file.namelist()}

    found = entries_of(content)

    assert {n: content[e.offset_bytes : e.offset_bytes + e.size_bytes] for n, e in found.items()} == expected


def test_an_archive_with_the_records_of_large_files_is_read() -> None:
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    wide = struct.pack("<4sQ2H2L4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, 3, 3, END - CENTRAL, CENTRAL)
    locator = struct.pack("<4sLQL", b"PK\x06\x07", 0, END, 1)

    assert entries_of(PLAIN[:END] + wide + locator + end) == entries_of(PLAIN)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "no zip archive"),
        (b"\x80\x02}q\x00.", "no zip archive"),
        (PLAIN[: END + 4], "truncated"),
        (PLAIN[:-1], "truncated"),
        (PLAIN[:CENTRAL], "truncated"),
        (archive({"x/data.pkl": bytes(10**6)}, compressed=True), "compressed"),
        (patched(CENTRAL + 8, "<H", 1), "encrypted"),
        (patched(CENTRAL + 24, "<L", 10**9), "claims"),
        (patched(CENTRAL + 42, "<L", 10**6), "truncated"),
        (patched(CENTRAL + 42, "<L", 5), "header"),
        (patched(CENTRAL + 24, "<L", 0xFFFFFFFF), "zip64"),
        (patched(26, "<H", 65535), "header"),
        (patched(28, "<H", 65535), "truncated"),
        (patched(END + 8, "<H", 2), "several"),
        (patched(END + 4, "<H", 1), "several"),
        (patched(END + 16, "<L", 10**6), "truncated or damaged"),
        (patched(END + 12, "<L", 10**6), "truncated or damaged"),
        (patched(END + 16, "<L", 0xFFFFFFFF), "zip64"),
        (PLAIN.replace(b"x/data/1", b"x/data/0"), "listed twice"),
    ],
)
def test_an_archive_that_lies_is_refused(content: bytes, problem: str) -> None:
    with pytest.raises(RefusedFile, match=problem):
        entries_of(content)


def test_entries_that_overlap_are_refused() -> None:
    """A zip bomb: many entries of the directory that share one content."""
    second = PLAIN.index(b"PK\x01\x02", CENTRAL + 1)
    content = bytearray(PLAIN)
    content[CENTRAL + 46 : CENTRAL + 56] = b"x/data/0.."
    struct.pack_into("<L", content, second + 42, 0)
    struct.pack_into("<HH", content, second + 28, 10, 0)

    with pytest.raises(RefusedFile):
        entries_of(bytes(content))
    one = PLAIN[CENTRAL:second]
    twice = PLAIN[:CENTRAL] + one + one + struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 2, 2, 2 * len(one), CENTRAL, 0)
    with pytest.raises(RefusedFile, match="overlaps"):
        entries_of(twice)


@given(at=st.integers(0, len(PLAIN) - 1), value=st.integers(0, 255))
def test_any_altered_byte_gives_entries_in_the_file_or_a_refusal(at: int, value: int) -> None:
    content = bytearray(PLAIN)
    content[at] = value
    try:
        found = entries_of(bytes(content))
    except RefusedFile:
        return
    assert all(e.offset_bytes + e.size_bytes <= len(content) for e in found.values())


@given(seed=st.integers(0, 2**32))
def test_any_bytes_after_a_header_are_refused(seed: int) -> None:
    with pytest.raises(RefusedFile):
        entries_of(b"PK\x03\x04" + random.Random(seed).randbytes(200) + b"PK\x05\x06")
