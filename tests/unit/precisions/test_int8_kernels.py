import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from teengined_plugins.precisions.int8_kernels import (
    MIN_DIGIT_INPUTS,
    by_blocks,
    by_digits,
    by_packed_weight,
    integers_are_exact,
)

# A processor whose integer products saturate never gets to them; the tests of `by_digits` would fail there.
needs_exact_integers = pytest.mark.skipif(not integers_are_exact(), reason="this CPU's int8 products saturate")
ON_AN_OLDER_CPU = """
import torch
from teengined_plugins.precisions.int8 import Int8Precision
from teengined_plugins.precisions.int8_kernels import integers_are_exact
precision = Int8Precision()
parts = precision.encode(torch.randn(64, 128))
x = torch.randn(4, 128)
product = precision.linear(x, parts, None)
right = torch.allclose(product, x @ precision.decode(parts, torch.float32).T, atol=1e-4)
print(integers_are_exact(), right)
"""


def _operands(num_rows: int, num_inputs: int, num_outputs: int, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(num_rows, num_inputs, generator=generator)
    weight = torch.randint(-127, 128, (num_outputs, num_inputs), dtype=torch.int8, generator=generator)
    return x, weight, torch.rand(num_outputs, generator=generator) + 0.01


def _exact(x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    return (x.double() @ weight.double().T) * scale.double()


@needs_exact_integers
@settings(max_examples=60)
@given(
    num_rows=st.integers(1, 20),
    num_inputs=st.integers(MIN_DIGIT_INPUTS, 200),
    num_outputs=st.integers(2, 90),
    magnitude=st.floats(-30, 30),
    seed=st.integers(0, 2**31),
)
def test_digits_lose_no_more_than_their_last_place(
    num_rows: int, num_inputs: int, num_outputs: int, magnitude: float, seed: int
) -> None:
    x, weight, scale = _operands(num_rows, num_inputs, num_outputs, seed)
    x = x * 2.0**magnitude

    product = by_digits(x, weight, scale)

    # Half a last place of each activation, times the weights it meets; and the rounding of the fp32 result itself.
    largest = x.abs().amax(1, keepdim=True).double()
    exact = _exact(x, weight, scale)
    bound = largest / 2**23 * weight.double().abs().sum(1) * scale.double() + exact.abs() * 2**-21
    assert bool(((product.double() - exact).abs() <= bound).all())


@needs_exact_integers
def test_digits_of_a_row_are_bit_equal_whatever_runs_beside_it() -> None:
    x, weight, scale = _operands(300, 256, 500)
    whole = by_digits(x, weight, scale)

    assert torch.equal(by_digits(x[:1], weight, scale), whole[:1])
    assert torch.equal(by_digits(x[7:30], weight, scale), whole[7:30])


@needs_exact_integers
def test_digits_of_many_outputs_are_taken_in_blocks_without_a_seam() -> None:
    x, weight, scale = _operands(600, 32, 5000)  # sums of 36 MB, held 16 MB at a time

    product = by_digits(x, weight, scale)

    torch.testing.assert_close(product.double(), _exact(x, weight, scale), rtol=1e-5, atol=1e-3)


@needs_exact_integers
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_largest_weights_and_activations_do_not_overflow(dtype: torch.dtype) -> None:
    x = torch.full((2, 8192), 3.0, dtype=dtype)
    weight, scale = torch.full((4, 8192), 127, dtype=torch.int8), torch.full((4,), 1e-3)

    product = by_digits(x, weight, scale)

    torch.testing.assert_close(product.double(), _exact(x, weight, scale), rtol=5e-3, atol=0)


@needs_exact_integers
def test_row_of_zeros_gives_zeros() -> None:
    x, weight, scale = _operands(3, 64, 64)
    x[1] = 0

    assert torch.count_nonzero(by_digits(x, weight, scale)[1]) == 0


@needs_exact_integers
def test_activations_that_are_not_finite_are_not_hidden() -> None:
    x, weight, scale = _operands(3, 64, 64)
    x[0, 5], x[1, 5] = float("inf"), float("nan")

    product = by_digits(x, weight, scale)

    assert not bool(torch.isfinite(product[0]).any())
    assert not bool(torch.isfinite(product[1]).any())
    assert bool(torch.isfinite(product[2]).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_blocks_agree_with_the_exact_product(dtype: torch.dtype) -> None:
    x, weight, scale = _operands(5, 300, 5000)
    x = x.to(dtype)

    product = by_blocks(x, weight, scale)

    assert product.dtype == dtype
    exact = _exact(x, weight, scale)
    assert float((product.double() - exact).norm() / exact.norm()) < {torch.float32: 1e-6}.get(dtype, 1e-2)


def test_packed_weight_agrees_with_the_exact_product() -> None:
    x, weight, scale = _operands(5, 320, 200)
    x = x.bfloat16()

    exact = _exact(x, weight, scale)

    assert float((by_packed_weight(x, weight, scale).double() - exact).norm() / exact.norm()) < 1e-2


def test_cpu_without_instructions_for_int8_does_without_digits() -> None:
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2"}
    done = subprocess.run(
        [sys.executable, "-c", ON_AN_OLDER_CPU], env=environment, capture_output=True, text=True, check=True, timeout=60
    )

    assert done.stdout.split()[1] == "True"
