from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open

from teengined.core.errors import InternalError
from teengined.core.model import UnitKind
from teengined.modelpack.unitfile import PartBytes, UnitFileWriter, header_room_bytes
from teengined.modelpack.verify import check_unit


def part(name: str, size: int, fill: int = 7, kind: str = "data") -> PartBytes:
    return PartBytes(parameter=name, part=kind, dtype="U8", shape=(size,), content=bytes([fill]) * size)


@given(st.lists(st.lists(st.integers(0, 9000), max_size=4), min_size=1, max_size=4))
def test_any_sizes_make_a_valid_file_of_aligned_sealed_units(
    tmp_path_factory: pytest.TempPathFactory, units: list[list[int]]
) -> None:
    directory = tmp_path_factory.mktemp("file")
    (directory / "units").mkdir()
    names = [f"{unit}.{index}" for unit, sizes in enumerate(units) for index in range(len(sizes))]
    specs = []
    with UnitFileWriter(directory, "x.safetensors", header_room_bytes(names)) as writer:
        for unit, sizes in enumerate(units):
            for index, size in enumerate(sizes):
                writer.add(part(f"{unit}.{index}", size, index + 1))
            specs.append(writer.end_unit("head", UnitKind.HEAD))
    content = (directory / "units" / "x.safetensors").read_bytes()
    assert len(content) % 4096 == 0
    for spec in specs:
        check_unit(spec, content[spec.offset_bytes : spec.offset_bytes + spec.size_bytes])
    with safe_open(directory / "units" / "x.safetensors", "pt") as file:
        for unit, sizes in enumerate(units):
            for index, size in enumerate(sizes):
                assert torch.equal(file.get_tensor(f"{unit}.{index}"), torch.full((size,), index + 1).to(torch.uint8))


def test_parts_and_experts_have_keys_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "units").mkdir()
    with UnitFileWriter(tmp_path, "x.safetensors", 4096) as writer:
        writer.add(part("w", 10))
        writer.add(part("w", 10, kind="scale"))
        writer.end_unit("layer.0", UnitKind.LAYER, layer=0)
        writer.add(part("w", 10), expert=3)
        writer.end_unit("layer.0.expert.3", UnitKind.EXPERT, layer=0, expert=3)
    with safe_open(tmp_path / "units" / "x.safetensors", "pt") as file:
        assert {"w", "w:scale", "w[3]"} <= set(file.keys())


@pytest.mark.parametrize("shape", [(11,), (2, 4)])
def test_bytes_that_do_not_agree_with_their_shape_are_a_mistake_of_ours(shape: tuple[int, ...], tmp_path: Path) -> None:
    (tmp_path / "units").mkdir()
    wrong = PartBytes(parameter="w", part="data", dtype="U8", shape=shape, content=bytes(10))
    with pytest.raises(InternalError, match="do not agree"), UnitFileWriter(tmp_path, "x", 4096) as writer:
        writer.add(wrong)


def test_a_header_that_outgrows_its_room_is_a_mistake_of_ours(tmp_path: Path) -> None:
    (tmp_path / "units").mkdir()
    writer = UnitFileWriter(tmp_path, "x", 4096)
    for index in range(100):
        writer.add(part(f"parameter.{index}", 1))
    writer.end_unit("head", UnitKind.HEAD)
    with pytest.raises(InternalError, match="exceeds its room"):
        writer.close()
    writer.abandon()
