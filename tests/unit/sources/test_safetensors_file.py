import json
import struct
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from teengined.core.errors import SourceError
from teengined_plugins.sources.safetensors_file import SafetensorsFile


def write(path: Path, header: object, body: bytes = b"", *, length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + body)
    return path


def entry(begin: int, end: int, shape: list[int], dtype: str = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def test_tensors_are_read_as_the_library_wrote_them(tmp_path: Path) -> None:
    tensors = {
        "a": torch.randn(3, 5),
        "b": torch.randn(7).bfloat16(),
        "scalar": torch.tensor(2.5, dtype=torch.float16),
        "ids": torch.arange(4),
        "none": torch.empty(0, 4),
    }
    save_file(tensors, tmp_path / "x.safetensors")
    file = SafetensorsFile(tmp_path / "x.safetensors")
    assert sorted(file.tensors) == sorted(tensors)
    for name, tensor in tensors.items():
        assert torch.equal(file.read(name), tensor)
    file.close()
    file.close()


@pytest.mark.parametrize(
    ("header", "body", "problem"),
    [
        ({"t": entry(0, 16, [2, 2])}, b"1234", "truncated"),
        ({"t": entry(0, 8, [2, 2])}, b"12345678", "takes 16"),
        ({"t": entry(0, 16, [4]), "u": entry(8, 24, [4])}, bytes(24), "overlaps"),
        ({"t": entry(0, 16, [4]), "u": entry(0, 16, [4])}, bytes(16), "overlaps"),
        ({"t": entry(0, 16, [4]), "u": entry(20, 36, [4])}, bytes(36), "gap"),
        ({"t": entry(0, 16, [4])}, bytes(20), "4 bytes after the last tensor"),
        ({"t": entry(16, 0, [4])}, bytes(16), "data_offsets"),
        ({"t": entry(-16, 0, [4])}, bytes(16), "data_offsets"),
        ({"t": {"dtype": "F32", "shape": [4]}}, bytes(16), "data_offsets"),
        ({"t": entry(0, 16, [-4])}, bytes(16), "shape"),
        ({"t": entry(0, 16, [1] * 9)}, bytes(16), "shape"),
        ({"t": {"dtype": "F32", "shape": [4.0], "data_offsets": [0, 16]}}, bytes(16), "shape"),
        ({"t": {"dtype": "F32", "shape": [True], "data_offsets": [0, 4]}}, bytes(4), "shape"),
        ({"t": entry(0, 16, [2**62, 2**62])}, bytes(16), "takes"),
        ({"t": entry(0, 16, [4], dtype="OBJECT")}, bytes(16), "dtype"),
        ({"t": [1, 2]}, b"", "not a JSON object"),
        ([1, 2], b"", "header is not a JSON object"),
        (b'{"t": {', b"", "not JSON"),
        (b'{"t":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"t":{}}', b"1", "listed twice"),
        (b"[" * 100_000, b"", "not JSON"),
        (b"\xff\xfe{}", b"", "not JSON"),
    ],
)
def test_a_header_that_lies_is_refused_with_file_and_reason(
    header: object, body: bytes, problem: str, tmp_path: Path
) -> None:
    path = write(tmp_path / "bad.safetensors", header, body)
    with pytest.raises(SourceError, match=problem) as refused:
        SafetensorsFile(path)
    assert "bad.safetensors" in refused.value.message


@pytest.mark.parametrize("length", [2**63, 10**9, 101, 1, 0])
def test_a_header_length_that_lies_is_refused_before_anything_is_allocated(length: int, tmp_path: Path) -> None:
    path = write(tmp_path / "bad.safetensors", b"{}" + bytes(50), length=length)
    with pytest.raises(SourceError, match=r"bad\.safetensors"):
        SafetensorsFile(path)


@pytest.mark.parametrize("size", [0, 3, 8])
def test_a_file_too_short_for_a_header_is_refused(size: int, tmp_path: Path) -> None:
    (tmp_path / "short.safetensors").write_bytes(bytes(size))
    with pytest.raises(SourceError, match="no safetensors file"):
        SafetensorsFile(tmp_path / "short.safetensors")


@given(st.data())
def test_no_damage_gets_past_as_anything_but_a_source_error(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("fuzz") / "x.safetensors"
    save_file({"first": torch.arange(6.0).reshape(2, 3), "second": torch.arange(3)}, path)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    try:
        file = SafetensorsFile(path)
    except SourceError:
        return
    assert all(file.read(name).numel() <= len(content) for name in file.tensors)
    file.close()


def test_a_file_that_shrinks_while_it_is_read_is_an_error_not_a_crash(tmp_path: Path) -> None:
    save_file({"t": torch.zeros(1000)}, tmp_path / "x.safetensors")
    file = SafetensorsFile(tmp_path / "x.safetensors")
    with (tmp_path / "x.safetensors").open("r+b") as handle:
        handle.truncate(500)
    with pytest.raises(SourceError, match="shorter"):
        file.read("t")
    file.close()
