"""Stages of several workers that keep their units in one pool of host memory."""

import os
import threading
from dataclasses import replace

import pytest
import torch

from teengined.core.errors import DriverError, NotAllowed, PackageCorrupt
from teengined.core.plan import Tier
from teengined.weights.host_pool_link import HostPoolLink
from teengined.weights.options import StreamOptions
from teengined.weights.stage_weights import StageWeights
from tests.fakes.package_builder import build_package, stage_of
from tests.fakes.running_pool import RunningPool
from tests.fakes.separate_device import SeparateDevice

OPTIONS = StreamOptions(read_chunk_bytes=16384, timeout_seconds=10)


@pytest.fixture
def pool():
    with RunningPool() as running:
        yield running


@pytest.fixture
def devices():
    opened = [SeparateDevice(), SeparateDevice()]
    yield opened
    for device in opened:
        device.close()


@pytest.fixture
def package(tmp_path):
    return build_package(tmp_path, rows=100)


def units_of(package):
    return {unit.digest: unit.size_bytes for unit in package.manifest.units}


def weights_of(package, device, access, **options):
    return StageWeights(
        package_dir=package.directory,
        manifest=package.manifest,
        stage=stage_of(package, streamed=("*",), tier=Tier.HOST),
        device=device,
        options=replace(OPTIONS, host_pool=access, **options),
    )


def check_rounds(weights, package):
    for _ in range(3):
        for group in weights.groups:
            for unit_id, tensors in weights.acquire(group.index).items():
                for parameter, parts in tensors.items():
                    for part, tensor in parts.items():
                        assert torch.equal(tensor, package.tensors[unit_id, parameter, part]), (unit_id, parameter)
            weights.release(group.index)


def flip(package, unit_id):
    with package.path_of(unit_id).open("r+b") as file:
        file.seek(package.unit(unit_id).offset_bytes + 70)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 1]))


def test_two_stages_read_each_unit_once_and_both_have_every_byte(pool, devices, package):
    stages = [weights_of(package, d, pool.access(str(i), units_of(package))) for i, d in enumerate(devices)]
    stages[0].open()
    for unit in package.manifest.units:  # what is in the pool is not read again
        flip(package, unit.id) if unit.layer is not None else None
    stages[1].open()

    for stage in stages:
        check_rounds(stage, package)
        stage.close()
    assert [device.staging_bytes for device in devices] == [0, 0]


def test_the_staging_that_units_came_through_is_given_back_after_the_load(pool, devices, package):
    weights = weights_of(package, devices[0], pool.access("one", units_of(package)))
    weights.open()

    largest = max(unit.size_bytes for unit in package.manifest.units if unit.layer is not None or "head" in unit.id)
    assert devices[0].staging_bytes <= OPTIONS.ring_slots * largest
    weights.close()


def test_stages_that_open_together_share_the_reading_or_the_waiting(pool, devices, package):
    stages = [weights_of(package, d, pool.access(str(i), units_of(package))) for i, d in enumerate(devices)]
    opening = [threading.Thread(target=stage.open) for stage in stages]
    for thread in opening:
        thread.start()
    for thread in opening:
        thread.join(20)

    for stage in stages:
        check_rounds(stage, package)
        stage.close()


def test_one_that_waits_fills_what_the_other_gave_up(pool, devices, package):
    access = pool.access("one", units_of(package))
    other = HostPoolLink(access, timeout_seconds=10)
    for digest in units_of(package):
        other.claim(digest)
    weights = weights_of(package, devices[0], pool.access("two", units_of(package)))
    opening = threading.Thread(target=weights.open)
    opening.start()
    other.close()
    opening.join(20)

    check_rounds(weights, package)
    weights.close()


@pytest.mark.parametrize("verify", [True, False])
def test_a_damaged_unit_never_enters_the_pool_also_where_a_load_asked_for_no_checks(pool, devices, package, verify):
    flip(package, "layer.1")
    for index, device in enumerate(devices):
        weights = weights_of(package, device, pool.access(str(index), units_of(package)), verify=verify)
        with pytest.raises(PackageCorrupt, match=r"unit layer\.1 differs"):
            weights.open()

    assert [device.staging_bytes for device in devices] == [0, 0]
    damaged = package.unit("layer.1").digest
    with HostPoolLink(pool.access("three", units_of(package)), timeout_seconds=10) as link:
        assert link.claim(damaged)[0].state == "fill"


def test_a_stage_that_was_promised_nothing_gets_nothing(pool, devices, package):
    weights = weights_of(package, devices[0], pool.access("one", {}))

    with pytest.raises(NotAllowed, match="no such unit"):
        weights.open()


def test_closing_lets_go_of_the_memory_and_of_the_devices_registration(pool, devices, package, monkeypatch):
    registered: set[int] = set()
    monkeypatch.setattr(SeparateDevice, "register_host", lambda self, buffer: registered.add(buffer.data_ptr()) or True)
    monkeypatch.setattr(
        SeparateDevice, "unregister_host", lambda self, buffer: registered.remove(buffer.data_ptr()) or True
    )
    weights = weights_of(package, devices[0], pool.access("one", units_of(package)))

    weights.open()
    assert len(registered) > 1
    weights.close()

    assert registered == set()


def test_a_device_that_cannot_register_it_copies_from_it_all_the_same_and_it_is_told(
    pool, devices, package, monkeypatch
):
    def refuse(self, buffer):
        raise DriverError("operation not supported")

    monkeypatch.setattr(SeparateDevice, "register_host", refuse)
    weights = weights_of(package, devices[0], pool.access("one", units_of(package)))
    weights.open()

    assert weights.notes[-1] == "far:0 copies slower from the pool of host memory: operation not supported"
    check_rounds(weights, package)
    weights.close()
