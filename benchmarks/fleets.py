"""Random fleets of cards people own, and models of equal layers, for measuring the planner. Everything is seeded."""

import random
from dataclasses import dataclass

from teengined.core.device import ComputePoint, DeviceProfile, DeviceSpec, HostProfile, LinkProfile
from teengined.core.model import ModelManifest, UnitKind, UnitSpec
from teengined.core.plan import Objective
from teengined.placement.inputs import PlanningInput

__all__ = ["CARDS", "Card", "fleet_planning", "synthetic_manifest"]

_GB = 10**9


@dataclass(frozen=True, slots=True)
class Card:
    """What a data sheet says, in GB and GB/s."""

    memory: float
    memory_bandwidth: float
    host_bandwidth: float


# RTX 3090, 4090, 2080 Ti, 3070, T4, A100 80 GB and a 6 GB card.
CARDS = (
    Card(24, 936, 25),
    Card(24, 1008, 25),
    Card(11, 616, 12),
    Card(8, 448, 12),
    Card(16, 320, 12),
    Card(80, 2039, 25),
    Card(6, 336, 6),
)


def synthetic_manifest(num_layers: int, layer_bytes: int = 500_000_512) -> ModelManifest:
    """Return a model of equal int8 layers, with a head and an embedding of half a layer."""
    sizes = {"embedding": layer_bytes // 2, "head": layer_bytes // 2}
    layers = tuple(_unit(UnitKind.LAYER, f"layer.{layer}", layer_bytes, layer) for layer in range(num_layers))
    return ModelManifest(
        schema="teengine.package/v1",
        name=f"synthetic-{num_layers}",
        source="synthetic",
        architecture="llama",
        num_layers=num_layers,
        hidden_size=8192,
        vocab_size=32000,
        max_context_tokens=8192,
        kv_elements_per_token=(2048,) * num_layers,
        compute_dtype="bf16",
        precision="int8",
        eos_token_ids=(0,),
        config_digest="",
        tokenizer_digest="",
        units=(
            _unit(UnitKind.EMBEDDING, "embedding", sizes["embedding"]),
            *layers,
            _unit(UnitKind.HEAD, "head", sizes["head"]),
        ),
    )


def fleet_planning(
    seed: int, *, num_devices: int, num_layers: int, objective: Objective, distinct: bool = False
) -> PlanningInput:
    """Return a fleet drawn from `CARDS`, its memory scaled so that some models overflow into host memory.

    Args:
        seed: Of everything drawn.
        num_devices: Cards in the fleet.
        num_layers: Layers of the model.
        objective: What to minimise.
        distinct: Give each card a memory of its own, so that no two are identical.
    """
    rng = random.Random(seed)
    manifest = synthetic_manifest(num_layers)
    # The fleet's memory is about 0.6 to 3 times the model's.
    scale = rng.choice([0.5, 1.0, 1.5, 2.5]) * num_layers / (40 * num_devices)
    cards = [rng.choice(CARDS) for _ in range(num_devices)]
    devices = tuple(
        DeviceSpec(id=f"cuda:{index}", driver="cuda", memory_bytes=_memory_bytes(card, scale, rng, distinct=distinct))
        for index, card in enumerate(cards)
    )
    return PlanningInput(
        manifest=manifest,
        devices=devices,
        profiles={device.id: _profile(device, card) for device, card in zip(devices, cards, strict=True)},
        host=HostProfile(
            host="synthetic",
            disk_read_bytes_per_second=3.0 * _GB,
            memory_read_bytes_per_second=100.0 * _GB,
            memory_bytes=2 * manifest.size_bytes,
        ),
        links=tuple(_links(devices, rng)),
        context_tokens=2048,
        objective=objective,
    )


def _memory_bytes(card: Card, scale: float, rng: random.Random, *, distinct: bool) -> int:
    jitter = rng.uniform(0.9, 1.1) if distinct else 1.0
    return int(max(2.5, card.memory * scale * jitter) * _GB)


def _links(devices: tuple[DeviceSpec, ...], rng: random.Random) -> list[LinkProfile]:
    latency_seconds = rng.choice([0.0002, 0.001])
    return [
        LinkProfile(
            source=source.id,
            target=target.id,
            transport="tcp",
            latency_seconds=latency_seconds,
            bytes_per_second=1.2 * _GB,
        )
        for source in devices
        for target in devices
        if source is not target
    ]


def _profile(device: DeviceSpec, card: Card) -> DeviceProfile:
    point = ComputePoint(precision="int8", num_tokens=1, seconds_per_parameter=1 / (card.memory_bandwidth * _GB))
    return DeviceProfile(
        device_id=device.id,
        compute_dtype="bf16",
        compute=(point,),
        layer_overhead_seconds=50e-6,
        host_to_device_bytes_per_second=card.host_bandwidth * _GB,
    )


def _unit(kind: UnitKind, unit_id: str, size_bytes: int, layer: int | None = None) -> UnitSpec:
    return UnitSpec(
        id=unit_id,
        kind=kind,
        layer=layer,
        expert=None,
        precision="int8",
        file=f"units/{unit_id}.safetensors",
        offset_bytes=0,
        size_bytes=size_bytes,
        num_parameters=size_bytes,
        digest="",
        tensors=(),
    )
