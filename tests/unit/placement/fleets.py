"""Small models and fleets for planner tests: every number is chosen by the test or drawn from its seed."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from teengined.core.device import ComputePoint, DeviceProfile, DeviceSpec, HostProfile, LinkProfile
from teengined.core.model import ModelManifest, TensorSpec, UnitKind, UnitSpec
from teengined.core.plan import Objective
from teengined.interfaces.policy import Assignment, PlacementPolicy, PlacementProblem
from teengined.placement.inputs import PlanningInput

PAGE = 4096
EMBEDDING = "model.embed_tokens.weight"


class Optimal(PlacementPolicy):
    name = "optimal"

    def place(self, problem: PlacementProblem) -> tuple[Assignment, ...]:
        return problem.exact_assignment()


def unit(kind: UnitKind, pages: int, *, layer: int | None = None, expert: int | None = None, **fields: Any) -> UnitSpec:
    name = kind.value if layer is None else f"layer.{layer}" + ("" if expert is None else f".expert.{expert}")
    values: dict[str, Any] = {
        "id": name,
        "kind": kind,
        "layer": layer,
        "expert": expert,
        "precision": "fp32",
        "file": f"units/{name}.safetensors",
        "offset_bytes": 0,
        "size_bytes": pages * PAGE,
        "num_parameters": pages * PAGE // 4,
        "digest": "blake2b:" + "0" * 64,
        "tensors": (),
    }
    return UnitSpec(**{**values, **fields})


def tensor(parameter: str, *shape: int) -> TensorSpec:
    return TensorSpec(parameter=parameter, part="data", dtype="F32", shape=shape, offset_bytes=0, size_bytes=0)


def manifest(layer_pages: Sequence[int], *, head: int = 1, embedding: int = 1, tied: bool = False, **fields: Any):
    """Layers, head and embedding by their pages. Workspace is small: hidden size 1."""
    units = (
        unit(UnitKind.EMBEDDING, embedding, tensors=(tensor(EMBEDDING, 1, 1),)),
        *(
            unit(UnitKind.LAYER, pages, layer=layer, tensors=(tensor(f"w.{layer}", 1, 1),))
            for layer, pages in enumerate(layer_pages)
        ),
        unit(UnitKind.HEAD, head),
    )
    values: dict[str, Any] = {
        "schema": "teengine.package/v1",
        "name": "toy",
        "source": "toy",
        "architecture": "llama",
        "num_layers": len(layer_pages),
        "hidden_size": 1,
        "vocab_size": 1,
        "max_context_tokens": 4096,
        "kv_elements_per_token": (1,) * len(layer_pages),
        "compute_dtype": "fp32",
        "precision": "fp32",
        "eos_token_ids": (0,),
        "config_digest": "",
        "tokenizer_digest": "",
        "tied_parameters": {"lm_head.weight": EMBEDDING} if tied else {},
        "units": units,
    }
    return ModelManifest(**{**values, **fields})


def spec(index: int, pages: float, driver: str = "cpu") -> DeviceSpec:
    return DeviceSpec(id=f"{driver}:{index}", driver=driver, memory_bytes=int(pages * PAGE))


def profile(device: DeviceSpec, *, speed: float = 1.0, copies: float | None = None, **fields: Any) -> DeviceProfile:
    """Compute `speed` pages a millisecond; `copies` pages a millisecond from host to device."""
    points = tuple(
        ComputePoint(precision=precision, num_tokens=tokens, seconds_per_parameter=1e-3 / speed / (PAGE / 4) * tokens)
        for precision in ("fp32", "fp16")
        for tokens in (1, 512)
    )
    values: dict[str, Any] = {
        "device_id": device.id,
        "compute_dtype": "fp32",
        "compute": points,
        "layer_overhead_seconds": 0.0,
        "host_to_device_bytes_per_second": None if copies is None else copies * PAGE * 1000,
    }
    return DeviceProfile(**{**values, **fields})


def host(*, disk: float = 1.0, memory_pages: float = 0) -> HostProfile:
    """Disk reads `disk` pages a millisecond."""
    return HostProfile(
        host="here",
        disk_read_bytes_per_second=disk * PAGE * 1000,
        memory_read_bytes_per_second=1e10,
        memory_bytes=int(memory_pages * PAGE),
    )


def planning(
    model: ModelManifest,
    devices: Sequence[DeviceSpec],
    profiles: Mapping[str, DeviceProfile] | None = None,
    **fields: Any,
) -> PlanningInput:
    """No room is lost to a step: one token at a time, unless the test says otherwise."""
    values: dict[str, Any] = {
        "manifest": model,
        "devices": tuple(devices),
        "profiles": profiles or {device.id: profile(device) for device in devices},
        "host": host(),
        "context_tokens": 16,
        "max_step_tokens": 1,
    }
    return PlanningInput(**{**values, **fields})


def random_planning(seed: int, *, max_layers: int = 6, max_devices: int = 4, gpus: bool = True) -> PlanningInput:
    """A fleet with unequal layers, devices, links and tiers; some devices are equal, some too small for anything."""
    rng = random.Random(seed)
    sizes = rng.choice([[2], [2, 4], [1, 2, 3, 5]])
    model = manifest(
        [rng.choice(sizes) for _ in range(rng.randint(1, max_layers))],
        head=rng.choice([1, 2, 7]),
        embedding=rng.choice([1, 3]),
        tied=rng.random() < 0.4,
        kv_elements_per_token=(),
    )
    model = manifest_with_kv(model, rng.choice([1, 16]))
    if rng.random() < 0.4:
        model = with_experts(model, rng.choice([2, 4, 9]), per_token=rng.choice([1, 2]), rng=rng)
    devices: list[DeviceSpec] = []
    profiles: dict[str, DeviceProfile] = {}
    for index in range(rng.randint(1, max_devices)):
        gpu = gpus and rng.random() < 0.4
        device = spec(index, rng.choice([0.5, 4, 7, 12, 30]), "cuda" if gpu else "cpu")
        devices.append(device)
        copies = rng.choice([2.0, 8.0]) if gpu else None
        overhead = rng.choice([0.0, 1e-4])
        profiles[device.id] = profile(device, speed=rng.choice([1, 5]), copies=copies, layer_overhead_seconds=overhead)
    return planning(
        model,
        devices,
        profiles,
        host=host(disk=rng.choice([0.5, 2, 10]), memory_pages=rng.choice([0, 10_000]) if gpus else 0),
        links=tuple(random_links(devices, rng)),
        objective=rng.choice(list(Objective)),
        resident_fraction=rng.choice([None, None, None, 0.0, 0.5, 1.0]),
        context_tokens=rng.choice([1, 64, 512]),
        ring_slots=rng.choice([2, 3]),
    )


def manifest_with_kv(model: ModelManifest, elements: int) -> ModelManifest:
    return replace(model, kv_elements_per_token=(elements,) * model.num_layers)


def with_experts(model: ModelManifest, number: int, *, per_token: int, rng: random.Random) -> ModelManifest:
    """Give most layers experts of a page, or of two in some layers."""
    sizes = rng.choice([[1], [1, 2]])
    experts = [
        unit(UnitKind.EXPERT, size, layer=layer, expert=expert)
        for layer in range(model.num_layers)
        if rng.random() < 0.8
        for size in [rng.choice(sizes)]
        for expert in range(number)
    ]
    return replace(model, num_experts=number, num_experts_per_token=per_token, units=(*model.units, *experts))


def random_links(devices: Sequence[DeviceSpec], rng: random.Random) -> list[LinkProfile]:
    """Measured links for most pairs; one way may differ from the other."""
    slow = rng.random() < 0.5
    return [
        LinkProfile(
            source=source.id,
            target=target.id,
            transport="tcp",
            latency_seconds=rng.choice([1e-4, 1e-3, 2e-2]) if slow else 1e-4,
            bytes_per_second=1e8,
        )
        for source in devices
        for target in devices
        if source is not target and rng.random() < 0.8
    ]
