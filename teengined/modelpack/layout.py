"""Arithmetic of the package format: sizes of dtypes, alignment, and the names tensors carry inside the files."""

from math import prod

from teengined.core.dtypes import DTYPE_BYTES
from teengined.core.model import ALIGNMENT_BYTES

__all__ = [
    "CONFIG_FILES",
    "MANIFEST_FILE",
    "MAX_TOKENIZER_BYTES",
    "PADDING_PREFIX",
    "UNITS_DIRECTORY",
    "align_up",
    "file_key",
    "tensor_bytes",
    "unit_id",
]

MANIFEST_FILE = "manifest.json"
UNITS_DIRECTORY = "units"
PADDING_PREFIX = "__pad."
"""Tensors of this prefix fill gaps, so that a file with alignment is still a safetensors file without holes."""

MAX_TOKENIZER_BYTES = 256 << 20
"""Of tokenizer.json, and of each table beside it. The largest vocabularies take some 35 MB."""

CONFIG_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
)


def align_up(size_bytes: int, alignment_bytes: int = ALIGNMENT_BYTES) -> int:
    """Return the smallest multiple of `alignment_bytes` at or above `size_bytes`."""
    return -(-size_bytes // alignment_bytes) * alignment_bytes


def tensor_bytes(dtype: str, shape: tuple[int, ...]) -> int:
    """Return the bytes of a dense tensor.

    Raises:
        KeyError: a dtype that packages do not know.
    """
    return prod(shape) * DTYPE_BYTES[dtype]


def file_key(parameter: str, part: str, expert: int | None = None) -> str:
    """Return the key of a stored part inside its safetensors file, such as `model.norm.weight:scale`."""
    owner = parameter if expert is None else f"{parameter}[{expert}]"
    return owner if part == "data" else f"{owner}:{part}"


def unit_id(layer: int, expert: int | None = None) -> str:
    """Return `layer.N` or `layer.N.expert.E`."""
    return f"layer.{layer}" if expert is None else f"layer.{layer}.expert.{expert}"
