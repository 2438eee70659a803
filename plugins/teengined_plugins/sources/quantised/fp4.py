"""Four-bit floats: MXFP4 as gpt-oss stores its experts, and NVFP4.

    NAME_blocks   (E, O, G, 16) bytes, two E2M1 values in each      MXFP4: 32 values share a power of two
    NAME_scales   (E, O, G) exponents, biased by 127
        make NAME (E, 32 G, O): the model multiplies from the left.

NVFP4: 16 values share an fp8 scale, all of a tensor an fp32 one, by which it is divided (compressed-tensors) or
multiplied (ModelOpt). Source: transformers' integrations/mxfp4.py; OCP Microscaling Formats 1.0; the documentation of
compressed-tensors and ModelOpt.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from teengined.core.errors import SourceError
from teengined_plugins.sources.quantised.grids import scale_values, scaled
from teengined_plugins.sources.quantised.packing import unpack_e2m1
from teengined_plugins.sources.quantised.scheme import Parts, QuantisedTensor, StoredTensors

if TYPE_CHECKING:
    import torch

__all__ = ["open_mxfp4", "packed_fp4"]

_BLOCKS, _SCALES = "_blocks", "_scales"
_BLOCK_BYTES = 16
# Values unpacked at a time, beside the result.
_CHUNK_VALUES = 2 << 20


def open_mxfp4(config: Mapping[str, Any], stored: StoredTensors) -> list[QuantisedTensor]:
    """Return the experts; everything else of such a checkpoint is bf16.

    Raises:
        SourceError: blocks without scales, or of other shapes.
    """
    del config
    found: list[QuantisedTensor] = []
    for stem, parts in stored.ending(_BLOCKS, _SCALES):
        shape = stored.shape(parts[_BLOCKS])
        if len(shape) != 4 or shape[3] != _BLOCK_BYTES or _SCALES not in parts:
            raise SourceError(
                f"tensor {stem}: its blocks of shape {list(shape)} or their scales are not those of MXFP4"
            )
        if stored.shape(parts[_SCALES]) != shape[:3]:
            raise SourceError(f"tensor {stem}: {list(stored.shape(parts[_SCALES]))} scales for {list(shape)} blocks")
        made = (shape[0], 2 * shape[2] * shape[3], shape[1])
        found.append(QuantisedTensor(name=stem, dtype="MXFP4", shape=made, parts=parts, unpack=_unpack_experts))
    return found


def _unpack_experts(parts: Parts) -> "torch.Tensor":
    """Return (E, I, O) in bf16, which holds every product of E2M1 and a power of two."""
    import torch

    blocks, scales = parts[_BLOCKS], parts[_SCALES]
    num_experts, num_rows, num_groups, _ = blocks.shape
    num_columns = num_groups * 2 * _BLOCK_BYTES
    out = torch.empty(num_experts, num_columns, num_rows, dtype=torch.bfloat16)
    step = max(1, _CHUNK_VALUES // max(num_columns, 1))
    for expert in range(num_experts):
        for start in range(0, num_rows, step):
            rows = slice(start, start + step)
            values = unpack_e2m1(blocks[expert, rows])
            values *= scale_values(scales[expert, rows]).unsqueeze(-1)
            out[expert, :, rows] = values.flatten(1).T
    return out


def packed_fp4(parts: Parts, *, divided: bool) -> "torch.Tensor":
    """Return a matrix of packed E2M1 values in fp32.

    `parts`: `packed` (O, I / 2) bytes; `scale` (O, I / group) in fp8, or exponents; and `global_scale`, which may be
    missing, by which scales are divided or multiplied.
    """
    scale = scale_values(parts["scale"])
    if "global_scale" in parts:
        whole = parts["global_scale"].float().reshape(-1)[:1]
        scale = scale / whole if divided else scale * whole
    return scaled(parts["packed"], scale, unpack=unpack_e2m1)
