"""Every installed precision strategy against the contract: what is stored, what it stands for, and products with it."""

import pytest
import torch

from teengined.interfaces.precision import PrecisionStrategy
from teengined.interfaces.registry import PluginRegistry

PRECISIONS = PluginRegistry.load().precisions()
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# Error of a product against the same product in float64 with the decoded weight, as a share of its norm.
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}


@pytest.fixture(params=list(PRECISIONS))
def precision(request: pytest.FixtureRequest) -> PrecisionStrategy:
    return PRECISIONS[request.param]


@pytest.fixture(params=DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param


def _random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _error(product: torch.Tensor, x: torch.Tensor, weight: torch.Tensor) -> float:
    expected = x.double() @ weight.double().T
    return float((product.double() - expected).norm() / expected.norm().clamp_min(1e-12))


@pytest.mark.parametrize("shape", [(1,), (7,), (1, 1), (33, 65), (64, 128), (5, 1)])
def test_stored_bytes_are_what_the_parts_take(precision: PrecisionStrategy, shape: tuple[int, ...]) -> None:
    parts = precision.encode(_random(*shape))

    assert precision.stored_bytes(shape) == sum(part.nbytes for part in parts.values())


@pytest.mark.parametrize("num_inputs", [65, 64])
def test_parts_are_contiguous_on_the_cpu_and_indexed_by_row(precision: PrecisionStrategy, num_inputs: int) -> None:
    weight = _random(num_inputs, 33).T
    parts = precision.encode(weight)

    assert "data" in parts
    rows = precision.encode(weight[[3, 30]])
    assert all(torch.equal(part[[3, 30]], rows[name]) for name, part in parts.items())
    assert all(part.is_contiguous() and part.device.type == "cpu" for part in parts.values())


@pytest.mark.parametrize("source_dtype", DTYPES)
def test_decoded_weight_is_near_the_encoded_one(precision: PrecisionStrategy, source_dtype: torch.dtype) -> None:
    weight = _random(48, 96).to(source_dtype)

    decoded = precision.decode(precision.encode(weight), torch.float32)

    largest = weight.float().abs().amax(1, keepdim=True)
    assert float(((decoded - weight.float()).abs() / largest).max()) <= precision.max_storing_error


def test_encoding_what_was_decoded_changes_nothing_more(precision: PrecisionStrategy) -> None:
    once = precision.decode(precision.encode(_random(16, 64)), torch.float32)

    twice = precision.decode(precision.encode(once), torch.float32)

    torch.testing.assert_close(twice, once, rtol=1e-6, atol=1e-6)


def test_vector_is_stored_unquantised(precision: PrecisionStrategy) -> None:
    vector = _random(100)

    decoded = precision.decode(precision.encode(vector), torch.float32)

    torch.testing.assert_close(decoded, vector, rtol=2**-8, atol=0)


def test_row_of_zeros_stays_zero(precision: PrecisionStrategy, dtype: torch.dtype) -> None:
    weight = _random(8, 64)
    weight[3] = 0

    decoded = precision.decode(precision.encode(weight), dtype)

    assert decoded.dtype == dtype
    assert torch.count_nonzero(decoded[3]) == 0


@pytest.mark.parametrize("num_rows", [1, 2, 8, 17, 64, 130])
@pytest.mark.parametrize("shape", [(64, 64), (192, 64), (96, 320), (33, 65)])
def test_product_agrees_with_the_decoded_weight(
    precision: PrecisionStrategy, dtype: torch.dtype, num_rows: int, shape: tuple[int, int]
) -> None:
    parts = precision.encode(_random(*shape))
    x = _random(num_rows, shape[1], seed=1).to(dtype)

    for _ in range(2):  # measured first, remembered then
        product = precision.linear(x, parts, None)

        assert (product.dtype, product.shape) == (dtype, (num_rows, shape[0]))
        assert _error(product, x, precision.decode(parts, torch.float32)) <= TOLERANCE[dtype]


def test_row_does_not_depend_on_its_neighbours(precision: PrecisionStrategy, dtype: torch.dtype) -> None:
    parts = precision.encode(_random(128, 64))
    x = _random(40, 64, seed=1).to(dtype)
    x[1:] *= 1000

    alone, among = precision.linear(x[:1], parts, None), precision.linear(x, parts, None)[:1]

    limit = 2 * TOLERANCE[dtype] * float(alone.double().norm())
    assert float((alone.double() - among.double()).norm()) <= limit


def test_activations_with_outliers_keep_their_small_elements(precision: PrecisionStrategy, dtype: torch.dtype) -> None:
    weight = _random(64, 64)
    weight[:, 0] = 0  # the outlier meets no weight, so that only the others show
    parts = precision.encode(weight)
    x = _random(4, 64, seed=1).to(dtype)
    x[:, 0] = 3000

    product = precision.linear(x, parts, None)

    assert _error(product, x, precision.decode(parts, torch.float32)) <= max(TOLERANCE[dtype], 1e-3)


def test_bias_is_added_in_the_dtype_of_the_activations(precision: PrecisionStrategy, dtype: torch.dtype) -> None:
    parts = precision.encode(_random(96, 64))
    x, bias = _random(5, 64, seed=1).to(dtype), torch.full((96,), 8.0)

    product = precision.linear(x, parts, bias)

    assert product.dtype == dtype
    expected = precision.linear(x, parts, None).float() + 8
    torch.testing.assert_close(product.float(), expected, rtol=2**-7, atol=2**-5)


def test_operands_are_left_as_they_were(precision: PrecisionStrategy, dtype: torch.dtype) -> None:
    parts = precision.encode(_random(96, 64))
    x, bias = _random(5, 64, seed=1).to(dtype), _random(96)
    before = {name: part.clone() for name, part in parts.items()}, x.clone(), bias.clone()

    precision.linear(x, parts, bias)

    assert all(torch.equal(parts[name], part) for name, part in before[0].items())
    assert torch.equal(x, before[1])
    assert torch.equal(bias, before[2])


def test_no_rows_give_no_rows(precision: PrecisionStrategy, dtype: torch.dtype) -> None:
    parts = precision.encode(_random(96, 64))

    assert precision.linear(torch.empty(0, 64, dtype=dtype), parts, None).shape == (0, 96)


def test_weight_may_change_under_its_address(precision: PrecisionStrategy, dtype: torch.dtype) -> None:
    first, second = precision.encode(_random(96, 64)), precision.encode(_random(96, 64, seed=2))
    x = _random(3, 64, seed=1).to(dtype)
    precision.linear(x, first, None)

    for name, part in first.items():
        part.copy_(second[name])  # as a streaming buffer is reused
    product = precision.linear(x, first, None)

    assert _error(product, x, precision.decode(second, torch.float32)) <= TOLERANCE[dtype]


def test_weight_may_be_a_view_into_a_unit(precision: PrecisionStrategy, dtype: torch.dtype) -> None:
    parts = precision.encode(_random(96, 64))
    unit = torch.zeros(sum(part.nbytes + 64 for part in parts.values()) + 64, dtype=torch.uint8)
    views, offset = {}, 64
    for name, part in parts.items():
        views[name] = unit[offset : offset + part.nbytes].view(part.dtype).view(part.shape)
        views[name].copy_(part)
        offset += -(-part.nbytes // 64) * 64
    x = _random(9, 64, seed=1).to(dtype)

    product = precision.linear(x, views, None)

    assert _error(product, x, precision.decode(parts, torch.float32)) <= TOLERANCE[dtype]


def test_embedding_returns_the_rows_of_the_decoded_weight(precision: PrecisionStrategy, dtype: torch.dtype) -> None:
    parts = precision.encode(_random(50, 24))
    ids = torch.tensor([3, 3, 49, 0])

    rows = precision.embedding(ids, parts, dtype)

    assert torch.equal(rows, precision.decode(parts, dtype)[ids])


@pytest.mark.parametrize("num_threads", [1, 2])
@pytest.mark.parametrize("shape", [(1, 1), (33, 65), (96, 256), (200, 1024)])
def test_fixed_product_of_a_row_depends_on_the_row_alone(
    precision: PrecisionStrategy, dtype: torch.dtype, shape: tuple[int, int], num_threads: int
) -> None:
    parts, bias = precision.encode(_random(*shape)), _random(shape[0], seed=2)
    x = _random(37, shape[1], seed=1).to(dtype)
    together = precision.linear_fixed(x, parts, bias)
    threads_before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        alone = torch.cat([precision.linear_fixed(row[None], parts, bias) for row in x])
        in_chunks = torch.cat([precision.linear_fixed(rows, parts, bias) for rows in x.split(5)])
    finally:
        torch.set_num_threads(threads_before)

    assert torch.equal(together, alone)
    assert torch.equal(together, in_chunks)


@pytest.mark.parametrize("num_rows", [0, 1, 16, 37])
def test_fixed_product_agrees_with_the_plain_one(
    precision: PrecisionStrategy, dtype: torch.dtype, num_rows: int
) -> None:
    parts, bias = precision.encode(_random(96, 256)), _random(96, seed=2)
    x = _random(num_rows, 256, seed=1).to(dtype)

    product = precision.linear_fixed(x, parts, bias)

    assert product.shape == (num_rows, 96)
    assert product.dtype == dtype
    weight = precision.decode(parts, torch.float32)
    assert _error(product - bias.to(dtype), x, weight) <= 2 * TOLERANCE[dtype] or num_rows == 0
