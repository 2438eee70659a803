import pytest
import torch

from teengined.core.errors import SourceError
from teengined_plugins.precisions.bf16 import Bf16Precision
from teengined_plugins.precisions.fp16 import Fp16Precision
from teengined_plugins.precisions.fp32 import Fp32Precision


def test_fp32_product_is_torchs_own_bit_for_bit() -> None:
    weight, x, bias = torch.randn(96, 64), torch.randn(5, 64), torch.randn(96)
    precision = Fp32Precision()

    product = precision.linear(x, precision.encode(weight), bias)

    assert torch.equal(product, torch.nn.functional.linear(x, weight, bias))


def test_stored_tensor_is_handed_out_without_a_copy() -> None:
    parts = Bf16Precision().encode(torch.randn(4, 4))

    assert Bf16Precision().decode(parts, torch.bfloat16).data_ptr() == parts["data"].data_ptr()


def test_value_beyond_the_range_of_fp16_is_refused_with_a_way_out() -> None:
    weight = torch.ones(4, 4)
    weight[1, 2] = -70000.0

    with pytest.raises(SourceError, match=r"7e\+04 does not fit float16") as raised:
        Fp16Precision().encode(weight)

    assert "bf16" in raised.value.hint


def test_infinity_that_was_there_before_stays() -> None:
    weight = torch.full((2, 2), float("inf"))

    assert torch.equal(Fp16Precision().encode(weight)["data"], weight.half())


def test_fp16_product_on_a_cpu_is_rounded_once() -> None:
    precision = Fp16Precision()
    parts = precision.encode(torch.randn(600, 2000))
    x = torch.randn(3, 2000).half()

    product = precision.linear(x, parts, None)

    exact = x.float() @ parts["data"].float().T
    torch.testing.assert_close(product.float(), exact, rtol=2**-10, atol=1e-4)
