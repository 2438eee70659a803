"""Measures one device, in a process of its own: `python -m teengined.engine.measurement_device`.

Request: {"device": DeviceSpec, "measure_host": bool}. Events: `step` after each part, then `done` with the profile.
"""

import dataclasses
import statistics
import sys
import time

import torch

from teengined.core.device import DeviceProfile, DeviceSpec
from teengined.core.records import from_mapping, to_mapping
from teengined.engine.measurement_layer import layer_overhead_seconds
from teengined.engine.measurement_process import Event, emit, serve_request
from teengined.engine.measurement_products import MeasuredProducts, PassLimits, fastest_compute_dtype, measure_products
from teengined.interfaces.driver import Device
from teengined.interfaces.registry import PluginRegistry

__all__ = ["main"]

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# The matrices that are measured with, whatever the budget of the device: nothing else is loaded meanwhile.
_WORKING_BYTES = 2 << 30
_COPY_BYTES = 64 << 20
_MEMORY_BYTES = 256 << 20
_NUM_COPIES = 5


def main() -> int:
    """Answer one request."""
    return serve_request(_answer)


def _answer(request: Event) -> None:
    spec = from_mapping(DeviceSpec, request["device"])
    memory_rate = None
    if request["measure_host"]:
        memory_rate = _memory_bytes_per_second()
        emit("step", phase="memory")
    registry = PluginRegistry.load()
    roomy = dataclasses.replace(spec, memory_bytes=max(spec.memory_bytes, _WORKING_BYTES))
    driver = registry.driver(spec.driver)
    with driver.open(roomy) as device:
        profile = _profile(device, registry)
        shared = device.shares_host_memory
    described = {description.id: description for description in driver.discover()}
    versions = described[spec.id].library_versions if spec.id in described else (f"torch {torch.__version__}",)
    profile = dataclasses.replace(profile, library_versions=versions)
    emit("done", profile=to_mapping(profile), memory_bytes_per_second=memory_rate, shares_host_memory=shared)


def _profile(device: Device, registry: PluginRegistry) -> DeviceProfile:
    limits = PassLimits()
    measured: dict[str, MeasuredProducts] = {}
    strategies = registry.precisions()
    for name in (name for name in _DTYPES if name in strategies):
        measured[name] = measure_products(device, strategies[name], _DTYPES[name], limits)
        emit("step", phase=f"{device.spec.id} {name}")
    compute_dtype = fastest_compute_dtype(measured)
    for name in (name for name in strategies if name not in _DTYPES):
        measured[name] = measure_products(device, strategies[name], _DTYPES[compute_dtype], limits)
        emit("step", phase=f"{device.spec.id} {name}")
    overhead = layer_overhead_seconds(device, _DTYPES[compute_dtype])
    emit("step", phase=f"{device.spec.id} layer")
    return DeviceProfile(
        device_id=device.spec.id,
        compute_dtype=compute_dtype,
        compute=tuple(point for products in measured.values() for point in products.points()),
        layer_overhead_seconds=overhead,
        host_to_device_bytes_per_second=None if device.shares_host_memory else _copy_bytes_per_second(device),
    )


def _copy_bytes_per_second(device: Device) -> float:
    """Return the rate of copies from a staging buffer, as the ring makes them."""
    source, target = device.allocate_staging(_COPY_BYTES), device.allocate(_COPY_BYTES)
    source.zero_()
    seconds: list[float] = []
    for _ in range(1 + _NUM_COPIES):
        start = time.perf_counter()
        device.copy(source, target).synchronize()
        seconds.append(time.perf_counter() - start)
    device.free(source)
    device.free(target)
    return _COPY_BYTES / statistics.median(seconds[1:])


def _memory_bytes_per_second() -> float:
    """Return the best rate of a few sums over a block far larger than the caches, on all cores."""
    block = torch.ones(_MEMORY_BYTES // 4)
    rates: list[float] = []
    for _ in range(_NUM_COPIES):
        start = time.perf_counter()
        block.sum()
        rates.append(_MEMORY_BYTES / (time.perf_counter() - start))
    return max(rates)


if __name__ == "__main__":
    sys.exit(main())
