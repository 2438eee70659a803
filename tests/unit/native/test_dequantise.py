"""Stored weights as plain numbers are, bit for bit, what torch's operators make of them."""

import pytest
import torch

from teengined.native import dequantise as native_dequantise
from teengined.native.dequantise import can_dequantise, dequantise
from teengined.native.library import kernel_library, missing_reason
from teengined_plugins.precisions.int4 import Int4Precision
from teengined_plugins.precisions.int4_codes import decode_rows
from teengined_plugins.precisions.int8 import Int8Precision

pytestmark = pytest.mark.skipif(kernel_library() is None, reason=missing_reason() or "there are no kernels")

DTYPES = (torch.float32, torch.bfloat16)


def weight(num_outputs: int, num_inputs: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(num_outputs * num_inputs)
    rows = torch.randn(num_outputs, num_inputs, generator=generator)
    return rows * torch.logspace(-6, 3, num_outputs)[:, None]


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("num_threads", [1, 2])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("num_inputs", [1, 15, 16, 47, 64, 1000])
def test_bytes_times_their_scale(num_inputs: int, dtype: torch.dtype, num_threads: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        strategy = Int8Precision()
        parts = strategy.encode(weight(37, num_inputs))
        matrix = strategy.native_matrix(parts)
        assert matrix is not None
        expected = (parts["data"].float() * parts["scale"][:, None]).to(dtype)
        assert torch.equal(dequantise(matrix, dtype), expected)
    finally:
        torch.set_num_threads(before)


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("num_inputs", [32, 96, 1024])
def test_codes_looked_up_times_their_scale(num_inputs: int, dtype: torch.dtype) -> None:
    strategy = Int4Precision()
    parts = strategy.encode(weight(37, num_inputs))
    matrix = strategy.native_matrix(parts)
    assert matrix is not None
    values = decode_rows(parts["data"], parts["book"]).float()
    assert torch.equal(dequantise(matrix, dtype), (values * parts["scale"][:, None]).to(dtype))


@pytest.mark.parametrize("strategy", [Int8Precision(), Int4Precision()], ids=["int8", "int4"])
def test_strategies_decode_large_weights_with_it_and_slices_without(strategy: Int8Precision | Int4Precision) -> None:
    parts = strategy.encode(weight(600, 256))
    whole = strategy.decode(parts, torch.bfloat16)
    pieces = [
        strategy.decode({name: part[row : row + 1] for name, part in parts.items()}, torch.bfloat16)
        for row in range(600)
    ]
    assert torch.equal(whole, torch.cat(pieces))


def test_it_is_offered_for_large_matrices_of_the_dtypes_that_it_makes() -> None:
    assert can_dequantise(torch.empty(512, 512), torch.bfloat16)
    assert not can_dequantise(torch.empty(8, 8), torch.bfloat16)
    assert not can_dequantise(torch.empty(512, 512), torch.float16)
    assert not can_dequantise(torch.empty(2, 512, 512), torch.float32)


@pytest.mark.parametrize("strategy", [Int8Precision(), Int4Precision()], ids=["int8", "int4"])
def test_what_lies_on_another_device_has_nothing_compiled(
    strategy: Int8Precision | Int4Precision, monkeypatch: pytest.MonkeyPatch
) -> None:
    def compiles() -> None:
        raise AssertionError("compiled")

    parts = {name: part.to("meta") for name, part in strategy.encode(weight(600, 256)).items()}
    monkeypatch.setattr(native_dequantise, "kernel_library", compiles)
    assert strategy.decode(parts, torch.bfloat16).shape == (600, 256)
