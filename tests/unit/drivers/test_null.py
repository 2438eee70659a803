import pytest

from teengined.core.device import DeviceSpec
from teengined.core.errors import OutOfDeviceMemory
from teengined_drivers.null import NullDriver


def test_null_device_is_never_found_but_always_opened() -> None:
    driver = NullDriver()

    assert driver.discover() == ()
    assert driver.availability().available
    driver.open(DeviceSpec(id="null:7", driver="null", memory_bytes=1)).close()


def test_null_device_may_have_a_budget_beyond_the_host_and_holds_to_it() -> None:
    with NullDriver().open(DeviceSpec(id="null:0", driver="null", memory_bytes=2**44)) as device:
        device.allocate(2**20)

        with pytest.raises(OutOfDeviceMemory, match="of its budget"):
            device.allocate(2**44)


def test_null_device_stands_for_one_with_memory_of_its_own() -> None:
    with NullDriver().open(DeviceSpec(id="null:0", driver="null", memory_bytes=4096)) as device:
        staging = device.allocate_staging(2**20)

        assert not device.shares_host_memory
        assert device.memory_info().allocated_bytes == 0
        device.free(staging)
