import dataclasses
import os
import threading

import pytest
import torch

from teengined.core.errors import (
    DeadlineExceeded,
    DriverError,
    InternalError,
    OutOfDeviceMemory,
    PackageCorrupt,
    PackageError,
)
from teengined.core.plan import Tier
from teengined.weights.options import StreamOptions
from teengined.weights.stage_weights import StageWeights
from tests.fakes.package_builder import build_package, stage_of
from tests.fakes.separate_device import SeparateDevice, cpu_device

OPTIONS = StreamOptions(read_chunk_bytes=16384, timeout_seconds=10)


@pytest.fixture(params=["shared", "separate"])
def device(request):
    device = cpu_device() if request.param == "shared" else SeparateDevice()
    yield device
    device.close()


def weights_of(package, device, *, options=OPTIONS, **stage):
    return StageWeights(
        package_dir=package.directory,
        manifest=package.manifest,
        stage=stage_of(package, **stage),
        device=device,
        options=options,
    )


def run_round(weights, package):
    """Acquire every group once, compare all its tensors with what was stored, and release it."""
    for group in weights.groups:
        acquired = weights.acquire(group.index)
        assert set(acquired) == set(group.unit_ids)
        for unit_id, tensors in acquired.items():
            for parameter, parts in tensors.items():
                for part, tensor in parts.items():
                    assert torch.equal(tensor, package.tensors[unit_id, parameter, part]), (unit_id, parameter, part)
        weights.release(group.index)


def run_rounds(weights, package):
    """Run so many rounds that nothing prefetched is left."""
    for _ in range(3):
        run_round(weights, package)


def flip(package, unit_id):
    with package.path_of(unit_id).open("r+b") as file:
        file.seek(package.unit(unit_id).offset_bytes + 70)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 1]))


@pytest.mark.parametrize(
    "streamed",
    [(), ("layer.1", "layer.3"), ("*",), ("layer.2.expert.0", "head"), ("layer.2",)],
    ids=["resident", "half", "all", "mixed groups", "one"],
)
@pytest.mark.parametrize("tier", [Tier.DISK, Tier.HOST])
def test_every_round_gives_the_stored_tensors(tmp_path, device, streamed, tier):
    package = build_package(tmp_path, num_experts=2, rows=100)
    weights = weights_of(package, device, streamed=streamed, tier=tier)
    weights.open()

    for _ in range(4):
        run_round(weights, package)
    weights.close()


@pytest.mark.parametrize("slots", [1, 2, 3, 9])
def test_any_number_of_slots_gives_the_stored_tensors(tmp_path, device, slots):
    package = build_package(tmp_path)
    options = dataclasses.replace(OPTIONS, ring_slots=slots)
    weights = weights_of(package, device, streamed=("*",), options=options)
    weights.open()

    for _ in range(3):
        run_round(weights, package)
    weights.close()


def test_resident_groups_give_the_same_mapping_every_time(tmp_path, device):
    weights = weights_of(build_package(tmp_path, num_layers=1), device, has_head=False)
    weights.open()
    first = weights.acquire(0)
    weights.release(0)

    assert weights.acquire(0) is first
    weights.close()


def test_every_round_moves_the_streamed_bytes_once(tmp_path):
    package = build_package(tmp_path)
    weights = weights_of(package, cpu_device(), streamed=("layer.1", "layer.3"))
    weights.open()
    for _ in range(3):
        run_round(weights, package)
    weights.acquire(0)
    weights.acquire(1)  # its arrival means that one more was counted at least

    streamed = package.unit("layer.1").size_bytes + package.unit("layer.3").size_bytes
    read = weights.statistics.streamed_bytes

    assert 3 * streamed < read <= 3 * streamed + 2 * streamed
    assert weights.statistics.reads >= read // OPTIONS.read_chunk_bytes
    assert weights.statistics.read_seconds > 0
    weights.close()


def test_memory_is_the_resident_units_and_the_ring_and_all_comes_back(tmp_path, device):
    package = build_package(tmp_path, num_layers=6)
    streamed = tuple(f"layer.{index}" for index in range(5))
    weights = weights_of(package, device, streamed=streamed)
    weights.open()
    largest = max(package.unit(unit_id).size_bytes for unit_id in streamed)
    resident = sum(unit.size_bytes for unit in package.manifest.units if unit.id not in streamed)

    assert device.memory_info().allocated_bytes == resident + OPTIONS.ring_slots * largest
    weights.close()
    assert device.memory_info().allocated_bytes == 0


def test_staging_memory_comes_back_too(tmp_path):
    device = SeparateDevice()
    weights = weights_of(build_package(tmp_path), device, streamed=("layer.0",), tier=Tier.HOST)
    weights.open()
    weights.close()

    assert device.staging_bytes == 0
    device.close()


def test_opening_reports_progress_up_to_the_total(tmp_path, device):
    package = build_package(tmp_path)
    seen = []
    weights = weights_of(package, device)

    weights.open(lambda done, total: seen.append((done, total)))

    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert seen[-1] == (package.manifest.size_bytes, package.manifest.size_bytes)
    weights.close()


def test_a_stage_larger_than_the_budget_is_refused_and_leaves_nothing(tmp_path):
    package = build_package(tmp_path)
    device = cpu_device(memory_bytes=100_000)
    threads = threading.active_count()

    with pytest.raises(OutOfDeviceMemory):
        weights_of(package, device).open()

    assert device.memory_info().allocated_bytes == 0
    assert threading.active_count() == threads


def test_a_flipped_bit_in_a_resident_unit_refuses_the_load(tmp_path, device):
    package = build_package(tmp_path)
    flip(package, "layer.2")

    with pytest.raises(PackageCorrupt, match=r"unit layer\.2"):
        weights_of(package, device).open()

    assert device.memory_info().allocated_bytes == 0


def test_a_flipped_bit_in_a_streamed_unit_is_told_when_it_is_acquired(tmp_path, device):
    package = build_package(tmp_path)
    flip(package, "layer.2")
    weights = weights_of(package, device, streamed=("*",))
    weights.open()
    for index in (0, 1):
        weights.acquire(index)
        weights.release(index)

    with pytest.raises(PackageCorrupt, match=r"unit layer\.2"):
        weights.acquire(2)
    weights.close()


def test_a_failure_stays_and_is_told_each_time(tmp_path, device):
    package = build_package(tmp_path)
    flip(package, "layer.0")
    weights = weights_of(package, device, streamed=("*",))
    weights.open()

    for _ in range(3):
        with pytest.raises(PackageCorrupt, match=r"unit layer\.0"):
            weights.acquire(0)
    weights.close()


def test_without_verification_the_bytes_are_given_as_they_are(tmp_path):
    package = build_package(tmp_path, num_layers=1)
    flip(package, "layer.0")
    weights = weights_of(
        package, cpu_device(), streamed=("*",), options=dataclasses.replace(OPTIONS, verify=False), has_head=False
    )
    weights.open()

    stored = package.tensors["layer.0", "model.layers.0.q.weight", "data"]

    assert not torch.equal(weights.acquire(0)["layer.0"]["model.layers.0.q.weight"]["data"], stored)
    weights.close()


def test_a_file_truncated_under_us_is_told_and_never_hangs(tmp_path, device):
    package = build_package(tmp_path, rows=2000)
    weights = weights_of(package, device, streamed=("*",))
    weights.open()
    run_round(weights, package)
    os.truncate(package.path_of("layer.0"), 4096)

    with pytest.raises(PackageError, match=r"unit layer\.\d|unit head"):
        run_rounds(weights, package)
    weights.close()


def test_a_package_that_changed_on_disk_is_told(tmp_path, device):
    package = build_package(tmp_path)
    weights = weights_of(package, device, streamed=("*",))
    weights.open()
    run_round(weights, package)
    os.utime(package.path_of("layer.0"), ns=(1, 1))

    with pytest.raises(PackageError, match="changed on disk"):
        run_rounds(weights, package)
    weights.close()


def test_a_package_removed_from_disk_is_read_on_and_noted(tmp_path, device):
    package = build_package(tmp_path)
    weights = weights_of(package, device, streamed=("*",))
    weights.open()
    package.path_of("layer.0").unlink()

    run_round(weights, package)
    run_round(weights, package)

    assert "removed or replaced" in " ".join(weights.notes)
    weights.close()


def test_a_missing_package_is_told_by_file(tmp_path, device):
    package = build_package(tmp_path)
    package.path_of("layer.0").unlink()

    with pytest.raises(PackageError, match=r"layers\.bin"):
        weights_of(package, device).open()


def test_groups_out_of_order_are_a_mistake_of_the_caller(tmp_path, device):
    weights = weights_of(build_package(tmp_path), device, streamed=("*",))
    weights.open()

    with pytest.raises(InternalError, match="group 1 acquired out of order: group 0 is next"):
        weights.acquire(1)
    weights.close()


@pytest.mark.parametrize("num_before", range(5))
def test_rewind_starts_over_after_a_step_that_ended_early(tmp_path, device, num_before):
    package = build_package(tmp_path)
    weights = weights_of(package, device, streamed=("layer.0", "layer.1", "layer.3", "head"))
    weights.open()
    for index in range(num_before):
        weights.acquire(index)
        if index < num_before - 1:
            weights.release(index)

    weights.rewind()

    for _ in range(3):
        run_round(weights, package)
    weights.close()


def test_a_group_may_be_acquired_while_the_one_before_is_held(tmp_path, device):
    package = build_package(tmp_path)
    weights = weights_of(package, device, streamed=("*",))
    weights.open()

    first = weights.acquire(0)["layer.0"]["model.layers.0.q.weight"]["data"]
    weights.acquire(1)

    assert torch.equal(first, package.tensors["layer.0", "model.layers.0.q.weight", "data"])
    weights.release(0)
    weights.release(1)
    weights.close()


def test_a_group_that_never_arrives_ends_at_the_deadline(tmp_path):
    package = build_package(tmp_path)
    weights = weights_of(
        package, cpu_device(), streamed=("*",), options=dataclasses.replace(OPTIONS, timeout_seconds=0.05)
    )
    weights.open()
    for index in range(OPTIONS.ring_slots):
        weights.acquire(index)  # every buffer is held, so that nothing more can arrive

    with pytest.raises(DeadlineExceeded, match=r"layer\.3"):
        weights.acquire(OPTIONS.ring_slots)
    weights.close()


def test_a_copy_that_fails_is_told_when_its_group_is_acquired(tmp_path):
    package = build_package(tmp_path)
    device = SeparateDevice()
    weights = weights_of(package, device, streamed=("*",))
    device.fail_copies = True
    weights.open()

    with pytest.raises(DriverError, match="fell off the bus"):
        weights.acquire(0)
    weights.close()
    device.close()


def test_closing_ends_the_threads_at_once_and_twice_is_fine(tmp_path, device):
    package = build_package(tmp_path)
    threads = threading.active_count()
    weights = weights_of(package, device, streamed=("*",))
    weights.open()
    weights.acquire(0)

    weights.close()
    weights.close()

    assert not [thread for thread in threading.enumerate() if thread.name.startswith("weights-")]
    assert threading.active_count() <= threads + 1  # the separate device keeps its own copier


def test_closing_wakes_who_waits(tmp_path):
    package = build_package(tmp_path)
    weights = weights_of(package, cpu_device(), streamed=("*",))
    weights.open()
    for index in range(OPTIONS.ring_slots):
        weights.acquire(index)
    closer = threading.Timer(0.1, weights.close)
    closer.start()

    with pytest.raises(InternalError, match="closed"):
        weights.acquire(OPTIONS.ring_slots)
    closer.join()


def test_weights_that_are_not_open_refuse_to_give(tmp_path):
    weights = weights_of(build_package(tmp_path), cpu_device(), streamed=("*",))

    with pytest.raises(InternalError, match="not open"):
        weights.acquire(0)
