import pytest
import torch

from teengined.native.bf16_linear import bf16_linear, has_bf16_linear
from teengined.native.library import missing_reason

pytestmark = pytest.mark.skipif(
    not has_bf16_linear(), reason=missing_reason() or "this processor has no bf16 products (AVX-512 BF16)"
)

SHAPES = [(1, 1), (7, 5), (4, 64), (5, 33), (96, 100), (130, 2048), (12, 4999)]


def operands(num_rows: int, shape: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(num_rows)
    x_TI = torch.randn(num_rows, shape[1], generator=generator).bfloat16()
    return x_TI, torch.randn(shape, generator=generator).bfloat16()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("num_rows", [1, 2, 3, 5, 17, 64, 65, 200])
def test_product_agrees_with_double_precision(num_rows: int, shape: tuple[int, int]):
    x_TI, weight_OI = operands(num_rows, shape)
    expected = x_TI.double() @ weight_OI.double().T
    assert (bf16_linear(x_TI, weight_OI) - expected).norm() <= 4e-3 * expected.norm()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("num_rows", [1, 3, 16, 40, 130])
def test_an_int8_weight_is_multiplied_as_the_numbers_it_stands_for(num_rows: int, shape: tuple[int, int]):
    x_TI, weight_OI = operands(num_rows, shape)
    whole_OI, scale_O = (weight_OI * 40).clamp(-127, 127).to(torch.int8), torch.rand(shape[0]) + 0.5
    expected = x_TI.double() @ (whole_OI.double() * scale_O[:, None]).T
    assert (bf16_linear(x_TI, whole_OI, scale_O) - expected).norm() <= 4e-3 * expected.norm()


@pytest.mark.parametrize("num_threads", [1, 2])
def test_a_rows_bits_depend_on_the_row_alone(num_threads: int):
    x_TI, weight_OI = operands(70, (130, 1300))
    together = bf16_linear(x_TI, weight_OI, is_fixed=True)
    threads_before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        alone = torch.cat([bf16_linear(row_I[None], weight_OI, is_fixed=True) for row_I in x_TI])
    finally:
        torch.set_num_threads(threads_before)
    assert torch.equal(together, alone)


@pytest.mark.parametrize("fault", [float("nan"), float("inf")])
def test_a_row_with_a_fault_spoils_itself_only(fault: float):
    x_TI, weight_OI = operands(5, (12, 100))
    expected = bf16_linear(x_TI, weight_OI)
    x_TI[3, 7] = fault
    y_TO = bf16_linear(x_TI, weight_OI)
    assert not bool(y_TO[3].isfinite().any())
    assert torch.equal(y_TO[[0, 1, 2, 4]], expected[[0, 1, 2, 4]])


def test_rows_of_a_wider_tensor_are_taken_where_they_lie():
    x_TI, weight_OI = operands(6, (9, 40))
    wide = torch.zeros(6, 100, dtype=torch.bfloat16)
    wide[:, 30:70] = x_TI
    assert torch.equal(bf16_linear(wide[:, 30:70], weight_OI), bf16_linear(x_TI, weight_OI))
