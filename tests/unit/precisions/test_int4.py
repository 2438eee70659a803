import hashlib
import json
import os
import subprocess
import sys

import pytest
import torch

from teengined.core.errors import SourceError
from teengined_plugins.precisions.int4 import Int4Precision
from teengined_plugins.precisions.int4_books import book_values
from teengined_plugins.precisions.int4_kernels import Int4Weight, by_blocks, by_digits, fits_digits
from teengined_plugins.precisions.int8 import Int8Precision
from teengined_plugins.precisions.kernel_choice import KernelChoice


def _random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _relative_error(weight: torch.Tensor) -> float:
    decoded = Int4Precision().decode(Int4Precision().encode(weight), torch.float32)
    return float((decoded - weight).norm() / weight.norm())


def test_the_books_are_those_that_packages_were_written_with() -> None:
    digest = hashlib.blake2b(json.dumps(book_values()).encode(), digest_size=8).hexdigest()

    assert digest == "ec38373862b64976"


def test_books_rise_from_their_low_end_to_their_high_end_within_a_byte() -> None:
    for place, book in enumerate(book_values()):
        assert book == sorted(book)
        assert (book[0], book[-1]) == (-book_values()[place // 16 * 17][-1], book_values()[place % 16 * 17][-1])
        assert -127 <= book[0] < 0 < book[-1] <= 127


def test_a_weight_takes_four_and_a_half_bits() -> None:
    assert Int4Precision().stored_bytes((64, 4096)) * 8 / (64 * 4096) == pytest.approx(4.5, abs=0.01)


@pytest.mark.parametrize("scale", [1e-4, 1.0, 300.0])
def test_normal_weights_lose_six_percent(scale: float) -> None:
    assert _relative_error(_random(64, 1024) * scale) < 0.062


def test_an_outlier_costs_its_row_little() -> None:
    weight = _random(64, 1024)
    weight[:, 7] = 12.0

    small = torch.arange(1024) != 7
    decoded = Int4Precision().decode(Int4Precision().encode(weight), torch.float32)
    torch.testing.assert_close(decoded[:, 7], weight[:, 7])
    assert float((decoded - weight)[:, small].norm() / weight[:, small].norm()) < 0.13


def test_no_other_book_would_have_been_nearer() -> None:
    weight = _random(4, 64)
    parts = Int4Precision().encode(weight)
    books = torch.tensor(book_values(), dtype=torch.float32)

    groups = (weight / parts["scale"][:, None]).view(-1, 16)
    errors = (groups[:, None, :, None] - books[None, :, None, :]).abs().amin(-1).square().sum(-1)
    chosen = errors.gather(1, parts["book"].view(-1, 1).long())[:, 0]

    has_largest = groups.abs().amax(1) > 126.9  # whose book must hold it exactly
    assert bool((chosen <= errors.amin(1) * 1.02 + 0.5)[~has_largest].all())


def test_largest_of_each_row_is_kept_exactly() -> None:
    weight = _random(50, 96)

    decoded = Int4Precision().decode(Int4Precision().encode(weight), torch.float32)

    place = weight.abs().argmax(1, keepdim=True)
    torch.testing.assert_close(decoded.gather(1, place), weight.gather(1, place))


def test_stack_of_experts_is_quantised_as_each_alone() -> None:
    stacked = _random(3, 8, 64)

    together = Int4Precision().encode(stacked)

    assert together["scale"].shape == (3, 8)
    assert Int4Precision().decode(together, torch.float32).shape == stacked.shape
    for expert in range(3):
        alone = Int4Precision().encode(stacked[expert])
        assert all(torch.equal(together[name][expert], part) for name, part in alone.items())


def test_widths_that_do_not_pack_are_stored_as_int8() -> None:
    weight = _random(6, 40)

    parts, expected = Int4Precision().encode(weight), Int8Precision().encode(weight)

    assert all(torch.equal(parts[name], part) for name, part in expected.items())


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
def test_weight_that_is_not_finite_is_refused(value: float) -> None:
    weight = _random(4, 64)
    weight[2, 3] = value

    with pytest.raises(SourceError, match="infinities or NaN"):
        Int4Precision().encode(weight)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(2, 32), (300, 1600), (1031, 2048)])
def test_kernels_of_stock_operators_agree_with_the_decoded_weight(dtype: torch.dtype, shape: tuple[int, int]) -> None:
    parts = Int4Precision().encode(_random(*shape))
    weight = Int4Weight(parts["data"], parts["book"], parts["scale"])
    x = _random(5, shape[1], seed=1).to(dtype)
    expected = x.double() @ Int4Precision().decode(parts, torch.float64).T

    kernels = [by_blocks, by_digits] if fits_digits(x, weight) else [by_blocks]
    for kernel in kernels:
        product = kernel(x, weight)
        assert product.dtype == dtype
        assert float((product.double() - expected).norm() / expected.norm()) < {torch.float32: 1e-6}.get(dtype, 1e-2)


def test_choices_are_remembered_by_kind_and_not_by_address() -> None:
    precision = Int4Precision()
    for seed in range(3):
        precision.linear(_random(2, 128).bfloat16(), precision.encode(_random(64, 128, seed=seed)), None)

    assert len(precision.choice.winners()) == 1


def test_unmeasured_strategy_always_uses_the_same_kernel() -> None:
    choice = KernelChoice(measures=False)
    precision = Int4Precision(choice)
    parts = precision.encode(_random(64, 64))

    first, second = (precision.linear(torch.ones(2, 64), parts, None) for _ in range(2))

    assert torch.equal(first, second)
    assert choice.winners() == {}


def test_products_are_right_without_a_compiler() -> None:
    program = (
        "import torch\n"
        "from teengined_plugins.precisions.int4 import Int4Precision\n"
        "from teengined.native.int4_linear import has_int4_linear\n"
        "assert not has_int4_linear()\n"
        "strategy = Int4Precision()\n"
        "parts = strategy.encode(torch.randn(48, 96))\n"
        "x = torch.randn(4, 96)\n"
        "expected = x @ strategy.decode(parts, torch.float32).T\n"
        "torch.testing.assert_close(strategy.linear(x, parts, None), expected, rtol=1e-4, atol=1e-4)\n"
        "torch.testing.assert_close(strategy.linear_fixed(x, parts, None), expected, rtol=1e-4, atol=1e-4)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "TEENGINE_NO_NATIVE": "1"}
    outcome = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=60
    )
    assert outcome.returncode == 0, outcome.stderr
