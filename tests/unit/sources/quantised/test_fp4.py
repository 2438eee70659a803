import pytest
import torch
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from teengined.core.errors import SourceError
from teengined_plugins.sources.quantised.fp4 import open_mxfp4
from teengined_plugins.sources.quantised.packing import E2M1_VALUES, unpack_e2m1, unpack_integers
from teengined_plugins.sources.quantised.scheme import StoredTensors
from teengined_plugins.sources.safetensors_file import FileTensor


def stored(tensors: dict[str, torch.Tensor]) -> StoredTensors:
    entries = {
        n: FileTensor(dtype="U8", shape=tuple(t.shape), offset_bytes=0, size_bytes=0) for n, t in tensors.items()
    }
    return StoredTensors(tensors=entries, read=tensors.__getitem__)


def test_transformers_unpacks_the_same_experts_to_the_bit() -> None:
    blocks = torch.randint(0, 256, (3, 1030, 5, 16), dtype=torch.uint8)
    tensors = {"e.down_proj_blocks": blocks, "e.down_proj_scales": torch.randint(0, 250, (3, 1030, 5)).to(torch.uint8)}

    (made,) = open_mxfp4({}, stored(tensors))
    values = made.read(tensors.__getitem__)

    assert (made.name, made.shape) == ("e.down_proj", (3, 160, 1030))
    assert torch.equal(values, convert_moe_packed_tensors(blocks, tensors["e.down_proj_scales"]))
    assert values.dtype is torch.bfloat16


@pytest.mark.parametrize(
    "shapes", [((2, 4, 3, 8), (2, 4, 3)), ((2, 4, 3, 16), (2, 4, 2)), ((2, 4, 16), (2, 4)), ((2, 4, 3, 16), None)]
)
def test_blocks_and_scales_of_other_shapes_are_refused(
    shapes: tuple[tuple[int, ...], tuple[int, ...] | None],
) -> None:
    tensors = {"e_blocks": torch.zeros(shapes[0], dtype=torch.uint8)}
    if shapes[1] is not None:
        tensors["e_scales"] = torch.zeros(shapes[1], dtype=torch.uint8)
    with pytest.raises(SourceError, match="tensor e"):
        open_mxfp4({}, stored(tensors))


def test_every_code_has_the_value_of_its_bits() -> None:
    """Sign, two bits of exponent biased by one, one of mantissa; no exponent: no leading one."""
    for code, value in enumerate(E2M1_VALUES):
        sign, exponent, mantissa = -1.0 if code & 8 else 1.0, code >> 1 & 3, code & 1
        assert value == sign * ((1 + mantissa / 2) * 2.0 ** (exponent - 1) if exponent else mantissa / 2)
    assert unpack_e2m1(torch.tensor([[0x72]], dtype=torch.uint8)).tolist() == [[1.0, 6.0]]


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_numbers_come_out_of_words_lowest_bits_first(bits: int) -> None:
    words = torch.tensor([[0x12345678, -2]], dtype=torch.int32)
    expected = [
        (word & 0xFFFFFFFF) >> shift & ((1 << bits) - 1) for word in (0x12345678, -2) for shift in range(0, 32, bits)
    ]

    assert unpack_integers(words, bits).tolist() == [expected]
