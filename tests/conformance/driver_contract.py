"""What every driver must do, as tests. A suite gives the driver; this class asks the questions."""

import os
from collections.abc import Iterator

import pytest
import torch

from teengined.core.device import DeviceSpec
from teengined.core.errors import DeviceUnavailable, DriverError, OutOfDeviceMemory
from teengined.core.sealed_memory import create_memory, fill_memory
from teengined.interfaces.driver import Device, Driver
from teengined.weights.mapped_memory import drop_pages, tensor_of_memory

MIB = 2**20
BUDGET_BYTES = 64 * MIB
PAGE_BYTES = 4096

__all__ = ["BUDGET_BYTES", "DriverContract", "open_device"]


def open_device(driver: Driver) -> Device:
    """Open the first device of a driver, or skip with the reason why there is none."""
    availability = driver.availability()
    if not availability.available:
        pytest.skip(f"driver {driver.name}: {availability.reason}")
    return driver.open(DeviceSpec(id=f"{driver.name}:0", driver=driver.name, memory_bytes=BUDGET_BYTES))


class DriverContract:
    """Inherited by suites that have a fixture `driver`."""

    @pytest.fixture
    def device(self, driver: Driver) -> Iterator[Device]:
        with open_device(driver) as device:
            yield device

    def test_unavailable_driver_says_why(self, driver: Driver) -> None:
        availability = driver.availability()

        assert availability.available or len(availability.reason) > 10

    def test_discovered_devices_have_distinct_ids_of_the_driver_and_some_memory(self, driver: Driver) -> None:
        found = driver.discover()

        assert len({device.id for device in found}) == len(found)
        for device in found:
            assert device.driver == driver.name
            assert device.id.startswith(f"{driver.name}:")
            assert device.total_memory_bytes > 0
            assert device.name

    def test_discovered_device_names_the_libraries_that_its_measurements_depend_on(self, driver: Driver) -> None:
        assert all(device.library_versions for device in driver.discover())

    def test_device_that_is_not_there_is_refused(self, driver: Driver) -> None:
        spec = DeviceSpec(id=f"{driver.name}:none", driver=driver.name, memory_bytes=BUDGET_BYTES)

        with pytest.raises(DeviceUnavailable, match="none"):
            driver.open(spec)

    @pytest.mark.parametrize("num_bytes", [1, 4096, 4097, 3 * MIB + 5])
    def test_buffer_is_bytes_of_the_asked_number_on_a_page_of_the_device(self, device: Device, num_bytes: int) -> None:
        buffer = device.allocate(num_bytes)

        assert (buffer.dtype, buffer.shape) == (torch.uint8, (num_bytes,))
        assert buffer.device == device.torch_device
        assert buffer.data_ptr() % PAGE_BYTES == 0

    def test_buffers_do_not_overlap(self, device: Device) -> None:
        first, second = device.allocate(5000), device.allocate(5000)

        first.fill_(1)
        second.fill_(2)

        assert int(first.max()) == 1

    def test_allocation_beyond_the_budget_is_refused_and_counts_nothing(self, device: Device) -> None:
        with pytest.raises(OutOfDeviceMemory, match=r"\d.*\d"):
            device.allocate(BUDGET_BYTES + MIB)

        assert device.memory_info().allocated_bytes == 0

    def test_budget_holds_over_many_small_buffers(self, device: Device) -> None:
        kept = [device.allocate(8 * MIB) for _ in range(7)]

        with pytest.raises(OutOfDeviceMemory):
            kept.append(device.allocate(9 * MIB))

        assert 56 * MIB <= device.memory_info().allocated_bytes <= BUDGET_BYTES

    def test_freed_bytes_can_be_had_again_without_end(self, device: Device) -> None:
        for value in range(10):
            buffer = device.allocate(BUDGET_BYTES * 3 // 4)
            buffer.fill_(value)
            device.free(buffer)

        assert device.memory_info().allocated_bytes == 0

    def test_buffer_is_freed_once(self, device: Device) -> None:
        buffer = device.allocate(4096)
        device.free(buffer)

        with pytest.raises(DriverError, match="freed before"):
            device.free(buffer)

    def test_tensor_of_another_is_not_freed(self, device: Device) -> None:
        with pytest.raises(DriverError):
            device.free(torch.zeros(4096, dtype=torch.uint8))

    @pytest.mark.parametrize("num_bytes", [0, -1])
    def test_buffer_of_no_bytes_is_refused(self, device: Device, num_bytes: int) -> None:
        with pytest.raises(DriverError):
            device.allocate(num_bytes)

    def test_staging_is_host_memory_on_a_page(self, device: Device) -> None:
        staging = device.allocate_staging(5 * 4096 + 1)

        assert staging.device.type == "cpu"
        assert staging.data_ptr() % PAGE_BYTES == 0
        assert staging.shape == (5 * 4096 + 1,)

    def test_staging_counts_only_where_it_is_device_memory(self, device: Device) -> None:
        staging = device.allocate_staging(MIB)
        counted = device.memory_info().allocated_bytes
        device.free(staging)

        assert counted == (MIB if device.shares_host_memory else 0)
        assert device.memory_info().allocated_bytes == 0

    def test_copy_moves_every_byte_by_the_time_its_event_says(self, device: Device) -> None:
        staging, buffer = device.allocate_staging(3 * MIB), device.allocate(3 * MIB)
        staging.copy_(torch.arange(3 * MIB) % 251)

        device.copy(staging, buffer).synchronize()

        assert torch.equal(buffer.cpu(), staging)

    def test_compute_after_waiting_for_a_copy_sees_it(self, device: Device) -> None:
        staging, buffer = device.allocate_staging(3 * MIB), device.allocate(3 * MIB)
        staging.fill_(3)

        device.copy(staging, buffer).wait()
        total = buffer.sum(dtype=torch.int64)
        device.synchronize()

        assert int(total) == 9 * MIB

    def test_memory_that_others_filled_is_copied_registered_or_not(self, device: Device) -> None:
        descriptor = create_memory("teengine-test", 3 * MIB)
        content = bytes(range(256)) * (3 * MIB // 256)
        fill_memory(descriptor, memoryview(content))
        shared = tensor_of_memory(descriptor, 3 * MIB)
        os.close(descriptor)
        buffer = device.allocate(3 * MIB)

        device.copy(shared, buffer).synchronize()
        assert bytes(buffer.cpu().numpy()) == content
        buffer.fill_(0)
        try:
            registered = device.register_host(shared)
        except DriverError:  # It cannot, which costs speed only.
            registered = False
        device.copy(shared, buffer).synchronize()

        assert bytes(buffer.cpu().numpy()) == content
        assert device.unregister_host(shared) is registered
        assert not device.unregister_host(shared)
        drop_pages(shared)

    def test_copy_between_different_sizes_is_refused(self, device: Device) -> None:
        with pytest.raises(DriverError):
            device.copy(device.allocate_staging(4096), device.allocate(8192))

    def test_memory_info_tells_the_budget_and_what_is_free(self, device: Device) -> None:
        info = device.memory_info()

        assert info.budget_bytes == BUDGET_BYTES
        assert info.device_free_bytes > 0

    def test_closing_twice_is_closing_once(self, driver: Driver) -> None:
        device = open_device(driver)
        device.allocate(4096)

        device.close()
        device.close()

        with pytest.raises(DriverError):
            device.allocate(4096)

    def test_closed_device_refuses_everything(self, driver: Driver) -> None:
        device = open_device(driver)
        buffer, staging = device.allocate(4096), device.allocate_staging(4096)
        device.close()

        for use in (
            lambda: device.allocate(1),
            lambda: device.allocate_staging(1),
            lambda: device.free(buffer),
            lambda: device.copy(staging, buffer),
            lambda: device.torch_device,
            device.synchronize,
            device.memory_info,
        ):
            with pytest.raises(DriverError, match="closed"):
                use()
