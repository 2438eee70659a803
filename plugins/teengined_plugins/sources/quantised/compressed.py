"""Checkpoints of the compressed-tensors library, as vLLM's tools write them. What is there says how it was packed.

    STEM.weight           F8_E4M3 or I8, with STEM.weight_scale of any granularity, STEM.weight_zero_point
    STEM.weight_packed    I32: integers of 2, 4 or 8 bits, an offset added that makes them unsigned
                          U8: E2M1 values; NVFP4 with STEM.weight_global_scale, else MXFP4
    STEM.weight_shape     of the matrix, since words at the end of a row may be half full
    STEM.weight_zero_point    packed along rows where the weights are; STEM.weight_g_idx: the group of each column

Source: compressed-tensors' documentation of its formats.
"""

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from teengined.core.errors import SourceError
from teengined_plugins.sources.quantised.fp4 import packed_fp4
from teengined_plugins.sources.quantised.grids import scaled
from teengined_plugins.sources.quantised.packing import PACKED_BITS, unpack_integers
from teengined_plugins.sources.quantised.scheme import Parts, QuantisedTensor, StoredTensors, unsupported

if TYPE_CHECKING:
    import torch

__all__ = ["open_compressed"]

_METHOD = "compressed-tensors"
_PACKED, _SCALE, _ZERO, _SHAPE = ".weight_packed", ".weight_scale", ".weight_zero_point", ".weight_shape"
_GROUPS, _GLOBAL = ".weight_g_idx", ".weight_global_scale"
_REFUSED_FORMATS = ("sparse", "marlin")
_WORD_BITS = 32


def open_compressed(config: Mapping[str, Any], stored: StoredTensors) -> list[QuantisedTensor]:
    """Return every tensor that was compressed.

    Raises:
        SourceError: it is sparse, rotated, or packed in bits that do not divide a byte.
    """
    _refuse_formats(config)
    wanted = _block_structure(config)
    found = [
        _packed(stem, parts, stored) for stem, parts in stored.ending(_PACKED, _SCALE, _ZERO, _SHAPE, _GROUPS, _GLOBAL)
    ]
    for stem, parts in stored.ending(_SCALE, _ZERO):
        weight = f"{stem}.weight"
        if weight not in stored.tensors:
            raise SourceError(f"tensor {stem}{_SCALE}: it scales {weight}, which is missing")
        stored.used.add(weight)
        dtype = "INT8" if stored.tensors[weight].dtype == "I8" else "FP8"
        parts = {"weight": weight, **parts}
        unpack = partial(_scaled_weight, wanted=wanted)
        found.append(QuantisedTensor(name=weight, dtype=dtype, shape=stored.shape(weight), parts=parts, unpack=unpack))
    return found


def _refuse_formats(config: Mapping[str, Any]) -> None:
    groups = config.get("config_groups") or {}
    formats = [config.get("format"), *(group.get("format") for group in groups.values() if isinstance(group, Mapping))]
    sparsity = config.get("sparsity_config") or {}
    formats.append(sparsity.get("format") if sparsity.get("format") != "dense" else None)
    for name in formats:
        if isinstance(name, str) and any(word in name for word in _REFUSED_FORMATS):
            raise unsupported(_METHOD, f"format {name:.40}")
    if (config.get("transform_config") or {}).get("config_groups"):
        raise unsupported(_METHOD, "transform_config: its layers rotate their inputs as they run")


def _block_structure(config: Mapping[str, Any]) -> list[int] | None:
    """Return the rows and columns of a block where one is said, and the same for all."""
    groups = config.get("config_groups") or {}
    weights = [group.get("weights") or {} for group in groups.values() if isinstance(group, Mapping)]
    blocks = [tuple(one["block_structure"]) for one in weights if isinstance(one.get("block_structure"), list)]
    return list(blocks[0]) if len(set(blocks)) == 1 else None


def _packed(stem: str, parts: dict[str, str], stored: StoredTensors) -> QuantisedTensor:
    if _SCALE not in parts:
        raise SourceError(f"tensor {stem}{_PACKED}: its scales are missing")
    rows, words = stored.matrix(parts[_PACKED])
    name = f"{stem}.weight"
    if stored.tensors[parts[_PACKED]].dtype == "U8":
        roles = {"packed": _PACKED, "scale": _SCALE, "global_scale": _GLOBAL}
        names = {role: parts[suffix] for role, suffix in roles.items() if suffix in parts}
        label = "NVFP4" if _GLOBAL in parts else "MXFP4"
        unpack = partial(packed_fp4, divided=True)
        return QuantisedTensor(name=name, dtype=label, shape=(rows, 2 * words), parts=names, unpack=unpack)
    if _SHAPE not in parts:
        raise SourceError(f"tensor {stem}{_PACKED}: its shape is missing")
    shape = tuple(int(size) for size in stored.small(parts[_SHAPE]).reshape(-1).tolist())
    fitting = [bits for bits in PACKED_BITS if len(shape) == 2 and -(-shape[1] * bits // _WORD_BITS) == words]
    if len(fitting) != 1 or shape[0] != rows:
        raise unsupported(_METHOD, f"{name} of shape {list(shape)} in {words} words a row; 2, 4 and 8 bits are")
    unpack = partial(_unpack_integers, bits=fitting[0], shape=(shape[0], shape[1]))
    return QuantisedTensor(name=name, dtype=f"INT{fitting[0]}", shape=shape, parts=parts, unpack=unpack)


def _unpack_integers(parts: Parts, *, bits: int, shape: tuple[int, int]) -> "torch.Tensor":
    import torch

    middle = 1 << (bits - 1)

    def unpack(words: "torch.Tensor") -> "torch.Tensor":
        return unpack_integers(words, bits)[:, : shape[1]].to(torch.int16) - middle

    scale, zero = parts[_SCALE], parts.get(_ZERO)
    if zero is not None and zero.dtype == torch.int32:  # Packed along rows.
        zero = unpack_integers(zero.T.contiguous(), bits)[:, : shape[0]].T.to(torch.int16) - middle
    if _GROUPS in parts and bool((parts[_GROUPS] >= 0).all()):
        group = parts[_GROUPS].long()
        scale, zero = scale[:, group], None if zero is None else zero[:, group]
    return scaled(parts[_PACKED], scale, zero=zero, unpack=unpack)


def _scaled_weight(parts: Parts, *, wanted: list[int] | None) -> "torch.Tensor":
    return scaled(parts["weight"], parts[_SCALE], wanted=wanted, zero=parts.get(_ZERO))
