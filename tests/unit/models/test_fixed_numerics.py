"""Operations between layers give each row the same bits wherever it lies."""

from collections.abc import Callable, Iterator

import pytest
import torch
from torch.nn import functional

from teengined.models.fixed_numerics import FixedNumerics

# Widths at which rows begin in the middle of a vector.
WIDTHS = (5, 24, 96)
FUNCTIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "sigmoid": torch.sigmoid,
    "silu": functional.silu,
    "gelu": lambda x: functional.gelu(x, approximate="tanh"),
    "softplus": functional.softplus,
    "exp": torch.exp,
    "rsqrt": lambda x: torch.rsqrt(x.abs() + 1),
    "in place": lambda x: x.clone().sigmoid_(),
    "softmax": lambda x: torch.softmax(x, -1, dtype=torch.float32),
    "mean": lambda x: x.pow(2).mean(-1, keepdim=True),
    "layer norm": lambda x: functional.layer_norm(x, (x.shape[-1],)),
    "root mean square norm": lambda x: functional.rms_norm(x, (x.shape[-1],)),
    "product": lambda x: functional.linear(x, torch.linspace(-1, 1, 8 * x.shape[1], dtype=x.dtype).view(8, -1)),
}


@pytest.fixture(autouse=True)
def _inference() -> Iterator[None]:
    with torch.inference_mode():
        yield


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_row_is_the_same_alone_and_among_others(name: str, dtype: torch.dtype) -> None:
    for width in WIDTHS:
        x = (torch.randn(64, width, generator=torch.Generator().manual_seed(width)) * 3).to(dtype)
        with FixedNumerics():
            together = FUNCTIONS[name](x)
            later = FUNCTIONS[name](x[3:])
            alone = torch.cat([FUNCTIONS[name](row) for row in x.split(1)])

        assert torch.equal(together, alone), width
        assert torch.equal(together[3:], later), width


@pytest.mark.parametrize("name", FUNCTIONS)
def test_it_is_still_the_same_function(name: str) -> None:
    x = torch.randn(7, 24, generator=torch.Generator().manual_seed(0))
    with FixedNumerics():
        fixed = FUNCTIONS[name](x)

    torch.testing.assert_close(fixed, FUNCTIONS[name](x))


def test_an_operation_in_place_changes_its_tensor() -> None:
    x = torch.randn(3, 5)
    with FixedNumerics():
        returned = x.sigmoid_()

    assert returned.data_ptr() == x.data_ptr()
    assert ((x > 0) & (x < 1)).all()


def test_no_rows_are_no_rows() -> None:
    with FixedNumerics():
        assert functional.silu(torch.empty(0, 4)).shape == (0, 4)
        assert functional.linear(torch.empty(0, 4), torch.ones(3, 4)).shape == (0, 3)
