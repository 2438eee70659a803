from teengined.engine.measurement_device import _copy_bytes_per_second, _memory_bytes_per_second
from tests.fakes.separate_device import SeparateDevice


def test_copies_of_a_device_with_memory_of_its_own_are_measured_and_leave_nothing():
    with SeparateDevice() as device:
        assert _copy_bytes_per_second(device) > 0

        assert device.memory_info().allocated_bytes == 0
        assert device.staging_bytes == 0


def test_memory_is_measured():
    assert _memory_bytes_per_second() > 0
