"""A small consistent manifest and its files, made without torch, to be bent by tests."""

import json
from pathlib import Path
from typing import Any

from teengined.core.model import MANIFEST_SCHEMA, ModelManifest
from teengined.core.records import from_mapping
from teengined.modelpack.verify import digest_of

__all__ = ["manifest_table", "write_package"]

PAGE = 4096


def manifest_table(*, num_layers: int = 2, num_experts: int = 2, name: str = "small") -> dict[str, Any]:
    """Return a manifest as JSON has it: two layers, the second with two experts."""
    units = [_unit("embedding", "embedding", 0, "units/embedding.safetensors")]
    for layer in range(num_layers):
        file = f"units/layer-{layer}.safetensors"
        units.append(_unit(f"layer.{layer}", "layer", 0, file, layer=layer))
        for expert in range(num_experts if layer == num_layers - 1 else 0):
            unit = _unit(f"layer.{layer}.expert.{expert}", "expert", expert + 1, file, layer=layer)
            units.append({**unit, "expert": expert})
    units.append(_unit("head", "head", 0, "units/head.safetensors"))
    return {
        "schema": MANIFEST_SCHEMA,
        "name": name,
        "source": "a test",
        "architecture": "llama",
        "num_layers": num_layers,
        "hidden_size": 8,
        "vocab_size": 16,
        "max_context_tokens": 64,
        "kv_elements_per_token": [16] * num_layers,
        "compute_dtype": "fp32",
        "precision": "fp32",
        "eos_token_ids": [2],
        "config_digest": digest_of(b"{}"),
        "tokenizer_digest": digest_of(b"{}"),
        "num_experts": num_experts,
        "num_experts_per_token": 1,
        "tied_parameters": {"lm_head.weight": "embedding.weight"},
        "units": units,
    }


def write_package(store: Path, table: dict[str, Any] | None = None) -> Path:
    """Write the manifest and zeroed unit files as the package `small`; return its directory."""
    table = table or manifest_table()
    directory = store / "small"
    (directory / "units").mkdir(parents=True)
    ends: dict[str, int] = {}
    for unit in table["units"]:
        ends[unit["file"]] = max(ends.get(unit["file"], 0), unit["offset_bytes"] + unit["size_bytes"])
    for file, end in ends.items():
        if file.startswith("units/") and ".." not in file:
            (directory / file).write_bytes(bytes(max(end, 0)))
    (directory / "manifest.json").write_text(json.dumps(table))
    for name in ("config.json", "tokenizer.json"):
        (directory / name).write_text("{}")
    return directory


def manifest(**changes: Any) -> ModelManifest:
    """Return the manifest as a value."""
    return from_mapping(ModelManifest, {**manifest_table(), **changes})


def _unit(identity: str, kind: str, page: int, file: str, layer: int | None = None) -> dict[str, Any]:
    tensor = {"parameter": f"{identity}.weight", "part": "data", "dtype": "F32", "shape": [4, 8]}
    bias = {"parameter": f"{identity}.bias", "part": "data", "dtype": "F32", "shape": [3]}
    return {
        "id": identity,
        "kind": kind,
        "layer": layer,
        "expert": None,
        "precision": "fp32",
        "file": file,
        "offset_bytes": (page + 1) * PAGE,
        "size_bytes": PAGE,
        "num_parameters": 35,
        "digest": digest_of(bytes(PAGE)),
        "tensors": [
            {**tensor, "offset_bytes": 0, "size_bytes": 128},
            {**bias, "offset_bytes": 128, "size_bytes": 12},
        ],
    }
