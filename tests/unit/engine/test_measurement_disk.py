from pathlib import Path

import pytest

from teengined.core.errors import DriverError
from teengined.engine.measurement_disk import disk_read_bytes_per_second
from teengined.weights.options import StreamOptions


def test_the_disk_is_measured_and_nothing_is_left(tmp_path):
    num_open = len(list(Path("/proc/self/fd").iterdir()))

    assert disk_read_bytes_per_second(tmp_path, StreamOptions()) > 0

    assert list(tmp_path.iterdir()) == []
    assert len(list(Path("/proc/self/fd").iterdir())) == num_open


def test_a_directory_that_cannot_be_written_is_told(tmp_path):
    with pytest.raises(DriverError, match="missing"):
        disk_read_bytes_per_second(tmp_path / "missing", StreamOptions())
