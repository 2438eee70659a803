import pytest
import torch

from teengined.native import int4_linear
from teengined.native.library import missing_reason

pytestmark = pytest.mark.skipif(not int4_linear.has_int4_linear(), reason=missing_reason() or "no compiled kernels")

SHAPES = [(1, 32), (7, 96), (8, 128), (5, 160), (96, 576), (130, 2048), (12, 4992)]
# Of the norm of the products' magnitudes: what is lost by one, two and three digits.
TOLERANCES = {1: 1e-2, 2: 5e-5, 3: 1e-6}
TABLES = torch.randint(0, 256, (256, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(7))

Weight = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def operands(num_rows: int, shape: tuple[int, int]) -> tuple[torch.Tensor, Weight]:
    generator = torch.Generator().manual_seed(num_rows)
    num_outputs, num_inputs = shape
    codes = torch.randint(0, 256, (num_outputs, num_inputs // 2), dtype=torch.uint8, generator=generator)
    books = torch.randint(0, 256, (num_outputs, num_inputs // 16), dtype=torch.uint8, generator=generator)
    scale_O = torch.rand(num_outputs, generator=generator)
    return torch.randn(num_rows, num_inputs, generator=generator), (codes, books, scale_O)


def decoded(weight: Weight) -> torch.Tensor:
    """The definition, weight by weight."""
    codes, books, scale_O = weight
    rows = []
    for row, held in zip(codes.tolist(), books.tolist(), strict=True):
        places = [row[i // 32 * 16 + i % 16] >> (4 if i % 32 >= 16 else 0) & 15 for i in range(2 * len(row))]
        rows.append([int(TABLES[held[i // 16], place]) - 128 for i, place in enumerate(places)])
    return torch.tensor(rows).double() * scale_O.double()[:, None]


def product(x_TI: torch.Tensor, weight: Weight, num_digits: int = 2) -> torch.Tensor:
    return int4_linear.int4_linear(x_TI, weight, TABLES, num_digits=num_digits)


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("shape", SHAPES)
def test_product_agrees_with_double_precision(shape: tuple[int, int]):
    for num_rows in (1, 2, 3, 5, 17, 100):
        x_TI, weight = operands(num_rows, shape)
        expected = x_TI.double() @ decoded(weight).T
        magnitude = (x_TI.double().abs() @ decoded(weight).abs().T).norm()
        for num_digits, tolerance in TOLERANCES.items():
            y_TO = product(x_TI, weight, num_digits)
            assert (y_TO - expected).norm() <= tolerance * magnitude, (num_rows, num_digits)


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("num_threads", [1, 2])
def test_a_rows_bits_depend_on_the_row_alone(dtype: torch.dtype, num_threads: int):
    x_TI, weight = operands(103, (130, 2208))
    x_TI = x_TI.to(dtype)
    together = product(x_TI, weight)
    threads_before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        alone = torch.cat([product(row_I[None], weight) for row_I in x_TI])
        in_chunks = torch.cat([product(rows, weight) for rows in x_TI.split(7)])
    finally:
        torch.set_num_threads(threads_before)
    assert torch.equal(together, alone)
    assert torch.equal(together, in_chunks)


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("fault", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_with_a_fault_is_marked_and_its_neighbours_are_not(fault: float, dtype: torch.dtype):
    x_TI, weight = operands(5, (12, 96))
    expected = product(x_TI.to(dtype), weight)
    x_TI[3, 7] = fault
    y_TO = product(x_TI.to(dtype), weight)
    assert bool(y_TO[3].isnan().all())
    assert torch.equal(y_TO[[0, 1, 2, 4]], expected[[0, 1, 2, 4]])


@pytest.mark.usefixtures("kernels")
def test_rows_of_a_wider_tensor_are_taken_where_they_lie():
    x_TI, weight = operands(6, (9, 64))
    wide = torch.zeros(6, 100)
    wide[:, 30:94] = x_TI
    assert torch.equal(product(wide[:, 30:94], weight, 3), product(x_TI, weight, 3))


@pytest.mark.usefixtures("kernels")
def test_zeros_stay_zeros():
    _, weight = operands(2, (5, 96))
    assert torch.equal(product(torch.zeros(2, 96), weight), torch.zeros(2, 5))


@pytest.mark.usefixtures("kernels")
def test_extreme_digits_do_not_overflow():
    tables = torch.zeros_like(TABLES)
    weight = (
        torch.zeros(4, 32768, dtype=torch.uint8),
        torch.zeros(4, 4096, dtype=torch.uint8),
        torch.ones(4),
    )
    y_TO = int4_linear.int4_linear(torch.ones(3, 65536), weight, tables, num_digits=1)
    assert torch.equal(y_TO, torch.full((3, 4), -128.0 * 65536))
