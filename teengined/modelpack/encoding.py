"""Turns one parameter into the bytes of its stored parts: through the precision strategy, or as it is."""

from collections.abc import Iterator, Mapping
from dataclasses import replace

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
    """Encodes parameters, each with the strategy chosen for it. Holds no tensor between calls."""

    def __init__(
        self, strategy: PrecisionStrategy, chosen: Mapping[tuple[str, int | None], PrecisionStrategy] | None = None
    ) -> None:
        """Encode matrices with `strategy`, but for those that `chosen` names by parameter and expert."""
        self.base = strategy
        self._chosen = chosen or {}

    def strategy_of(self, parameter: ParameterOutline, expert: int | None = None) -> PrecisionStrategy:
        """Return the strategy of a matrix."""
        return self._chosen.get((parameter.name, expert), self.base)

    def stored_bytes(self, parameter: ParameterOutline, expert: int | None = None) -> int:
        """Return the bytes that the parameter (one expert's slice of it) takes, without alignment."""
        if parameter.role is Role.PLAIN:
            return tensor_bytes(dtype_name(parameter.dtype), parameter.shape)
        return self.strategy_of(parameter, expert).stored_bytes(parameter.stored_shape)

    def total_bytes(self, parameter: ParameterOutline) -> int:
        """Return the bytes that the parameter takes, all its experts together."""
        experts = range(parameter.num_experts) if parameter.num_experts else (None,)
        return sum(self.stored_bytes(parameter, expert) for expert in experts)

    def parts(
        self, parameter: ParameterOutline, tensor: torch.Tensor, expert: int | None = None
    ) -> Iterator[PartBytes]:
        """Yield the stored parts of `tensor`, `data` first.

        Raises:
            SourceError: the shape is not the model's, or values do not survive the encoding; names the parameter.
        """
        if tuple(tensor.shape) != parameter.shape:
            raise SourceError(
                f"tensor {parameter.name}: the checkpoint has shape {tuple(tensor.shape)}, "
                f"the model of its config.json needs {parameter.shape}"
            )
        if parameter.role is Role.PLAIN:
            self._check_values(parameter.name, tensor, fp16=parameter.dtype is torch.float16)
            yield _as_bytes(parameter.name, "data", tensor.to(parameter.dtype))
            return
        strategy = self.strategy_of(parameter, expert)
        self._check_values(parameter.name, tensor, fp16=strategy.name == "fp16")
        encoded = self._encode_by_rows(tensor.T if parameter.role is Role.TRANSPOSED else tensor, strategy)
        del tensor
        shape = parameter.stored_shape if tuple(encoded["data"].shape) != parameter.stored_shape else ()
        for part in sorted(encoded, key=lambda name: (name != "data", name)):
            written = _as_bytes(parameter.name, part, encoded.pop(part))
            yield replace(written, precision=strategy.name, parameter_shape=shape if part == "data" else ())

    @staticmethod
    def _encode_by_rows(matrix: torch.Tensor, strategy: PrecisionStrategy) -> dict[str, torch.Tensor]:
        """Encode a block of rows at a time: a strategy's temporaries are several times what it gets.

        Every part is indexed by row, as `PrecisionStrategy.embedding` relies on, so blocks can be joined.
        """
        rows = max(1, _BLOCK_VALUES // max(matrix.shape[1], 1))
        blocks = [dict(strategy.encode(block.contiguous())) for block in matrix.split(rows)]
        if len(blocks) == 1:
            return blocks[0]
        return {part: torch.cat([block.pop(part) for block in blocks]) for part in list(blocks[0])}

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
