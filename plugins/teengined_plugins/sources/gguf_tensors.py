"""Tensors of a GGUF file under Hugging Face names: which name, which permutation, which values."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from teengined.core.errors import SourceError
from teengined.interfaces.source import SourceTensor

if TYPE_CHECKING:
    import numpy as np
    import torch
    from gguf.gguf_reader import ReaderTensor

__all__ = ["GgufEntry", "dequantize_rows", "map_entries"]

# Rows are unpacked this many values at a time: the library's temporaries are several times its result.
CHUNK_VALUES = 4 * 2**20
_EXPERT_TENSOR = re.compile(r"blk\.(\d+)\.ffn_(gate|up|down)_exps\.weight")
_IGNORED = frozenset({"rope_freqs.weight"})
"""Read into the configuration (`gguf_config`), not into the model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufEntry:
    """One tensor as the converter sees it: a GGUF tensor, or one expert's slice of it."""

    tensor: "ReaderTensor"
    expert: int | None = None

    def describe(self, name: str) -> SourceTensor:
        """Return the entry under its Hugging Face name."""
        shape = tuple(int(size) for size in reversed(self.tensor.shape.tolist()))
        dtype = self.tensor.tensor_type.name
        return SourceTensor(name=name, dtype=dtype, shape=shape if self.expert is None else shape[1:])


def map_entries(tensors: list["ReaderTensor"], config: Any, architecture: str) -> dict[str, GgufEntry]:
    """Return the file's tensors under the names of a Hugging Face checkpoint.

    Stacked experts are taken apart, so that the converter can read one expert at a time.

    Raises:
        SourceError: a tensor has no counterpart in the model; names it.
    """
    names = _name_map(config, architecture)
    entries: dict[str, GgufEntry] = {}
    for tensor in tensors:
        if tensor.name in _IGNORED:
            continue
        if match := _EXPERT_TENSOR.fullmatch(tensor.name):
            prefix = f"model.layers.{match[1]}.mlp.experts"
            for expert in range(int(tensor.shape[-1])):
                entries[f"{prefix}.{expert}.{match[2]}_proj.weight"] = GgufEntry(tensor=tensor, expert=expert)
        elif tensor.name in names:
            entries[names[tensor.name]] = GgufEntry(tensor=tensor)
        else:
            raise SourceError(f"tensor {tensor.name!r:.120} has no counterpart in transformers' {architecture} model")
    return entries


def dequantize_rows(entry: GgufEntry, process: Callable[["np.ndarray"], "np.ndarray"]) -> "torch.Tensor":
    """Return the entry's values in fp32, after `process` has undone what llama.cpp's converter did to them."""
    import gguf
    import numpy as np
    import torch

    tensor = entry.tensor
    packed = tensor.data if entry.expert is None else tensor.data[entry.expert]
    shape = tuple(int(size) for size in reversed(tensor.shape.tolist()))
    shape = shape if entry.expert is None else shape[1:]
    rows = packed.reshape(-1, packed.shape[-1]) if packed.ndim else packed.reshape(1, 1)
    values = np.empty((rows.shape[0], shape[-1] if shape else 1), dtype=np.float32)
    step = max(1, CHUNK_VALUES // max(values.shape[1], 1))
    try:
        for start in range(0, rows.shape[0], step):
            values[start : start + step] = gguf.dequantize(rows[start : start + step], tensor.tensor_type)
        processed = np.ascontiguousarray(process(values.reshape(shape)))
    except (ArithmeticError, NotImplementedError, TypeError, ValueError) as error:
        raise SourceError(f"tensor {tensor.name}: its {tensor.tensor_type.name} blocks do not fit: {error}") from error
    return torch.from_numpy(processed)


def _name_map(config: Any, architecture: str) -> Mapping[str, str]:
    """Return GGUF name -> name in the state dict, by the `gguf` library's table of names."""
    import torch
    from gguf import MODEL_ARCH_NAMES, get_tensor_name_map
    from transformers import AutoModelForCausalLM

    number = next(number for number, name in MODEL_ARCH_NAMES.items() if name == architecture)
    table = get_tensor_name_map(number, config.num_hidden_layers)
    try:
        with torch.device("meta"):
            names = tuple(AutoModelForCausalLM.from_config(config).state_dict())
    except Exception as error:  # a model's constructor may fail in any way on metadata nobody checked
        problem = " ".join(str(error).split())
        raise SourceError(f"its metadata describe no {architecture} model: {problem:.200}") from error
    known: dict[str, str] = {}
    for name in names:
        if (found := table.get_name(name, try_suffixes=(".weight", ".bias"))) is not None:
            known[found] = name
    return known
