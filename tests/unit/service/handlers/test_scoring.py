import math
import struct

import pytest

from teengined.core.errors import NumericalFault
from teengined.service.handlers.scoring import normalized


def test_vector_keeps_its_direction_and_gets_length_one():
    assert struct.unpack("<2f", normalized(struct.pack("<2f", 3.0, -4.0))) == pytest.approx((0.6, -0.8))


def test_vector_without_length_stays():
    assert normalized(bytes(8)) == bytes(8)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_vector_of_what_is_no_number_is_a_fault(value: float):
    with pytest.raises(NumericalFault):
        normalized(struct.pack("<2f", 1.0, value))
