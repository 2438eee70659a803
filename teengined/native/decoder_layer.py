"""What a decoder layer computes around its attention, in two calls: see decoder_layer.c.

Legend: T rows, D model width, H query heads, K key-value heads, E width of a head. All on the CPU, contiguous, and bf16
where nothing else is said.
"""

import ctypes
from dataclasses import dataclass
from typing import TYPE_CHECKING

from teengined.native.library import LayerInputsCall, LayerOutputsCall, NativeMatrix, kernel_library

if TYPE_CHECKING:
    import torch

__all__ = [
    "HEAD_STEP",
    "InputWeights",
    "KeptStates",
    "OutputWeights",
    "has_decoder_layer",
    "layer_inputs",
    "layer_outputs",
]

# Heads are turned in halves of whole vectors: their width is a multiple of this.
HEAD_STEP = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class InputWeights:
    """What stands before the attention."""

    norm: "torch.Tensor"
    """(D,)."""
    query: NativeMatrix
    key: NativeMatrix
    value: NativeMatrix
    query_norm: "torch.Tensor | None"
    """(E,), for each head by itself."""
    key_norm: "torch.Tensor | None"
    epsilon: float
    head_width: int


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputWeights:
    """What stands after it."""

    norm: "torch.Tensor"
    """(D,)."""
    output: NativeMatrix
    gate: NativeMatrix
    up: NativeMatrix
    down: NativeMatrix
    epsilon: float


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptStates:
    """Where new keys and values are kept beside being returned."""

    keys: "torch.Tensor"
    """(…, E)."""
    values: "torch.Tensor"
    """(…, E)."""
    places_TK: "torch.Tensor"
    """int64: which row of E numbers takes each token's head."""


def has_decoder_layer() -> bool:
    """Say whether the kernels are there: a compiler, and a processor with bf16 and byte products."""
    library = kernel_library()
    return library is not None and library.has_decoder_layer


def layer_inputs(
    hidden_TD: "torch.Tensor",
    rotary_TE: tuple["torch.Tensor", "torch.Tensor"],
    weights: InputWeights,
    kept: KeptStates | None,
) -> tuple["torch.Tensor", "torch.Tensor", "torch.Tensor"]:
    """Return queries (T, H, E), keys (T, K, E) and values (T, K, E); `rotary_TE` are cosines and sines."""
    import torch

    library = kernel_library()
    assert library is not None, "asked for kernels that are not there"
    num_rows, width, head_width = hidden_TD.shape[0], hidden_TD.shape[1], weights.head_width
    assert head_width % HEAD_STEP == 0, f"heads of {head_width}"
    queries, keys, values = (
        torch.empty((num_rows, matrix.num_outputs // head_width, head_width), dtype=torch.bfloat16)
        for matrix in (weights.query, weights.key, weights.value)
    )
    cosines_TE, sines_TE = rotary_TE
    assert cosines_TE.numel() == sines_TE.numel() == num_rows * head_width, "rotary tables of another shape"
    scratch = torch.empty(library.layer_inputs_scratch(num_rows, width), dtype=torch.uint8)
    call = LayerInputsCall(
        hidden_TD.data_ptr(), weights.norm.data_ptr(), weights.query, weights.key, weights.value,
        _pointer(weights.query_norm), _pointer(weights.key_norm), cosines_TE.data_ptr(), sines_TE.data_ptr(),
        queries.data_ptr(), keys.data_ptr(), values.data_ptr(), kept and kept.keys.data_ptr(),
        kept and kept.values.data_ptr(), kept and kept.places_TK.data_ptr(), scratch.data_ptr(), num_rows, head_width,
        torch.get_num_threads(), weights.epsilon,
    )  # fmt: skip
    library.run_layer_inputs(ctypes.byref(call))
    return queries, keys, values


def layer_outputs(attended_TI: "torch.Tensor", hidden_TD: "torch.Tensor", weights: OutputWeights) -> "torch.Tensor":
    """Return the layer's result (T, D), from its attention's answer (T, H * E) and what came in."""
    import torch

    library = kernel_library()
    assert library is not None, "asked for kernels that are not there"
    num_rows, width = hidden_TD.shape
    result_TD = torch.empty((num_rows, width), dtype=torch.bfloat16)
    size_bytes = library.layer_outputs_scratch(num_rows, width, attended_TI.shape[1], weights.gate.num_outputs)
    scratch = torch.empty(size_bytes, dtype=torch.uint8)
    call = LayerOutputsCall(
        attended_TI.data_ptr(), hidden_TD.data_ptr(), weights.norm.data_ptr(), weights.output, weights.gate, weights.up,
        weights.down, result_TD.data_ptr(), scratch.data_ptr(), num_rows, torch.get_num_threads(), weights.epsilon,
    )  # fmt: skip
    library.run_layer_outputs(ctypes.byref(call))
    return result_TD


def _pointer(tensor: "torch.Tensor | None") -> int | None:
    return None if tensor is None else tensor.data_ptr()
