"""Random contents have the form that a conversion would write, for every precision, and differ by their number."""

from dataclasses import replace

import pytest
import torch

from teengined.core.model import TensorSpec
from teengined.interfaces.precision import PrecisionStrategy
from teengined.interfaces.registry import PluginRegistry
from teengined.modelpack import random_content
from teengined.modelpack.encoding import ParameterEncoder
from teengined.modelpack.outline import ParameterOutline, Role
from teengined.modelpack.random_content import RandomContent
from teengined.modelpack.unitfile import PartBytes
from teengined.weights.unit_views import dtype_of

PRECISIONS = PluginRegistry.load().precisions()


@pytest.fixture(params=list(PRECISIONS))
def precision(request: pytest.FixtureRequest) -> PrecisionStrategy:
    return PRECISIONS[request.param]


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make matrices of a test have several blocks and a tail."""
    monkeypatch.setattr(random_content, "_BLOCK_VALUES", 64 * 128)


def matrix(rows: int, width: int, role: Role = Role.MATRIX) -> ParameterOutline:
    shape = (width, rows) if role is Role.TRANSPOSED else (rows, width)
    return ParameterOutline(name="w.weight", role=role, dtype=torch.bfloat16, shape=shape)


def parts_of(precision: PrecisionStrategy, *parameters: ParameterOutline, number: int = 0) -> list[PartBytes]:
    return list(RandomContent(ParameterEncoder(precision), seed=7).parts(parameters, number))


def tensor_of(part: PartBytes) -> torch.Tensor:
    spec = TensorSpec(
        parameter=part.parameter, part=part.part, dtype=part.dtype, shape=part.shape, offset_bytes=0, size_bytes=0
    )
    return torch.frombuffer(bytearray(part.content), dtype=torch.uint8).view(dtype_of(spec)).view(part.shape)


@pytest.mark.parametrize("role", [Role.MATRIX, Role.TRANSPOSED])
@pytest.mark.parametrize("rows", [32, 64, 256, 300])
def test_parts_have_the_shapes_and_dtypes_that_a_conversion_writes(
    precision: PrecisionStrategy, rows: int, role: Role
) -> None:
    parameter = matrix(rows, 128, role)
    converted = list(ParameterEncoder(precision).parts(parameter, torch.randn(parameter.shape)))

    made = parts_of(precision, parameter, number=3)

    form = [(part.parameter, part.part, part.dtype, part.shape, memoryview(part.content).nbytes) for part in made]
    assert form == [
        (part.parameter, part.part, part.dtype, part.shape, memoryview(part.content).nbytes) for part in converted
    ]


@pytest.mark.parametrize("number", [0, 1, 63, 64, 10_000_000])
def test_a_product_with_a_random_matrix_keeps_the_size_of_its_input(precision: PrecisionStrategy, number: int) -> None:
    stored = {part.part: tensor_of(part) for part in parts_of(precision, matrix(300, 128), number=number)}

    weight = precision.decode(stored, torch.float32)

    assert weight.shape == (300, 128)
    assert float(weight.var()) == pytest.approx(1 / 128, rel=0.1)


def test_the_same_number_gives_the_same_bytes_and_another_gives_others(precision: PrecisionStrategy) -> None:
    unit = (matrix(64, 128), matrix(128, 64))
    made = {}
    for number in [*range(0, 200, 7), 64 * 128, 64 * 128 + 1]:
        content = tuple(bytes(part.content) for part in parts_of(precision, *unit, number=number))
        assert content == tuple(bytes(part.content) for part in parts_of(precision, *unit, number=number))
        made[content] = number

    assert len(made) == len([*range(0, 200, 7)]) + 2


def test_gains_are_ones_and_other_vectors_are_zeros(precision: PrecisionStrategy) -> None:
    gain = ParameterOutline(name="norm.weight", role=Role.PLAIN, dtype=torch.bfloat16, shape=(16,))
    bias = replace(gain, name="q_proj.bias")

    one, zero = (tensor_of(part) for part in parts_of(precision, gain, bias))

    assert one.eq(1).all()
    assert zero.eq(0).all()
