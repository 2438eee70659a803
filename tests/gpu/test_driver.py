"""Accelerator drivers against the contract, and what only they can show: copies beside compute."""

import os

import pytest
import torch

from teengined.core.device import DeviceSpec
from teengined.core.errors import DriverError, OutOfDeviceMemory
from teengined.core.sealed_memory import create_memory, fill_memory
from teengined.interfaces.driver import Device, Driver
from teengined.interfaces.registry import PluginRegistry
from teengined.weights.mapped_memory import drop_pages, tensor_of_memory
from tests.conformance.driver_contract import DriverContract

pytestmark = pytest.mark.gpu

MIB = 2**20
DRIVERS = {name: driver for name, driver in PluginRegistry.load().drivers().items() if name not in ("cpu", "null")}


@pytest.fixture(params=list(DRIVERS))
def driver(request: pytest.FixtureRequest) -> Driver:
    return DRIVERS[request.param]


@pytest.fixture
def large_device(driver: Driver):
    availability = driver.availability()
    if not availability.available:
        pytest.skip(f"driver {driver.name}: {availability.reason}")
    found = driver.discover()[0]
    with driver.open(DeviceSpec(id=found.id, driver=driver.name, memory_bytes=found.total_memory_bytes // 2)) as device:
        yield device


class TestDriver(DriverContract):
    """The contract, once more, where the hardware is."""


def test_staging_is_page_locked(large_device: Device) -> None:
    assert large_device.allocate_staging(MIB).is_pinned()


def test_a_pool_of_host_memory_that_is_mapped_for_reading_is_page_locked_until_it_is_unregistered(
    large_device: Device,
) -> None:
    descriptor = create_memory("teengine-test", 64 * MIB)
    fill_memory(descriptor, memoryview(b"\x07" * (64 * MIB)))
    shared, buffer = tensor_of_memory(descriptor, 64 * MIB), large_device.allocate(64 * MIB)
    os.close(descriptor)

    try:
        assert large_device.register_host(shared)
    except DriverError as error:
        pytest.skip(f"{large_device.spec.id} cannot register memory that is mapped for reading only: {error.message}")
    assert shared.is_pinned()
    large_device.copy(shared, buffer).wait()
    assert int(buffer.sum(dtype=torch.int64)) == 7 * 64 * MIB

    assert large_device.unregister_host(shared)
    assert not shared.is_pinned()
    drop_pages(shared)


def test_copy_overlaps_compute_that_was_queued_before_it(large_device: Device) -> None:
    staging, buffer = large_device.allocate_staging(256 * MIB), large_device.allocate(256 * MIB)
    a = torch.randn(8192, 8192, device=large_device.torch_device)
    product = a @ a
    large_device.synchronize()
    compute_end = torch.cuda.Event()

    for _ in range(50):
        torch.mm(a, a, out=product)
    compute_end.record()
    large_device.copy(staging, buffer).synchronize()

    # 50 products of 1.1 TFLOP take far longer than a copy of 256 MiB, so the copy must be done first.
    assert not compute_end.query()


def test_a_buffer_is_refilled_only_after_the_recorded_compute_that_reads_it(large_device: Device) -> None:
    staging, buffer = large_device.allocate_staging(64 * MIB), large_device.allocate(64 * MIB)
    buffer.fill_(1)
    staging.fill_(2)
    a = torch.randn(4096, 4096, device=large_device.torch_device)
    for _ in range(50):
        a = a @ a
    seen = buffer.sum(dtype=torch.int64)

    large_device.record_compute().synchronize()
    large_device.copy(staging, buffer).wait()

    assert int(seen) == 64 * MIB
    assert int(buffer[0]) == 2


def test_what_torch_allocates_itself_stays_in_the_budget(driver: Driver) -> None:
    availability = driver.availability()
    if not availability.available:
        pytest.skip(f"driver {driver.name}: {availability.reason}")
    found = driver.discover()[0]

    with driver.open(DeviceSpec(id=found.id, driver=driver.name, memory_bytes=512 * MIB)) as device:
        with pytest.raises(torch.OutOfMemoryError):
            torch.empty(1024 * MIB, dtype=torch.uint8, device=device.torch_device)
        with pytest.raises(OutOfDeviceMemory):
            device.allocate(1024 * MIB)
