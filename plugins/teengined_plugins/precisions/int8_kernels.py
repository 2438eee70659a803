"""The kernels that multiply activations with an int8 weight. All leave the activations as they are.

Legend: T rows (tokens), I input features, O output features, G digits.
"""

import functools
from typing import TYPE_CHECKING

from teengined_plugins.precisions.blocks import linear_in_blocks

if TYPE_CHECKING:
    import torch

__all__ = ["MAX_DIGIT_INPUTS", "MIN_DIGIT_INPUTS", "by_blocks", "by_digits", "by_packed_weight", "integers_are_exact"]

# Activations become fixed-point numbers of three signed base-256 digits: as fine, against a row's largest, as fp32.
_NUM_DIGITS = 3
_FIXED_POINT_ONE = 127 * 2**16
_DIGIT_BIAS = 0x808080
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


def by_digits(x_TI: "torch.Tensor", weight_OI: "torch.Tensor", scale_O: "torch.Tensor") -> "torch.Tensor":
    """Split activations into int8 digits and let the integer unit multiply them exactly.

    x = amax * (d0 + 256 d1 + 65536 d2) / (127 * 65536), so that x @ W.T is three integer products. They are exact, so a
    row's result depends neither on its neighbours nor on the order of summation. Its error is that of the split, 2**-24
    of the row's largest activation, which is what one fp32 addition loses. Needs `integers_are_exact`.
    """
    import torch

    x = x_TI.float()
    amax_T1 = x.abs().amax(1, keepdim=True).clamp_min_(1e-30)
    digits_GTI = _digits(x * (_FIXED_POINT_ONE / amax_T1))
    num_rows, num_outputs = x.shape[0], weight_OI.shape[0]
    y_TO = torch.empty((num_rows, num_outputs), dtype=torch.float32, device=x.device)
    block_outputs = max(64, _MAX_SUM_BYTES // (4 * _NUM_DIGITS * max(1, num_rows)))
    for start in range(0, num_outputs, block_outputs):
        end = min(start + block_outputs, num_outputs)
        sums = torch.ops.aten._int_mm(digits_GTI, weight_OI[start:end].T)  # noqa: SLF001 - no public name
        low_TO, middle_TO, high_TO = sums.view(_NUM_DIGITS, num_rows, end - start)
        torch.mul(high_TO.float(), 65536.0, out=y_TO[:, start:end]).add_(middle_TO, alpha=256).add_(low_TO)
    return y_TO.mul_(amax_T1 * (1.0 / _FIXED_POINT_ONE)).mul_(scale_O).to(x_TI.dtype)


def _digits(fixed_TI: "torch.Tensor") -> "torch.Tensor":
    """Return (G*T, I) int8 digits, lowest first, of numbers up to 127 * 65536 in magnitude.

    Adding the bias makes every byte its signed digit plus 128; flipping the top bits takes the 128 off again.
    """
    import torch

    num_rows, num_inputs = fixed_TI.shape
    whole_TI = fixed_TI.round_().to(torch.int32).add_(_DIGIT_BIAS).bitwise_xor_(_DIGIT_BIAS)
    bytes_TI4 = whole_TI.view(torch.int8).view(num_rows, num_inputs, 4)
    return bytes_TI4[..., :_NUM_DIGITS].permute(2, 0, 1).reshape(_NUM_DIGITS * num_rows, num_inputs)


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
