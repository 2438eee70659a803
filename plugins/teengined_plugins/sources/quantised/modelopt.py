"""NVIDIA ModelOpt's exports: fp8 with one scale a tensor, and NVFP4.

STEM.weight           F8_E4M3, or two E2M1 values in a byte
STEM.weight_scale     one value; NVFP4: (O, I / 16) in fp8
STEM.weight_scale_2   NVFP4: one value
"""

from collections.abc import Mapping
from typing import Any

from teengined_plugins.sources.quantised.fp4 import packed_fp4
from teengined_plugins.sources.quantised.fp8 import open_fp8
from teengined_plugins.sources.quantised.scheme import Parts, QuantisedTensor, StoredTensors, unsupported

__all__ = ["open_modelopt"]

_WEIGHT, _SCALE, _SCALE_2 = ".weight", ".weight_scale", ".weight_scale_2"


def open_modelopt(config: Mapping[str, Any], stored: StoredTensors) -> list[QuantisedTensor]:
    """Return every tensor that has scales.

    Raises:
        SourceError: another algorithm.
    """
    algorithm = str(config.get("quant_algo", ""))
    if algorithm not in ("FP8", "NVFP4", "MIXED_PRECISION"):
        raise unsupported("modelopt", f"quant_algo {algorithm!r:.40}; FP8 and NVFP4 are")
    found: list[QuantisedTensor] = []
    for stem, _ in list(stored.ending(_SCALE_2)):
        names = {"packed": stem + _WEIGHT, "scale": stem + _SCALE, "global_scale": stem + _SCALE_2}
        if any(name not in stored.tensors for name in names.values()):
            raise unsupported("modelopt", f"{stem} has {_SCALE_2} without the rest")
        stored.used.update(names.values())
        rows, octets = stored.matrix(names["packed"])
        found.append(
            QuantisedTensor(
                name=stem + _WEIGHT, dtype="NVFP4", shape=(rows, 2 * octets), parts=names, unpack=_multiplied
            )
        )
    return [*found, *open_fp8({}, stored)]


def _multiplied(parts: Parts) -> Any:
    return packed_fp4(parts, divided=False)
