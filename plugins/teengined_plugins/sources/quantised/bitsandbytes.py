"""bitsandbytes: four-bit codes of a table (NF4, FP4), and eight-bit rows.

    NAME                                        bytes, two codes in each, the high four bits first
    NAME.quant_map                              the value of each code
    NAME.absmax                                 the largest magnitude of each block, which scales it; or codes of it:
    NAME.nested_absmax, NAME.nested_quant_map   then these unpack it
    NAME.quant_state.bitsandbytes__nf4          JSON: block sizes, shape, what is added to unpacked magnitudes

    STEM.weight I8, STEM.SCB: each row's largest magnitude, which 127 stands for

Source: the states that bitsandbytes 0.43 and later save, as transformers reads them.
"""

import json
from collections.abc import Mapping
from functools import partial
from math import prod
from typing import TYPE_CHECKING, Any, cast

from teengined.core.errors import SourceError
from teengined_plugins.sources.quantised.grids import scaled
from teengined_plugins.sources.quantised.packing import unpack_integers
from teengined_plugins.sources.quantised.scheme import Parts, QuantisedTensor, StoredTensors

if TYPE_CHECKING:
    import torch

__all__ = ["open_bitsandbytes"]

_STATES = {".quant_state.bitsandbytes__nf4": "NF4", ".quant_state.bitsandbytes__fp4": "FP4"}
_ABSMAX, _MAP = ".absmax", ".quant_map"
_NESTED_ABSMAX, _NESTED_MAP = ".nested_absmax", ".nested_quant_map"
_ROW_MAXIMA, _ROW_FORMAT = ".SCB", ".weight_format"
_LARGEST_INT8 = 127
# Blocks unpacked at a time, beside the result.
_CHUNK_BLOCKS = 1 << 16


def open_bitsandbytes(config: Mapping[str, Any], stored: StoredTensors) -> list[QuantisedTensor]:
    """Return every matrix.

    Raises:
        SourceError: a state is malformed or incomplete.
    """
    del config
    found: list[QuantisedTensor] = []
    for suffix, label in _STATES.items():
        for name, parts in stored.ending(suffix, "", _ABSMAX, _MAP, _NESTED_ABSMAX, _NESTED_MAP):
            found.append(_four_bit(name, label, (suffix, parts), stored))
    for stem, parts in stored.ending(_ROW_MAXIMA, ".weight", _ROW_FORMAT):
        if ".weight" not in parts:
            raise SourceError(f"tensor {stem}{_ROW_MAXIMA}: it scales {stem}.weight, which is missing")
        shape = stored.matrix(parts[".weight"])
        found.append(
            QuantisedTensor(name=f"{stem}.weight", dtype="INT8", shape=shape, parts=parts, unpack=_unpack_rows)
        )
    return found


def _four_bit(name: str, label: str, of: tuple[str, dict[str, str]], stored: StoredTensors) -> QuantisedTensor:
    suffix, parts = of
    state = _state(parts.pop(suffix), stored)
    shape, block = state.get("shape"), state.get("blocksize")
    if not isinstance(shape, list) or any(type(size) is not int or size < 1 for size in cast("list[Any]", shape)):
        raise SourceError(f"tensor {name}{suffix}: its shape is none")
    if type(block) is not int or block < 2 or not {"", _ABSMAX, _MAP} <= set(parts):
        raise SourceError(f"tensor {name}: its block size, magnitudes or codes are missing")
    sizes = tuple(cast("list[int]", shape))
    if prod(sizes) > 2 * prod(stored.shape(parts[""])):
        raise SourceError(f"tensor {name}: {list(sizes)} values do not lie in {prod(stored.shape(parts['']))} bytes")
    return QuantisedTensor(
        name=name, dtype=label, shape=sizes, parts=parts, unpack=partial(_unpack_codes, state=state, count=prod(sizes))
    )


def _state(name: str, stored: StoredTensors) -> dict[str, Any]:
    try:
        state: object = json.loads(stored.small(name).numpy().tobytes())
    except (ValueError, RecursionError) as error:
        raise SourceError(f"tensor {name}: it is not JSON: {error}") from error
    if not isinstance(state, dict):
        raise SourceError(f"tensor {name}: it is not a JSON object")
    return cast("dict[str, Any]", state)


def _unpack_codes(parts: Parts, *, state: Mapping[str, Any], count: int) -> "torch.Tensor":
    import torch

    block: int = state["blocksize"]
    codes, values = parts[""].reshape(-1), parts[_MAP].float()
    scale = _magnitudes(parts, state)
    out = torch.empty(count)
    step = _CHUNK_BLOCKS * block // 2 * 2
    for start in range(0, count, step):
        end = min(start + step, count)
        pairs = unpack_integers(codes[start // 2 : -(-end // 2)].unsqueeze(-1), 4).flip(-1).reshape(-1)
        block_of = torch.arange(start, end) // block
        torch.mul(values[pairs[: end - start].int()], scale[block_of], out=out[start:end])
    return out


def _magnitudes(parts: Parts, state: Mapping[str, Any]) -> "torch.Tensor":
    import torch

    absmax = parts[_ABSMAX].reshape(-1)
    if _NESTED_ABSMAX not in parts:
        return absmax.float()
    outer = parts[_NESTED_ABSMAX].float().reshape(-1)
    block_of = torch.arange(absmax.numel()) // int(state["nested_blocksize"])
    return parts[_NESTED_MAP].float()[absmax.int()] * outer[block_of] + float(state.get("nested_offset") or 0.0)


def _unpack_rows(parts: Parts) -> "torch.Tensor":
    if _ROW_FORMAT in parts and int(parts[_ROW_FORMAT].reshape(-1)[0]) != 0:
        raise ValueError("its rows are laid out for a kernel")
    return scaled(parts[".weight"], parts[_ROW_MAXIMA].float() / _LARGEST_INT8)
