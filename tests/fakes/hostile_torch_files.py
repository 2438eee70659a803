"""Builds `.pt` files byte by byte: pickles that no library would write, in archives that lie."""

import io
import struct
import zipfile
from collections.abc import Mapping

__all__ = ["archive", "call", "in_a_file", "mention", "pickled", "storage", "tensor", "text"]


def pickled(body: bytes) -> bytes:
    """Return `body` between the opcodes that begin and end a pickle."""
    return b"\x80\x02" + body + b"."


def text(value: str) -> bytes:
    """Return the opcode that pushes a text."""
    content = value.encode()
    return b"X" + struct.pack("<I", len(content)) + content


def mention(module: str, name: str) -> bytes:
    """Return the opcode that pushes what a name means."""
    return f"c{module}\n{name}\n".encode()


def call(module: str, name: str, *arguments: bytes) -> bytes:
    """Return the opcodes that call a name."""
    return mention(module, name) + b"(" + b"".join(arguments) + b"tR"


def storage(key: str, count: int, kind: str = "FloatStorage") -> bytes:
    """Return the opcodes that refer to a storage."""
    size = b"\x8a\x08" + struct.pack("<q", count)
    return b"(" + text("storage") + mention("torch", kind) + text(key) + text("cpu") + size + b"tQ"


def tensor(of: bytes, offset: int, shape: tuple[int, ...], strides: tuple[int, ...]) -> bytes:
    """Return the opcodes that describe a tensor in a storage."""

    def numbers(values: tuple[int, ...]) -> bytes:
        return b"(" + b"".join(b"\x8a\x08" + struct.pack("<q", value) for value in values) + b"t"

    place = b"\x8a\x08" + struct.pack("<q", offset)
    hooks = mention("collections", "OrderedDict") + b")R"
    return call("torch._utils", "_rebuild_tensor_v2", of, place, numbers(shape), numbers(strides), b"\x89", hooks)


def archive(entries: Mapping[str, bytes], *, compressed: bool = False) -> bytes:
    """Return a zip archive of `entries`."""
    content = io.BytesIO()
    method = zipfile.ZIP_DEFLATED if compressed else zipfile.ZIP_STORED
    with zipfile.ZipFile(content, "w", method) as file:
        for name, data in entries.items():
            file.writestr(name, data)
    return content.getvalue()


def in_a_file(body: bytes, storages: Mapping[str, bytes] | None = None) -> bytes:
    """Return a `.pt` file whose description is `pickled(body)`."""
    data = {f"x/data/{key}": content for key, content in (storages or {}).items()}
    return archive({"x/data.pkl": pickled(body), "x/byteorder": b"little", **data})
