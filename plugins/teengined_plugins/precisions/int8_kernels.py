"""The kernels that multiply activations with an int8 weight. All leave the activations as they are.

Legend: T rows (tokens), I input features, O output features, G digits.
"""

import functools
from typing import TYPE_CHECKING

from teengined.native.bf16_linear import bf16_linear, has_bf16_linear
from teengined.native.int8_linear import MAX_INPUTS, has_int8_linear, int8_linear
from teengined_plugins.precisions.blocks import linear_in_blocks

if TYPE_CHECKING:
    import torch

__all__ = [
    "MAX_DIGIT_INPUTS",
    "MIN_DIGIT_INPUTS",
    "by_blocks",
    "by_digits",
    "by_halves",
    "by_native",
    "by_packed_weight",
    "fits_halves",
    "fits_native",
    "integers_are_exact",
    "num_digits_of",
]

# Activations become fixed-point numbers of signed base-256 digits: two are finer, against a row's largest, than the
# eight bits of bf16; three are as fine as fp32, and more than fp16 has.
_NUM_DIGITS = {"bfloat16": 2, "float16": 3, "float32": 3}
# Sums of products of two int8 numbers stay exact in int32 up to here.
MAX_DIGIT_INPUTS = 2**31 // 128**2
# Below, the integer product takes a transposed matrix for a plain one (at one input), and nothing is gained anyway.
MIN_DIGIT_INPUTS = 16
# Enough rows for each of the library's code paths; a width with a rest.
_PROBED_ROWS = (3, 24, 96)
_PROBED_INPUTS, _PROBED_OUTPUTS = 144, 48
# Bytes of int32 sums held at a time.
_MAX_SUM_BYTES = 16 * 2**20


def by_blocks(x_TI: "torch.Tensor", weight_OI: "torch.Tensor", scale_O: "torch.Tensor") -> "torch.Tensor":
    """Decode a block of weight rows at a time and multiply. Works for every dtype and device."""
    import torch

    if x_TI.dtype == torch.float16 and x_TI.device.type == "cpu":
        return by_blocks(x_TI.float(), weight_OI, scale_O).to(x_TI.dtype)
    # Integers up to 127 are exact in every dtype, so that the scale is applied once, to sums.
    y_TO = linear_in_blocks(x_TI, weight_OI, lambda start, end: weight_OI[start:end].to(x_TI.dtype))
    return y_TO.mul_(scale_O) if y_TO.dtype == scale_O.dtype else (y_TO * scale_O).to(x_TI.dtype)


@functools.cache
def integers_are_exact() -> bool:
    """Say whether this CPU's int8 products are exact, as they are with the instructions made for them (VNNI).

    Without them the library adds pairs of products in 16 bits, and large ones come out wrong without a word.
    """
    return all(_product_is_exact(num_rows) for num_rows in _PROBED_ROWS)


def by_packed_weight(x_TI: "torch.Tensor", weight_OI: "torch.Tensor", scale_O: "torch.Tensor") -> "torch.Tensor":
    """Use torch's own weight-only kernel, which reads each weight once. Fast at few rows of bf16."""
    import torch

    return torch.ops.aten._weight_int8pack_mm(x_TI, weight_OI, scale_O.to(x_TI.dtype))  # noqa: SLF001 - no public name


def by_native(x_TI: "torch.Tensor", weight_OI: "torch.Tensor", scale_O: "torch.Tensor") -> "torch.Tensor":
    """Do as `by_digits` in one compiled function, which reads each weight once. Needs `fits_native`."""
    return int8_linear(x_TI, weight_OI, scale_O, num_digits=num_digits_of(x_TI.dtype))


def fits_native(x_TI: "torch.Tensor", weight_OI: "torch.Tensor") -> bool:
    """Say whether `by_native` can multiply these."""
    import torch

    is_plain = x_TI.device.type == "cpu" and x_TI.dtype in (torch.float32, torch.bfloat16)
    return is_plain and weight_OI.shape[1] <= MAX_INPUTS and weight_OI.is_contiguous() and has_int8_linear()


def by_halves(x_TI: "torch.Tensor", weight_OI: "torch.Tensor", scale_O: "torch.Tensor") -> "torch.Tensor":
    """Multiply in bf16, which holds every int8 exactly, in one compiled function. Ahead from about ten rows on.

    The products are exact and summed in fp32. Needs `fits_halves`.
    """
    return bf16_linear(x_TI, weight_OI, scale_O)


def fits_halves(x_TI: "torch.Tensor", weight_OI: "torch.Tensor") -> bool:
    """Say whether `by_halves` can multiply these."""
    import torch

    is_bf16 = x_TI.device.type == "cpu" and x_TI.dtype == torch.bfloat16
    return is_bf16 and weight_OI.is_contiguous() and has_bf16_linear()


def num_digits_of(dtype: "torch.dtype") -> int:
    """Return how many digits stand for an activation of this dtype."""
    return _NUM_DIGITS[str(dtype).removeprefix("torch.")]


def by_digits(x_TI: "torch.Tensor", weight_OI: "torch.Tensor", scale_O: "torch.Tensor") -> "torch.Tensor":
    """Split activations into int8 digits and let the integer unit multiply them exactly.

    With G digits, x = amax * (d0 + 256 d1 + 65536 d2 …) / (127 * 256^(G-1)), so that x @ W.T is G integer products.
    They are exact, so a row's result depends neither on its neighbours nor on the order of summation. With three
    digits its error is that of the split, 2**-24 of the row's largest activation, which is what one fp32 addition
    loses. Needs `integers_are_exact`.
    """
    import torch

    num_digits = num_digits_of(x_TI.dtype)
    one = 127 * 256 ** (num_digits - 1)
    x = x_TI.float()
    amax_T1 = x.abs().amax(1, keepdim=True).clamp_min_(1e-30)
    digits_GTI = _digits(x * (one / amax_T1), num_digits)
    num_rows, num_outputs = x.shape[0], weight_OI.shape[0]
    y_TO = torch.empty((num_rows, num_outputs), dtype=torch.float32, device=x.device)
    block_outputs = max(64, _MAX_SUM_BYTES // (4 * num_digits * max(1, num_rows)))
    for start in range(0, num_outputs, block_outputs):
        end = min(start + block_outputs, num_outputs)
        sums = torch.ops.aten._int_mm(digits_GTI, weight_OI[start:end].T)  # noqa: SLF001 - no public name
        *lower, highest_TO = sums.view(num_digits, num_rows, end - start)
        total_TO = y_TO[:, start:end].copy_(highest_TO)
        for lower_TO in reversed(lower):
            total_TO.mul_(256).add_(lower_TO)
    return y_TO.mul_(amax_T1 * (1.0 / one)).mul_(scale_O).to(x_TI.dtype)


def _digits(fixed_TI: "torch.Tensor", num_digits: int) -> "torch.Tensor":
    """Return (G*T, I) int8 digits, lowest first, of numbers up to 127 * 256^(G-1) in magnitude.

    Adding the bias makes every byte its signed digit plus 128; flipping the top bits takes the 128 off again.
    """
    import torch

    num_rows, num_inputs = fixed_TI.shape
    bias = int.from_bytes(b"\x80" * num_digits, "big")
    whole_TI = fixed_TI.round_().to(torch.int32).add_(bias).bitwise_xor_(bias)
    bytes_TI4 = whole_TI.view(torch.int8).view(num_rows, num_inputs, 4)
    return bytes_TI4[..., :num_digits].permute(2, 0, 1).reshape(num_digits * num_rows, num_inputs)


def _product_is_exact(num_rows: int) -> bool:
    import torch

    generator = torch.Generator().manual_seed(num_rows)
    left = torch.randint(-128, 128, (num_rows, _PROBED_INPUTS), dtype=torch.int8, generator=generator)
    right = torch.randint(-127, 128, (_PROBED_OUTPUTS, _PROBED_INPUTS), dtype=torch.int8, generator=generator)
    # Of one sign and largest, so that every partial sum is.
    left[0], right[0], right[1] = 127, 127, -127
    try:
        product = torch.ops.aten._int_mm(left, right.T)  # noqa: SLF001 - no public name
    except RuntimeError:
        return False
    return torch.equal(product.long(), left.long() @ right.long().T)
