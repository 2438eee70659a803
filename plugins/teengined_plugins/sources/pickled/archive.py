"""The zip archive around a `.pt` file: where each entry lies. Nothing is ever unpacked.

torch stores every entry as it is, so that a storage is a range of the file. An archive that compresses or encrypts,
whose entries overlap, or whose numbers lie, is refused. Source of the layout: PKWARE's APPNOTE, sections 4.3 and 4.5.
"""

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from teengined_plugins.sources.pickled.values import RefusedFile

__all__ = ["ArchiveEntry", "ReadBytes", "read_archive"]

ReadBytes = Callable[[int, int], bytes]
"""Offset and size -> exactly that many bytes of the file, which the caller has seen to be there."""

# A storage a parameter: the largest checkpoints have some hundred thousand.
_MAX_ENTRIES = 1_000_000
_MAX_DIRECTORY_BYTES = 256 << 20
_MAX_NAME_BYTES = 1024

_END = struct.Struct("<4s4H2LH")
_END64_LOCATOR = struct.Struct("<4sLQL")
_END64 = struct.Struct("<4sQ2H2L4Q")
_CENTRAL = struct.Struct("<4s6H3L5H2L")
_LOCAL = struct.Struct("<4s5H3L2H")
_MAX_COMMENT_BYTES = 0xFFFF
_SEE_ZIP64 = 0xFFFFFFFF
_ENCRYPTED = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class ArchiveEntry:
    """Where an entry's content lies in the file."""

    offset_bytes: int
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Listed:
    name: bytes
    header_bytes: int
    """Offset of its local header."""
    size_bytes: int


def read_archive(read: ReadBytes, file_bytes: int) -> Mapping[str, ArchiveEntry]:
    """Return the entries of the archive by name, each held to lie in the file and apart from all others.

    Raises:
        RefusedFile: it is no complete zip archive of uncompressed entries.
    """
    start, size, count = _find_directory(read, file_bytes)
    if count > _MAX_ENTRIES or size > _MAX_DIRECTORY_BYTES:
        raise RefusedFile(f"claims {count} entries in a directory of {size} bytes")
    listed = _list_directory(read(start, size), count)
    entries: dict[str, ArchiveEntry] = {}
    end = 0
    for one in sorted(listed, key=lambda entry: entry.header_bytes):
        name = one.name.decode("utf-8", errors="replace")
        if one.header_bytes < end:
            raise RefusedFile(f"entry {name!r:.120} overlaps another")
        entry = _locate(read, one, start)
        end = entry.offset_bytes + entry.size_bytes
        if name in entries:
            raise RefusedFile(f"entry {name!r:.120} is listed twice")
        entries[name] = entry
    return entries


def _find_directory(read: ReadBytes, file_bytes: int) -> tuple[int, int, int]:
    """Return offset and size of the central directory, and how many entries it has."""
    if file_bytes < _END.size or read(0, 4) != b"PK\x03\x04":
        raise RefusedFile("is no zip archive, as torch has written since version 1.6: damaged, or of an older form")
    tail_start = max(0, file_bytes - _END.size - _MAX_COMMENT_BYTES)
    tail = read(tail_start, file_bytes - tail_start)
    position = tail.rfind(b"PK\x05\x06")
    if position < 0 or len(tail) - position < _END.size:
        raise RefusedFile("is truncated: the archive's directory, at the end, is missing")
    end_at = tail_start + position
    _, disk, start_disk, here, count, size, start, _ = _END.unpack_from(tail, position)
    limit = end_at
    if _SEE_ZIP64 in (size, start) or count == 0xFFFF:
        limit, size, start, here, count = _find_directory64(read, end_at)
        disk = start_disk = 0
    if disk or start_disk or here != count:
        raise RefusedFile("is one part of an archive in several")
    if start + size > limit:
        raise RefusedFile("is truncated or damaged: the archive's directory does not lie where it should")
    return start, size, count


def _find_directory64(read: ReadBytes, end_at: int) -> tuple[int, int, int, int, int]:
    """Return the offset of zip64's end record, then size, offset and both counts of the directory."""
    locator_at = end_at - _END64_LOCATOR.size
    if locator_at < 0:
        raise RefusedFile("is truncated: its zip64 record is missing")
    mark, _, record_at, _ = _END64_LOCATOR.unpack(read(locator_at, _END64_LOCATOR.size))
    if mark != b"PK\x06\x07" or record_at + _END64.size > locator_at:
        raise RefusedFile("is damaged: its zip64 record does not lie where it should")
    mark, _, _, _, disk, start_disk, here, count, size, start = _END64.unpack(read(record_at, _END64.size))
    if mark != b"PK\x06\x06" or disk or start_disk:
        raise RefusedFile("is damaged: its zip64 record is none")
    return record_at, size, start, here, count


def _list_directory(content: bytes, count: int) -> list[_Listed]:
    listed: list[_Listed] = []
    position = 0
    for _ in range(count):
        if position + _CENTRAL.size > len(content):
            raise RefusedFile(f"is damaged: its directory ends after {len(listed)} of {count} entries")
        fields = _CENTRAL.unpack_from(content, position)
        mark, flags, method = fields[0], fields[3], fields[4]
        packed, size, name_bytes, extra_bytes, comment_bytes = fields[8:13]
        name = content[position + _CENTRAL.size :][:name_bytes]
        extra = content[position + _CENTRAL.size + name_bytes :][:extra_bytes]
        if mark != b"PK\x01\x02" or name_bytes > _MAX_NAME_BYTES:
            raise RefusedFile(f"is damaged: entry {len(listed)} of its directory is none")
        if method or flags & _ENCRYPTED:
            what = "compressed" if method else "encrypted"
            raise RefusedFile(f"entry {name!r:.120} is {what}; only entries stored as they are can be read by range")
        size, packed, header = _wide((size, packed, fields[16]), extra)
        if size != packed:
            raise RefusedFile(f"entry {name!r:.120} claims {packed} bytes for a content of {size}")
        listed.append(_Listed(name=name, header_bytes=header, size_bytes=size))
        position += _CENTRAL.size + name_bytes + extra_bytes + comment_bytes
    return listed


def _wide(sizes: tuple[int, int, int], extra: bytes) -> tuple[int, int, int]:
    """Replace the fields that zip64 moves into the extra field: size, packed size, offset, those that are marked."""
    if _SEE_ZIP64 not in sizes:
        return sizes
    position = 0
    while position + 4 <= len(extra):
        kind, length = struct.unpack_from("<2H", extra, position)
        position += 4
        if kind == 1:
            words = [word for (word,) in struct.iter_unpack("<Q", extra[position : position + length // 8 * 8])]
            if sizes.count(_SEE_ZIP64) > len(words):
                break
            size, packed, header = (words.pop(0) if size == _SEE_ZIP64 else size for size in sizes)
            return size, packed, header
        position += length
    raise RefusedFile("is damaged: an entry lacks its zip64 sizes")


def _locate(read: ReadBytes, one: _Listed, directory_at: int) -> ArchiveEntry:
    """Return where the content lies, by the entry's local header."""
    name = one.name.decode("utf-8", errors="replace")
    names_at = one.header_bytes + _LOCAL.size
    if names_at + len(one.name) > directory_at:
        raise RefusedFile(f"entry {name!r:.120} begins beyond the archive's content, which is truncated")
    header = read(one.header_bytes, _LOCAL.size + len(one.name))
    fields = _LOCAL.unpack_from(header)
    if fields[0] != b"PK\x03\x04" or fields[3] or fields[9] != len(one.name) or header[_LOCAL.size :] != one.name:
        raise RefusedFile(f"entry {name!r:.120}: its own header is not what the directory says")
    offset = names_at + fields[9] + fields[10]
    if offset + one.size_bytes > directory_at:
        raise RefusedFile(f"entry {name!r:.120} ends beyond the archive's content, which is truncated")
    return ArchiveEntry(offset_bytes=offset, size_bytes=one.size_bytes)
