"""Measured profiles answer for row counts between and beyond what was measured."""

import pytest

from teengined.core.device import ComputePoint, DeviceProfile


def profile(**seconds: float) -> DeviceProfile:
    """`n8=1.0` is a measurement at 8 rows in fp32."""
    return DeviceProfile(
        device_id="cpu:0",
        compute_dtype="fp32",
        compute=tuple(
            ComputePoint(precision="fp32", num_tokens=int(name[1:]), seconds_per_parameter=value)
            for name, value in seconds.items()
        ),
        layer_overhead_seconds=0.0,
        host_to_device_bytes_per_second=None,
    )


@pytest.mark.parametrize(("num_tokens", "seconds"), [(1, 1.0), (2, 4.0), (8, 4.0), (9, 20.0), (64, 20.0)])
def test_cost_is_that_of_the_next_measured_row_count(num_tokens: int, seconds: float) -> None:
    measured = profile(n1=1.0, n8=4.0, n64=20.0)

    assert measured.seconds_per_parameter("fp32", num_tokens) == seconds


def test_cost_beyond_the_last_measurement_grows_with_the_rows() -> None:
    assert profile(n1=1.0, n64=20.0).seconds_per_parameter("fp32", 128) == pytest.approx(40.0)


def test_order_of_measurement_does_not_matter() -> None:
    assert profile(n64=20.0, n1=1.0).seconds_per_parameter("fp32", 1) == 1.0


def test_precision_that_was_not_measured_is_a_key_error() -> None:
    with pytest.raises(KeyError, match="int8"):
        profile(n1=1.0).seconds_per_parameter("int8", 1)
