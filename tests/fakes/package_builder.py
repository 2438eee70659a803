"""Small packages with known bytes, for tests that move weights and do not care what they mean."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch

from teengined.core.model import ALIGNMENT_BYTES, MANIFEST_SCHEMA, ModelManifest, TensorSpec, UnitKind, UnitSpec
from teengined.core.plan import Stage, StageCost, Tier, UnitPlacement

__all__ = ["BuiltPackage", "build_package", "stage_of"]

VOCAB_SIZE = 256
HIDDEN_SIZE = 48
EMBEDDING = "model.embed_tokens.weight"
_SAFETENSORS = {torch.float32: "F32", torch.bfloat16: "BF16", torch.int8: "I8"}


@dataclass(frozen=True, slots=True, kw_only=True)
class BuiltPackage:
    """A package on disk and what it should hold."""

    directory: Path
    manifest: ModelManifest
    tensors: dict[tuple[str, str, str], torch.Tensor]
    """(unit id, parameter, part) -> tensor."""

    def path_of(self, unit_id: str) -> Path:
        """Return the file that holds a unit."""
        return self.directory / self.unit(unit_id).file

    def unit(self, unit_id: str) -> UnitSpec:
        """Return a unit by id."""
        return next(unit for unit in self.manifest.units if unit.id == unit_id)


def build_package(
    directory: Path, *, num_layers: int = 4, num_experts: int = 0, tied: bool = False, rows: int = 64
) -> BuiltPackage:
    """Write a package of random tensors: int8 with a scale, and a float vector, in each layer; `rows` sets its size."""
    directory.mkdir(parents=True, exist_ok=True)
    writer = _Writer(directory)
    writer.add("embedding", UnitKind.EMBEDDING, {EMBEDDING: _quantised(VOCAB_SIZE, HIDDEN_SIZE)})
    for layer in range(num_layers):
        prefix = f"model.layers.{layer}"
        dense = {f"{prefix}.q.weight": _quantised(rows + layer, 1000), f"{prefix}.norm.weight": _vector(HIDDEN_SIZE)}
        writer.add(f"layer.{layer}", UnitKind.LAYER, dense, layer=layer)
        for expert in range(num_experts):
            held = {f"{prefix}.experts.{expert}.up.weight": _quantised(40, 100)}
            writer.add(f"layer.{layer}.expert.{expert}", UnitKind.EXPERT, held, layer=layer, expert=expert)
    head = {"model.norm.weight": _vector(HIDDEN_SIZE)}
    if not tied:
        head["lm_head.weight"] = _quantised(VOCAB_SIZE, HIDDEN_SIZE)
    writer.add("head", UnitKind.HEAD, head)
    manifest = _manifest(writer.units, num_layers, {"lm_head.weight": EMBEDDING} if tied else {})
    return BuiltPackage(directory=directory, manifest=manifest, tensors=writer.tensors)


def stage_of(
    package: BuiltPackage,
    *,
    streamed: tuple[str, ...] = (),
    tier: Tier = Tier.DISK,
    layers: tuple[int, int] | None = None,
    has_embedding: bool = True,
    has_head: bool = True,
) -> Stage:
    """Return a stage that streams the named units and keeps the others; `("*",)` streams all."""
    manifest = package.manifest
    first, end = layers or (0, manifest.num_layers)
    units = tuple(
        UnitPlacement(unit_id=unit.id, tier=tier if unit.id in streamed or "*" in streamed else Tier.DEVICE)
        for unit in manifest.units
    )
    cost = StageCost(compute_seconds=0, host_seconds=0, disk_seconds=0, hop_seconds=0, seconds=0, binding="compute")
    return Stage(
        index=0,
        device_id="cpu:0",
        layer_start=first,
        layer_end=end,
        has_embedding=has_embedding,
        has_head=has_head,
        compute_dtype="fp32",
        units=units,
        resident_bytes=0,
        ring_bytes=0,
        kv_bytes=0,
        workspace_bytes=0,
        transport="",
        cost=cost,
    )


class _Writer:
    """Lays units out one after another in one file each kind."""

    def __init__(self, directory: Path) -> None:
        self.units: list[UnitSpec] = []
        self.tensors: dict[tuple[str, str, str], torch.Tensor] = {}
        self._directory = directory

    def add(
        self,
        unit_id: str,
        kind: UnitKind,
        parameters: dict[str, dict[str, torch.Tensor]],
        *,
        layer: int | None = None,
        expert: int | None = None,
    ) -> None:
        content = bytearray()
        specs: list[TensorSpec] = []
        for parameter, parts in parameters.items():
            for part, tensor in parts.items():
                content.extend(bytes(-len(content) % 64))
                specs.append(
                    TensorSpec(
                        parameter=parameter,
                        part=part,
                        dtype=_SAFETENSORS[tensor.dtype],
                        shape=tuple(tensor.shape),
                        offset_bytes=len(content),
                        size_bytes=tensor.nbytes,
                    )
                )
                content.extend(tensor.view(torch.uint8).numpy().tobytes())
                self.tensors[unit_id, parameter, part] = tensor
        content.extend(bytes(-len(content) % ALIGNMENT_BYTES))
        self._append(unit_id, kind, layer, expert, bytes(content), tuple(specs))

    def _append(self, unit_id, kind, layer, expert, content, specs) -> None:
        name = "embedding.bin" if kind is UnitKind.EMBEDDING else "layers.bin"
        path = self._directory / name
        with path.open("ab") as file:
            if file.tell() == 0:
                file.write(bytes(ALIGNMENT_BYTES))  # where a header would be
            offset = file.tell()
            file.write(content)
        self.units.append(
            UnitSpec(
                id=unit_id,
                kind=kind,
                layer=layer,
                expert=expert,
                precision="int8",
                file=name,
                offset_bytes=offset,
                size_bytes=len(content),
                num_parameters=len(content),
                digest="blake2b:" + hashlib.blake2b(content, digest_size=32).hexdigest(),
                tensors=specs,
            )
        )


def _quantised(num_rows: int, num_columns: int) -> dict[str, torch.Tensor]:
    data = torch.randint(-127, 127, (num_rows, num_columns), dtype=torch.int8)
    return {"data": data, "scale": torch.rand(num_rows, dtype=torch.float32)}


def _vector(size: int) -> dict[str, torch.Tensor]:
    return {"data": torch.rand(size).to(torch.bfloat16)}


def _manifest(units: list[UnitSpec], num_layers: int, tied: dict[str, str]) -> ModelManifest:
    return ModelManifest(
        schema=MANIFEST_SCHEMA,
        name="tiny",
        source="random numbers",
        architecture="llama",
        num_layers=num_layers,
        hidden_size=HIDDEN_SIZE,
        vocab_size=VOCAB_SIZE,
        max_context_tokens=128,
        kv_elements_per_token=(64,) * num_layers,
        compute_dtype="fp32",
        precision="int8",
        eos_token_ids=(0,),
        config_digest="",
        tokenizer_digest="",
        tied_parameters=tied,
        units=tuple(units),
    )
