"""Which scheme a configuration asks for. A method that is not here is refused, by name, where architectures are."""

from collections.abc import Mapping
from typing import Any, cast

from teengined_plugins.sources.quantised.bitsandbytes import open_bitsandbytes
from teengined_plugins.sources.quantised.compressed import open_compressed
from teengined_plugins.sources.quantised.fp4 import open_mxfp4
from teengined_plugins.sources.quantised.fp8 import open_fp8
from teengined_plugins.sources.quantised.gptq import open_awq, open_gptq
from teengined_plugins.sources.quantised.modelopt import open_modelopt
from teengined_plugins.sources.quantised.scheme import QuantisedTensor, Scheme, StoredTensors

__all__ = ["METHODS", "QUANTISATION_KEYS", "open_quantised"]

METHODS: Mapping[str, Scheme] = {
    "awq": open_awq,
    "bitsandbytes": open_bitsandbytes,
    "compressed-tensors": open_compressed,
    "fbgemm_fp8": open_fp8,
    "fp8": open_fp8,
    "gptq": open_gptq,
    "modelopt": open_modelopt,
    "mxfp4": open_mxfp4,
    "mxfp8": open_fp8,
}
"""By `quant_method`."""
QUANTISATION_KEYS = ("quantization_config", "compression_config")
"""Keys of config.json that say how the weights are stored; an unpacked checkpoint has none."""


def open_quantised(config: Mapping[str, Any], stored: StoredTensors) -> dict[str, QuantisedTensor] | None:
    """Return the tensors that the checkpoint quantised, by name; None where its method is not read, or there is none.

    Raises:
        SourceError: a variation that is not read, or parts that do not fit together; says what to use instead.
    """
    table = next((config[key] for key in QUANTISATION_KEYS if config.get(key)), None)
    if not isinstance(table, Mapping):
        return None
    settings = cast("Mapping[str, Any]", table)
    method = str(settings.get("quant_method"))
    if method not in METHODS:
        return None
    found = {tensor.name: tensor for tensor in METHODS[method](settings, stored)}
    stored.refuse_left(method)
    return found
