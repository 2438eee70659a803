"""A package whose tokens are bytes, written without torch: real manifest, real tokenizer, weights of zeros."""

import hashlib
import json
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from teengined.core.model import ALIGNMENT_BYTES, MANIFEST_SCHEMA, ModelManifest, TensorSpec, UnitKind, UnitSpec
from teengined.modelpack.manifest import write_manifest

__all__ = ["BOS", "EOS", "VOCAB_SIZE", "write_byte_package"]

EOS, BOS, VOCAB_SIZE = 256, 257, 258
TEMPLATE = (
    "{% for message in messages %}{% if message.role == 'robot' %}{{ raise_exception('no robots') }}{% endif %}"
    "[{{ message.role }}]{{ message.content }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


def write_byte_package(store: Path, name: str = "bytes", *, num_layers: int = 4, context: int = 4096) -> Path:
    """Write the package into a store and return its directory."""
    directory = store / name
    (directory / "units").mkdir(parents=True)
    _write_tokenizer(directory)
    (directory / "config.json").write_text(json.dumps({"model_type": "bytes"}))
    units = [_unit("embedding", UnitKind.EMBEDDING, 0)]
    units += [_unit(f"layer.{layer}", UnitKind.LAYER, layer + 1, layer) for layer in range(num_layers)]
    units.append(_unit("head", UnitKind.HEAD, num_layers + 1))
    (directory / "units" / "all.safetensors").write_bytes(bytes(ALIGNMENT_BYTES * len(units)))
    manifest = ModelManifest(
        schema=MANIFEST_SCHEMA,
        name=name,
        source="made for tests",
        architecture="bytes",
        num_layers=num_layers,
        hidden_size=8,
        vocab_size=VOCAB_SIZE,
        max_context_tokens=context,
        kv_elements_per_token=(16,) * num_layers,
        compute_dtype="fp32",
        precision="fp32",
        eos_token_ids=(EOS,),
        config_digest=_digest((directory / "config.json").read_bytes()),
        tokenizer_digest=_digest((directory / "tokenizer.json").read_bytes()),
        units=tuple(units),
    )
    write_manifest(directory, manifest)
    return directory


def _unit(unit_id: str, kind: UnitKind, index: int, layer: int | None = None) -> UnitSpec:
    parameter = f"model.layers.{layer}.weight" if layer is not None else f"{unit_id}.weight"
    return UnitSpec(
        id=unit_id,
        kind=kind,
        layer=layer,
        expert=None,
        precision="fp32",
        file="units/all.safetensors",
        offset_bytes=index * ALIGNMENT_BYTES,
        size_bytes=ALIGNMENT_BYTES,
        num_parameters=64,
        digest=_digest(bytes(ALIGNMENT_BYTES)),
        tensors=(
            TensorSpec(parameter=parameter, part="data", dtype="F32", shape=(8, 8), offset_bytes=0, size_bytes=256),
        ),
    )


def _digest(content: bytes) -> str:
    return f"blake2b:{hashlib.blake2b(content, digest_size=32).hexdigest()}"


def _write_tokenizer(directory: Path) -> None:
    """Token i is byte i, in GPT-2's spelling of bytes as printable characters; then end and beginning of text."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in printable]
    vocabulary = {chr(byte): byte for byte in printable}
    vocabulary.update({chr(256 + index): byte for index, byte in enumerate(hidden)})
    tokenizer = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<eos>", "<bos>"])
    tokenizer.save(str(directory / "tokenizer.json"))
    config = {"eos_token": "<eos>", "bos_token": {"content": "<bos>"}, "chat_template": TEMPLATE}
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
