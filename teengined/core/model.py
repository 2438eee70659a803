"""What a model package contains: units of tensors, and the few facts about the model that planning needs."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from math import prod

__all__ = [
    "ALIGNMENT_BYTES",
    "MANIFEST_SCHEMA",
    "READABLE_SCHEMAS",
    "TENSOR_ALIGNMENT_BYTES",
    "ModelManifest",
    "TensorSpec",
    "UnitKind",
    "UnitSpec",
]

# A unit starts on a page and covers whole pages, so that it is one O_DIRECT read.
ALIGNMENT_BYTES = 4096
# A tensor starts on a cache line: products differ in their last bits between odd and even alignment.
TENSOR_ALIGNMENT_BYTES = 64

MANIFEST_SCHEMA = "teengine.package/v2"
# v1 spelled every unit's tensors out, and no two units shared a place.
READABLE_SCHEMAS = ("teengine.package/v1", MANIFEST_SCHEMA)


class UnitKind(StrEnum):
    """What role a unit plays. Order of execution: embedding, layers (each with its experts), head."""

    EMBEDDING = "embedding"
    LAYER = "layer"
    EXPERT = "expert"
    HEAD = "head"


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSpec:
    """One stored tensor of a unit.

    `parameter` is the name in the transformers model (`model.layers.3.mlp.down_proj.weight`). A precision strategy may
    store a parameter in several parts (`data` and `scale`); strategies that do not, store `data` only.
    """

    parameter: str
    part: str
    dtype: str
    """As safetensors writes it: F32, F16, BF16, I8, U8."""
    shape: tuple[int, ...]
    offset_bytes: int
    """From the unit's start, a multiple of 64."""
    size_bytes: int
    precision: str = ""
    """Strategy of this parameter where it is not its unit's."""
    parameter_shape: tuple[int, ...] = ()
    """Shape of the parameter, at its part `data`, where that is stored in another."""

    @property
    def num_elements(self) -> int:
        """Elements of the parameter that this part stands for."""
        return prod(self.parameter_shape or self.shape)


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitSpec:
    """The smallest thing that moves: one contiguous, page-aligned range of one file.

    Units of equal content may share the range; none overlaps another otherwise.
    """

    id: str
    """`embedding`, `layer.3`, `layer.3.expert.7`, `head`."""
    kind: UnitKind
    layer: int | None
    expert: int | None
    precision: str
    """Name of the precision strategy its matrices are stored in, but for those that name their own; vectors stay in the
    compute dtype."""
    file: str
    """Relative to the package directory."""
    offset_bytes: int
    size_bytes: int
    """Whole pages, padding included: exactly what one read moves."""
    num_parameters: int
    """Logical parameters, before quantisation: what the compute cost follows."""
    digest: str
    """`blake2b:` and 64 hex digits over the `size_bytes`."""
    tensors: tuple[TensorSpec, ...]

    @property
    def place(self) -> tuple[str, int, str]:
        """Where the bytes are, and what they are: equal for units that share them."""
        return (self.file, self.offset_bytes, self.digest)

    @property
    def parameters_by_precision(self) -> Mapping[str, int]:
        """Logical parameters by the strategy that multiplies with them."""
        counts = Counter({self.precision: self.num_parameters})
        for tensor in self.tensors:
            if tensor.precision and tensor.part == "data":
                counts[tensor.precision] += tensor.num_elements
                counts[self.precision] -= tensor.num_elements
        return {name: count for name, count in counts.items() if count > 0 or name == self.precision}


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelManifest:
    """`manifest.json` of a package: everything about a model that is not weights. Knows no path."""

    schema: str
    name: str
    source: str
    """Where it came from, for people: a hub id, a file name. Never a path of this machine."""
    architecture: str
    """`model_type` of transformers."""
    num_layers: int
    hidden_size: int
    vocab_size: int
    max_context_tokens: int
    kv_elements_per_token: tuple[int, ...]
    """Per layer: numbers kept for one token (keys and values together)."""
    compute_dtype: str
    """`fp32`, `bf16` or `fp16`: dtype of activations and vectors that the package was made for."""
    precision: str
    """Strategy named at conversion; units and parameters may differ."""
    eos_token_ids: tuple[int, ...]
    config_digest: str
    tokenizer_digest: str
    num_experts: int = 0
    num_experts_per_token: int = 0
    tied_parameters: Mapping[str, str] = field(default_factory=dict[str, str])
    """Parameter that is not stored -> the parameter it shares, such as `lm_head.weight` -> embedding."""
    numeric_notes: tuple[str, ...] = ()
    units: tuple[UnitSpec, ...] = ()

    @property
    def size_bytes(self) -> int:
        """Bytes of all units: what streaming everything once would move."""
        return sum(unit.size_bytes for unit in self.units)

    @property
    def stored_bytes(self) -> int:
        """Bytes of all units on disk: units of one content share its place."""
        return sum({unit.place: unit.size_bytes for unit in self.units}.values())

    @property
    def num_parameters(self) -> int:
        """Logical parameters of all units."""
        return sum(unit.num_parameters for unit in self.units)

    def units_of_layer(self, layer: int) -> tuple[UnitSpec, ...]:
        """Return the dense unit of `layer` and its experts, dense first."""
        return tuple(unit for unit in self.units if unit.layer == layer)
