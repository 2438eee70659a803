import pytest
import torch

from teengined.native.int8_linear import has_int8_linear, int8_linear
from teengined.native.library import missing_reason

pytestmark = pytest.mark.skipif(
    not has_int8_linear(), reason=missing_reason() or "this processor has no byte products (AVX-512 VNNI)"
)

SHAPES = [(1, 1), (7, 5), (4, 64), (5, 65), (96, 100), (130, 2048), (12, 4999)]
# Of the norm: what is lost by one, two and three digits.
TOLERANCES = {1: 2e-2, 2: 1e-4, 3: 2e-6}


def operands(num_rows: int, shape: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(num_rows)
    weight_OI = torch.randint(-127, 128, shape, dtype=torch.int8, generator=generator)
    return torch.randn(num_rows, shape[1], generator=generator), weight_OI, torch.rand(shape[0], generator=generator)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("num_rows", [1, 2, 3, 5, 17, 100, 200])
@pytest.mark.parametrize("num_digits", [1, 2, 3])
def test_product_agrees_with_double_precision(num_rows: int, shape: tuple[int, int], num_digits: int):
    x_TI, weight_OI, scale_O = operands(num_rows, shape)
    expected = x_TI.double() @ (weight_OI.double() * scale_O.double()[:, None]).T
    y_TO = int8_linear(x_TI, weight_OI, scale_O, num_digits=num_digits)
    assert (y_TO - expected).norm() <= TOLERANCES[num_digits] * expected.norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("num_threads", [1, 2])
def test_a_rows_bits_depend_on_the_row_alone(dtype: torch.dtype, num_threads: int):
    x_TI, weight_OI, scale_O = operands(37, (130, 300))
    x_TI = x_TI.to(dtype)
    together = int8_linear(x_TI, weight_OI, scale_O, num_digits=2)
    threads_before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        alone = torch.cat([int8_linear(row_I[None], weight_OI, scale_O, num_digits=2) for row_I in x_TI])
    finally:
        torch.set_num_threads(threads_before)
    assert torch.equal(together, alone)


@pytest.mark.parametrize("fault", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_with_a_fault_is_marked_and_its_neighbours_are_not(fault: float, dtype: torch.dtype):
    x_TI, weight_OI, scale_O = operands(5, (12, 100))
    expected = int8_linear(x_TI.to(dtype), weight_OI, scale_O, num_digits=2)
    x_TI[3, 7] = fault
    y_TO = int8_linear(x_TI.to(dtype), weight_OI, scale_O, num_digits=2)
    assert bool(y_TO[3].isnan().all())
    assert torch.equal(y_TO[[0, 1, 2, 4]], expected[[0, 1, 2, 4]])


def test_rows_of_a_wider_tensor_are_taken_where_they_lie():
    x_TI, weight_OI, scale_O = operands(6, (9, 40))
    wide = torch.zeros(6, 100)
    wide[:, 30:70] = x_TI
    expected = int8_linear(x_TI, weight_OI, scale_O, num_digits=3)
    assert torch.equal(int8_linear(wide[:, 30:70], weight_OI, scale_O, num_digits=3), expected)


def test_zeros_stay_zeros():
    y_TO = int8_linear(torch.zeros(2, 70), torch.ones(5, 70, dtype=torch.int8), torch.ones(5), num_digits=2)
    assert torch.equal(y_TO, torch.zeros(2, 5))


def test_extreme_digits_do_not_overflow():
    x_TI = torch.ones(3, 65536)
    weight_OI = torch.full((4, 65536), -127, dtype=torch.int8)
    y_TO = int8_linear(x_TI, weight_OI, torch.ones(4), num_digits=1)
    assert torch.equal(y_TO, torch.full((3, 4), -127.0 * 65536))
