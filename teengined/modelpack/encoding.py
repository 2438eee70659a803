"""Turns one parameter into the bytes of its stored parts: through the precision strategy, or as it is."""

from collections.abc import Iterator

import torch

from teengined.core.errors import InternalError, SourceError
from teengined.interfaces.precision import PrecisionStrategy
from teengined.modelpack.layout import tensor_bytes
from teengined.modelpack.outline import ParameterOutline, Role
from teengined.modelpack.unitfile import PartBytes

__all__ = ["ParameterEncoder", "dtype_name"]

_DTYPE_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
}
_FP16_LARGEST = 65504.0
# Values encoded at a time: 32 MB in fp32, large enough that the number of calls does not matter.
_BLOCK_VALUES = 8 * 2**20


def dtype_name(dtype: torch.dtype) -> str:
    """Return the dtype's name in safetensors.

    Raises:
        InternalError: a dtype that packages cannot hold.
    """
    if dtype not in _DTYPE_NAMES:
        raise InternalError(f"tensors of {dtype} cannot be stored in a package")
    return _DTYPE_NAMES[dtype]


class ParameterEncoder:
    """Encodes parameters with one strategy. Holds no tensor between calls."""

    def __init__(self, strategy: PrecisionStrategy) -> None:
        """Encode matrices with `strategy`."""
        self._strategy = strategy

    def stored_bytes(self, parameter: ParameterOutline) -> int:
        """Return the bytes that the parameter (one expert's slice of it) takes, without alignment."""
        if parameter.role is Role.PLAIN:
            return tensor_bytes(dtype_name(parameter.dtype), parameter.shape)
        return self._strategy.stored_bytes(parameter.stored_shape)

    def parts(self, parameter: ParameterOutline, tensor: torch.Tensor) -> Iterator[PartBytes]:
        """Yield the stored parts of `tensor`, `data` first.

        Raises:
            SourceError: the shape is not the model's, or values do not survive the encoding; names the parameter.
        """
        if tuple(tensor.shape) != parameter.shape:
            raise SourceError(
                f"tensor {parameter.name}: the checkpoint has shape {tuple(tensor.shape)}, "
                f"the model of its config.json needs {parameter.shape}"
            )
        target = None if parameter.role is Role.MATRIX or parameter.role is Role.TRANSPOSED else parameter.dtype
        self._check_values(parameter.name, tensor, fp16=(target or self._matrix_dtype()) is torch.float16)
        if target is not None:
            yield _as_bytes(parameter.name, "data", tensor.to(target))
            return
        encoded = self._encode_by_rows(tensor.T if parameter.role is Role.TRANSPOSED else tensor)
        del tensor
        for part in sorted(encoded, key=lambda name: (name != "data", name)):
            yield _as_bytes(parameter.name, part, encoded.pop(part))

    def _encode_by_rows(self, matrix: torch.Tensor) -> dict[str, torch.Tensor]:
        """Encode a block of rows at a time: a strategy's temporaries are several times what it gets.

        Every part is indexed by row, as `PrecisionStrategy.embedding` relies on, so blocks can be joined.
        """
        rows = max(1, _BLOCK_VALUES // max(matrix.shape[1], 1))
        blocks = [dict(self._strategy.encode(block.contiguous())) for block in matrix.split(rows)]
        if len(blocks) == 1:
            return blocks[0]
        return {part: torch.cat([block.pop(part) for block in blocks]) for part in list(blocks[0])}

    def _matrix_dtype(self) -> torch.dtype | None:
        return torch.float16 if self._strategy.name == "fp16" else None

    @staticmethod
    def _check_values(name: str, tensor: torch.Tensor, *, fp16: bool) -> None:
        if not tensor.is_floating_point() or not tensor.numel():
            return
        lowest, highest = (value.item() for value in torch.aminmax(tensor))
        largest = max(abs(lowest), abs(highest))
        if not largest < float("inf"):
            raise SourceError(f"tensor {name}: holds values that are not finite numbers (NaN or infinity)")
        if fp16 and largest > _FP16_LARGEST:
            raise SourceError(
                f"tensor {name}: its largest value {largest:.3g} is beyond fp16, which ends at {_FP16_LARGEST:.0f}",
                hint="convert with --precision bf16, int8 or fp32",
            )


def _as_bytes(parameter: str, part: str, tensor: torch.Tensor) -> PartBytes:
    dense = tensor.detach().contiguous()
    flat = dense.reshape(-1).view(torch.uint8) if dense.numel() else torch.empty(0, dtype=torch.uint8)
    return PartBytes(
        parameter=parameter,
        part=part,
        dtype=dtype_name(tensor.dtype),
        shape=tuple(tensor.shape),
        content=flat.numpy().data,
    )
