"""Values times scales, where a scale belongs to a block of rows and columns: fp8 and int8 of every granularity."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

__all__ = ["block_shape", "scale_values", "scaled"]

# Values unpacked at a time, beside the result.
_CHUNK_VALUES = 2 << 20


def block_shape(shape: tuple[int, int], grid: tuple[int, int], wanted: Sequence[int] | None = None) -> tuple[int, int]:
    """Return how many rows and columns share a scale.

    `wanted` is what the configuration says; its last blocks may be cut short. Where it does not fit (checkpoints mix
    granularities), the grid itself says it, if it divides the matrix evenly.

    Raises:
        ValueError: neither does.
    """
    if wanted is not None and len(wanted) == 2 and min(wanted) > 0:
        rows, columns = int(wanted[0]), int(wanted[1])
        if (-(-shape[0] // rows), -(-shape[1] // columns)) == grid:
            return rows, columns
    if 0 in grid or shape[0] % grid[0] or shape[1] % grid[1]:
        raise ValueError(f"a grid of {list(grid)} scales does not divide a matrix of {list(shape)}")
    return shape[0] // grid[0], shape[1] // grid[1]


def scale_values(scale: "torch.Tensor") -> "torch.Tensor":
    """Return scales in fp32; bytes are exponents, biased by 127 (E8M0)."""
    import torch

    if scale.dtype == torch.uint8:
        return torch.exp2(scale.float() - 127.0)
    return scale.float()


def scaled(
    values: "torch.Tensor",
    scale: "torch.Tensor",
    *,
    wanted: Sequence[int] | None = None,
    zero: "torch.Tensor | None" = None,
    unpack: "Callable[[torch.Tensor], torch.Tensor] | None" = None,
) -> "torch.Tensor":
    """Return `(values - zero) * scale` in fp32.

    Args:
        values: (…, R, C), of any dtype; (…, R, W) where they are packed.
        scale: one value, one a row, or a grid (…, r, c); for a stack also one value a matrix.
        wanted: rows and columns that share a scale, where that is known.
        zero: of the scale's shape; for one matrix only.
        unpack: makes (i, C) values of some rows (i, W).

    Raises:
        ValueError: shapes do not fit.
    """
    import torch

    columns = values.shape[-1] if unpack is None else unpack(values.reshape(-1, values.shape[-1])[:1]).shape[-1]
    out = torch.empty(*values.shape[:-1], columns, dtype=torch.float32)
    how = _How(wanted=wanted, unpack=unpack)
    if values.ndim > 2 and zero is None:
        flat, target = values.reshape(-1, *values.shape[-2:]), out.view(-1, *out.shape[-2:])
        alike = scale.numel() == 1
        scales = scale.reshape(1).expand(len(flat)) if alike else scale.reshape(len(flat), *scale.shape[1:])
        for index in range(flat.shape[0]):
            _scale_matrix(flat[index], _grid(scales[index], flat.shape[1]), target[index], how)
        return out
    how = replace(how, zero=None if zero is None else _grid(zero, values.shape[0]))
    _scale_matrix(values, _grid(scale, values.shape[0]), out, how)
    return out


@dataclass(frozen=True, slots=True, kw_only=True)
class _How:
    wanted: Sequence[int] | None
    unpack: "Callable[[torch.Tensor], torch.Tensor] | None"
    zero: "torch.Tensor | None" = None


def _grid(scale: "torch.Tensor", rows: int) -> "torch.Tensor":
    if scale.numel() == 1:
        return scale.reshape(1, 1)
    if scale.ndim == 1 and scale.shape[0] == rows:
        return scale.reshape(rows, 1)
    if scale.ndim != 2:
        raise ValueError(f"scales of shape {list(scale.shape)} do not belong to {rows} rows")
    return scale


def _scale_matrix(values: "torch.Tensor", grid: "torch.Tensor", out: "torch.Tensor", how: _How) -> None:
    import torch

    num_rows, num_columns = out.shape
    rows, columns = block_shape((num_rows, num_columns), (grid.shape[0], grid.shape[1]), how.wanted)
    column_of = torch.arange(num_columns) // columns
    step = max(1, _CHUNK_VALUES // max(num_columns, 1))
    for start in range(0, num_rows, step):
        row_of = torch.arange(start, min(start + step, num_rows)) // rows
        chunk = values[start : start + step]
        chunk = (chunk if how.unpack is None else how.unpack(chunk)).float()
        if how.zero is not None:
            chunk = chunk - how.zero[row_of].float()[:, column_of]
        torch.mul(chunk, scale_values(grid[row_of])[:, column_of], out=out[start : start + step])
