"""Disks that failed are remembered."""

from pathlib import Path

from teengined.protocol.messages import DiskStatus
from teengined.service.disk_health import DiskHealth

STORE = Path("/srv/models")


def test_a_disk_without_failures_is_listed_without_a_problem() -> None:
    assert DiskHealth(paths=(STORE,)).describe() == (DiskStatus(path="/srv/models"),)


def test_failures_are_counted_at_the_place_that_holds_the_package() -> None:
    health = DiskHealth(paths=(STORE, Path("/mnt/fast")), clock=lambda: 5.0)

    health.note_failure(Path("/mnt/fast/big"), "unit layer.1: Input/output error")
    health.note_failure(Path("/mnt/fast/big"), "unit layer.2: Input/output error")

    assert health.describe() == (
        DiskStatus(path="/srv/models"),
        DiskStatus(
            path="/mnt/fast", num_failures=2, problem="unit layer.2: Input/output error", failed_unix_seconds=5.0
        ),
    )


def test_a_package_outside_the_known_places_is_a_place_of_its_own() -> None:
    health = DiskHealth(paths=(STORE,), clock=lambda: 5.0)

    health.note_failure(Path("/elsewhere/big"), "gone")

    assert [disk.path for disk in health.describe()] == ["/srv/models", "/elsewhere/big"]
