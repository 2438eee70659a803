"""GPTQ and AWQ: four-bit (GPTQ also two and eight) integers with a scale and a zero for each group of inputs.

    STEM.qweight    GPTQ (I bits / 32, O): words run down the inputs; AWQ (I, O / 8): along the outputs
    STEM.qzeros     (groups, O bits / 32)
    STEM.scales     (groups, O)
    STEM.g_idx      GPTQ: the group of each input

    weight[o, i] = (q[i, o] - zero[group(i), o]) * scale[group(i), o]

GPTQ's first form stores zeros less one. AWQ's words hold outputs 0 2 4 6 1 3 5 7. Source: the layouts that AutoGPTQ and
AutoAWQ document, as transformers hands them to their kernels.
"""

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from teengined.core.errors import SourceError
from teengined_plugins.sources.quantised.packing import PACKED_BITS, unpack_integers
from teengined_plugins.sources.quantised.scheme import Parts, QuantisedTensor, StoredTensors, unsupported

if TYPE_CHECKING:
    import torch

__all__ = ["open_awq", "open_gptq"]

_WEIGHT, _ZEROS, _SCALES, _GROUPS = ".qweight", ".qzeros", ".scales", ".g_idx"
_WORD_BITS = 32
_AWQ_BITS = 4
# Where in a word of AWQ each of eight outputs lies.
_AWQ_PLACES = (0, 4, 1, 5, 2, 6, 3, 7)
# Inputs unpacked at a time, beside the result.
_CHUNK_INPUTS = 512


def open_gptq(config: Mapping[str, Any], stored: StoredTensors) -> list[QuantisedTensor]:
    """Return every matrix.

    Raises:
        SourceError: three bits, or repacked for a kernel.
    """
    bits, form = config.get("bits"), str(config.get("checkpoint_format") or "gptq")
    if bits not in PACKED_BITS:
        raise unsupported("gptq", f"{bits!r:.20} bits; 2, 4 and 8 are")
    if form not in ("gptq", "gptq_v2") or config.get("is_marlin_format"):
        raise unsupported("gptq", f"checkpoint_format {form:.40}; gptq and gptq_v2 are")
    less_one = form == "gptq"
    found: list[QuantisedTensor] = []
    for stem, parts in _complete(stored):
        words, outputs = stored.matrix(parts[_WEIGHT])
        shape = (outputs, words * _WORD_BITS // bits)
        unpack = partial(_unpack_gptq, bits=bits, less_one=less_one, group_size=_group_size(config))
        found.append(
            QuantisedTensor(name=f"{stem}.weight", dtype=f"INT{bits}", shape=shape, parts=parts, unpack=unpack)
        )
    return found


def open_awq(config: Mapping[str, Any], stored: StoredTensors) -> list[QuantisedTensor]:
    """Return every matrix.

    Raises:
        SourceError: not four bits, or packed for another kernel than `gemm`.
    """
    bits, version = config.get("bits", config.get("w_bit")), str(config.get("version") or "gemm").lower()
    if bits != _AWQ_BITS or version != "gemm":
        raise unsupported("awq", f"{bits!r:.20} bits, version {version:.40}; 4 bits and gemm are")
    found: list[QuantisedTensor] = []
    for stem, parts in _complete(stored):
        inputs, words = stored.matrix(parts[_WEIGHT])
        shape = (words * _WORD_BITS // _AWQ_BITS, inputs)
        unpack = partial(_unpack_awq, group_size=_group_size(config))
        found.append(QuantisedTensor(name=f"{stem}.weight", dtype="INT4", shape=shape, parts=parts, unpack=unpack))
    return found


def _complete(stored: StoredTensors) -> list[tuple[str, dict[str, str]]]:
    found = list(stored.ending(_WEIGHT, _ZEROS, _SCALES, _GROUPS))
    for stem, parts in found:
        if _ZEROS not in parts or _SCALES not in parts:
            raise SourceError(f"tensor {stem}{_WEIGHT}: its scales or zeros are missing")
    return found


def _group_size(config: Mapping[str, Any]) -> int:
    """Return how many inputs share a scale; 0: all of them."""
    size = config.get("group_size", config.get("q_group_size"))
    return size if isinstance(size, int) and size > 0 else 0


def _groups(num_inputs: int, group_size: int, parts: Parts) -> "torch.Tensor":
    """Return the group of each input.

    Raises:
        ValueError: the checkpoint has scales for another number of groups.
    """
    import torch

    size, num_groups = group_size or max(num_inputs, 1), parts[_SCALES].shape[0]
    if _GROUPS in parts:
        return parts[_GROUPS].long()
    if -(-num_inputs // size) != num_groups:
        raise ValueError(f"{num_groups} groups of scales for {num_inputs} inputs in groups of {size}")
    return torch.arange(num_inputs) // size


def _unpack_gptq(parts: Parts, *, bits: int, less_one: bool, group_size: int) -> "torch.Tensor":
    import torch

    zeros = unpack_integers(parts[_ZEROS], bits)
    if less_one:
        zeros = (zeros + 1) & ((1 << bits) - 1)
    words = parts[_WEIGHT]
    num_inputs = words.shape[0] * _WORD_BITS // bits
    group = _groups(num_inputs, group_size, parts)
    out = torch.empty(words.shape[1], num_inputs)
    per_word = _WORD_BITS // bits
    step = max(1, _CHUNK_INPUTS // per_word)
    for start in range(0, words.shape[0], step):
        values = unpack_integers(words[start : start + step].T.contiguous(), bits)
        inputs = slice(start * per_word, start * per_word + values.shape[1])
        _fill(out, inputs, values, (group[inputs], zeros, parts[_SCALES]))
    return out


def _unpack_awq(parts: Parts, *, group_size: int) -> "torch.Tensor":
    import torch

    words, scales = parts[_WEIGHT], parts[_SCALES]
    zeros = _in_order(parts[_ZEROS])
    num_inputs = words.shape[0]
    group = _groups(num_inputs, group_size, parts)
    out = torch.empty(scales.shape[1], num_inputs)
    for start in range(0, num_inputs, _CHUNK_INPUTS):
        inputs = slice(start, min(start + _CHUNK_INPUTS, num_inputs))
        _fill(out, inputs, _in_order(words[inputs]).T, (group[inputs], zeros, scales))
    return out


def _fill(
    out: "torch.Tensor",
    inputs: slice,
    values: "torch.Tensor",
    by: tuple["torch.Tensor", "torch.Tensor", "torch.Tensor"],
) -> None:
    """Write (O, i) values of some inputs, given their groups, and the zeros and scales (groups, O)."""
    group, zeros, scales = by
    out[:, inputs] = (values.float() - zeros[group].T.float()) * scales[group].T.float()


def _in_order(words: "torch.Tensor") -> "torch.Tensor":
    octuples = unpack_integers(words, _AWQ_BITS).reshape(words.shape[0], -1, len(_AWQ_PLACES))
    return octuples[..., list(_AWQ_PLACES)].reshape(words.shape[0], -1)
