import stat
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from teengined.kvcache.kept import MAX_KEPT_BLOCKS
from teengined.service.settings import KvSettings
from teengined.service.spool import SpoolDirectory, spool_limits

BLOCK_BYTES = 1000


def planned(**profile) -> Any:
    """Two stages of 10 blocks, 600 and 400 bytes each."""
    stages = [SimpleNamespace(device_id=f"cpu:{i}", kv_bytes=kv_bytes) for i, kv_bytes in enumerate((6000, 4000))]
    device = SimpleNamespace(device_id="cpu:0", host_to_device_bytes_per_second=profile.get("link"))
    host = SimpleNamespace(memory_read_bytes_per_second=4e6, disk_read_bytes_per_second=1e6)
    return cast(
        "Any",
        SimpleNamespace(
            plan=SimpleNamespace(stages=stages, prefill_seconds=5.12, context_tokens=4096),
            planning=SimpleNamespace(num_blocks=10, block_tokens=16),
            profiles=SimpleNamespace(devices=[device], host=host),
        ),
    )


def test_budgets_become_slots_of_all_stages_together():
    settings = KvSettings(
        host_spool=10_500, disk_spool=99_999, max_restore=2500, checkpoint_tokens=64, checkpoint_seconds=5.0
    )

    limits = spool_limits(settings, planned(), available_bytes=1 << 30)

    assert (limits.num_host_slots, limits.num_disk_slots, limits.max_restored_blocks) == (10, 99, 2)
    assert (limits.checkpoint_tokens, limits.checkpoint_seconds) == (64, 5.0)


def test_host_memory_is_taken_only_where_much_of_it_is_free():
    assert spool_limits(KvSettings(), planned(), available_bytes=40_000).num_host_slots == 5


def test_without_host_memory_there_is_no_disk_and_without_disk_no_checkpoint():
    assert spool_limits(KvSettings(host_spool=0, disk_spool=9999), planned(), 1 << 30).num_disk_slots == 0
    assert not spool_limits(
        KvSettings(checkpoint_tokens=64, checkpoint_seconds=5.0), planned(), 1 << 30
    ).has_checkpoints


def test_what_is_kept_is_no_more_than_may_be_kept():
    told = 192 + 16 * 5 + 2 * 66
    kept = KvSettings(disk_spool=99_999, kept_spool=2 * 4096 + 3 * (8192 + told))
    many = KvSettings(disk_spool=1 << 40, kept_spool=1 << 40)

    limits = spool_limits(kept, planned(), 1 << 30)

    assert (limits.num_disk_slots, limits.outlives) == (3, True)
    assert spool_limits(many, planned(), 1 << 30).num_disk_slots == MAX_KEPT_BLOCKS
    assert not spool_limits(KvSettings(kept_spool=1 << 30), planned(), 1 << 30).outlives
    assert not spool_limits(KvSettings(disk_spool=99_999), planned(), 1 << 30).outlives


def test_disk_spool_is_as_it_was_where_not_one_block_may_be_kept():
    without = spool_limits(KvSettings(disk_spool=99_999), planned(), 1 << 30)

    assert spool_limits(KvSettings(disk_spool=99_999, kept_spool=8192), planned(), 1 << 30) == without


def test_speeds_are_those_of_the_plan_and_the_measurements():
    speeds = spool_limits(KvSettings(), planned(), 1 << 30).speeds
    linked = spool_limits(KvSettings(), planned(link=6000.0), 1 << 30).speeds

    assert speeds.token_seconds == pytest.approx(0.01)
    assert speeds.host_block_seconds == pytest.approx(600 / 1e6)
    assert speeds.disk_block_seconds == pytest.approx(BLOCK_BYTES / 1e6)
    assert linked.host_block_seconds == pytest.approx(0.1)


def test_directory_is_its_owners_only_and_each_daemons_own(tmp_path: Path):
    one = SpoolDirectory(root=tmp_path / "spool", runtime_dir=Path("/run/one"))
    other = SpoolDirectory(root=tmp_path / "spool", runtime_dir=Path("/run/other"))
    path = one.make("d1")
    other.make("d1")

    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    one.clear()
    assert not path.exists()
    assert other.path.is_dir()
    one.clear()


def test_directory_that_cannot_be_made_is_told_and_no_more(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    (tmp_path / "spool").write_text("a file")

    SpoolDirectory(root=tmp_path / "spool", runtime_dir=tmp_path).make("d1")

    assert "no directory for spooled KV" in caplog.text
