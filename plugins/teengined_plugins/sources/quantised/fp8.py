"""fp8 with scales beside the weights: DeepSeek's blocks, one scale a row, one a tensor.

    NAME              F8_E4M3 (or packed E2M1 as I8)
    NAME_scale_inv    what each block is multiplied with, its name notwithstanding (`fp8`, `mxfp8`)
    NAME_scale        the same, of one scale a row or a tensor (`fbgemm_fp8`)

Source: transformers' finegrained_fp8, and the published checkpoints of DeepSeek-V3.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from teengined_plugins.sources.quantised.grids import scaled
from teengined_plugins.sources.quantised.packing import unpack_e2m1
from teengined_plugins.sources.quantised.scheme import Parts, QuantisedTensor, StoredTensors

if TYPE_CHECKING:
    import torch

__all__ = ["open_fp8"]

_SUFFIXES = ("_scale_inv", "_scale")


def open_fp8(config: Mapping[str, Any], stored: StoredTensors) -> list[QuantisedTensor]:
    """Return every tensor that has scales."""
    wanted = config.get("weight_block_size")
    found: list[QuantisedTensor] = []
    for suffix in _SUFFIXES:
        for stem, _ in _with_weights(stored, suffix):
            found.append(_tensor(stem, suffix, wanted if isinstance(wanted, list) else None, stored))
    return found


def _with_weights(stored: StoredTensors, suffix: str) -> list[tuple[str, str]]:
    """Return stems whose tensor itself is there in eight bits; scales of activations have none, and are left."""
    stems = [name.removesuffix(suffix) for name in stored.tensors if name.endswith(suffix)]
    eight = ("F8_E4M3", "F8_E5M2", *(("I8",) if suffix == _SUFFIXES[0] else ()))
    return [(stem, suffix) for stem in stems if stem in stored.tensors and stored.tensors[stem].dtype in eight]


def _tensor(stem: str, suffix: str, wanted: Sequence[int] | None, stored: StoredTensors) -> QuantisedTensor:
    parts = {"weight": stem, "scale": stem + suffix}
    stored.used.update(parts.values())
    is_packed = stored.tensors[stem].dtype == "I8"
    shape = stored.shape(stem)

    def unpack(read: Parts) -> "torch.Tensor":
        return scaled(read["weight"], read["scale"], wanted=wanted, unpack=unpack_e2m1 if is_packed else None)

    shape = (*shape[:-1], 2 * shape[-1]) if is_packed else shape
    return QuantisedTensor(name=stem, dtype="FP4" if is_packed else "FP8", shape=shape, parts=parts, unpack=unpack)
