"""Experts come when they are asked for, right to the last byte, whatever the cache holds and whatever fails."""

import contextlib
import dataclasses
import os
import random
import threading

import pytest
import torch

from teengined.core.errors import DriverError, InternalError, OutOfDeviceMemory, PackageCorrupt, PackageError
from teengined.core.plan import ExpertCache, StageExperts
from teengined.weights.options import StreamOptions
from teengined.weights.stage_weights import StageWeights
from tests.fakes.package_builder import build_package, stage_of
from tests.fakes.separate_device import SeparateDevice, cpu_device

OPTIONS = StreamOptions(read_chunk_bytes=16384, timeout_seconds=10)
NUM_LAYERS, NUM_EXPERTS = 3, 6


@pytest.fixture(params=["shared", "separate"])
def device(request):
    device = cpu_device() if request.param == "shared" else SeparateDevice()
    yield device
    device.close()


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    return build_package(tmp_path_factory.mktemp("package"), num_layers=NUM_LAYERS, num_experts=NUM_EXPERTS)


@pytest.fixture
def own_package(tmp_path):
    return build_package(tmp_path, num_layers=NUM_LAYERS, num_experts=NUM_EXPERTS)


def caching(package, *caches):
    """Return a stage that keeps all but its experts, which `caches` hold."""
    streamed = tuple(unit.id for unit in package.manifest.units if unit.expert is not None)
    experts = StageExperts(caches=caches, num_bytes=0, bytes_per_token=0, hit_rate=0.0)
    return dataclasses.replace(stage_of(package, streamed=streamed), experts=experts)


def open_weights(package, device, *, num_slots=5, num_host_slots=0, policy="lfu", **changes):
    sizes = {unit.size_bytes for unit in package.manifest.units if unit.expert is not None}
    cache = ExpertCache(
        slot_bytes=max(sizes),
        num_slots=num_slots,
        num_experts=NUM_LAYERS * NUM_EXPERTS,
        num_host_slots=num_host_slots,
    )
    weights = StageWeights(
        package_dir=package.directory,
        manifest=package.manifest,
        stage=caching(package, cache),
        device=device,
        options=dataclasses.replace(OPTIONS, expert_policy=policy, **changes),
    )
    weights.open()
    return weights


def fetch(weights, package, layer, experts, *, in_order=False):
    """Fetch experts, compare all their tensors with what was stored, and return the order in which they came."""
    came = []
    with contextlib.closing(weights.fetch_experts(layer, experts, in_order=in_order)) as fetched:
        for expert, tensors in fetched:
            for parameter, parts in tensors.items():
                for part, tensor in parts.items():
                    stored = package.tensors[f"layer.{layer}.expert.{expert}", parameter, part]
                    assert torch.equal(tensor, stored), (layer, expert, parameter, part)
            came.append(expert)
    return came


def flip(package, unit_id):
    with package.path_of(unit_id).open("r+b") as file:
        file.seek(package.unit(unit_id).offset_bytes + 70)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 1]))


def expert_bytes(package):
    return package.unit("layer.0.expert.0").size_bytes


@pytest.mark.parametrize("num_slots", [1, 2, 3, 5, 17])
@pytest.mark.parametrize("policy", ["lru", "lfu", "pinned", "sticky", "auto"])
@pytest.mark.parametrize("in_order", [False, True])
def test_every_request_gives_the_stored_tensors(package, device, num_slots, policy, in_order):
    weights = open_weights(package, device, num_slots=num_slots, policy=policy)
    seed = random.randrange(1 << 30)
    rng = random.Random(seed)
    for step in range(25):
        for layer in range(NUM_LAYERS):
            experts = sorted(rng.sample(range(NUM_EXPERTS), rng.randint(1, NUM_EXPERTS)))
            came = fetch(weights, package, layer, experts, in_order=in_order)
            assert sorted(came) == experts, f"seed {seed}, step {step}"
            assert not in_order or came == experts, f"seed {seed}, step {step}"
    weights.close()


def test_cached_experts_come_first_and_are_not_read_again(package, device):
    weights = open_weights(package, device)
    fetch(weights, package, 1, [3, 4])
    read = weights.statistics.expert_bytes

    assert fetch(weights, package, 1, [0, 3, 4]) == [3, 4, 0]
    assert weights.statistics.expert_bytes - read == expert_bytes(package)
    assert weights.expert_reports[0].num_hits == 2
    weights.close()


def test_reads_of_one_request_are_under_way_together(package):
    weights = open_weights(package, cpu_device(), num_slots=6)
    gate = threading.Event()
    started = []
    pool = weights._pool
    assert pool is not None
    original = pool.submit

    def submit(read):
        started.append(read)
        if len(started) == 4:
            gate.set()
        original(read)

    pool.submit = submit
    with contextlib.closing(weights.fetch_experts(0, [0, 1, 2, 3], in_order=True)) as fetched:
        next(fetched)
        assert gate.is_set()
    weights.close()


def test_bytes_read_are_what_the_simulation_says(package, device):
    weights = open_weights(package, device, num_slots=7, policy="lru")
    rng = random.Random(5)
    for _ in range(40):
        for layer in range(NUM_LAYERS):
            fetch(weights, package, layer, sorted(rng.sample(range(NUM_EXPERTS), 2)))
    report = weights.expert_reports[0]

    assert report.num_accesses == 240
    assert 0 < report.num_hits == report.num_simulated_hits <= report.num_best_hits
    if device.shares_host_memory:
        misses = report.num_accesses - report.num_hits
        assert weights.statistics.expert_bytes == misses * expert_bytes(package)
    weights.close()


def test_what_the_device_gave_up_comes_back_from_host_memory(package):
    device = SeparateDevice()
    weights = open_weights(package, device, num_slots=2, num_host_slots=18)
    for _ in range(3):
        for layer in range(NUM_LAYERS):
            fetch(weights, package, layer, range(NUM_EXPERTS))

    assert weights.statistics.expert_bytes == 18 * expert_bytes(package)
    assert device.num_copies > 40
    weights.close()
    assert device.staging_bytes == 0
    assert device.memory_info().allocated_bytes == 0
    device.close()


def test_memory_is_the_slots_and_comes_back(package, device):
    resident = sum(unit.size_bytes for unit in package.manifest.units if unit.expert is None)
    weights = open_weights(package, device, num_slots=4)

    assert device.memory_info().allocated_bytes == resident + 4 * expert_bytes(package)
    weights.close()
    weights.close()
    assert device.memory_info().allocated_bytes == 0


def test_slots_beyond_the_budget_are_refused_and_leave_nothing(package):
    device = cpu_device(memory_bytes=400_000)

    with pytest.raises(OutOfDeviceMemory):
        open_weights(package, device, num_slots=1000)

    assert device.memory_info().allocated_bytes == 0


@pytest.mark.parametrize("in_order", [False, True])
def test_an_altered_expert_fails_its_request_and_no_other(own_package, device, in_order):
    flip(own_package, "layer.1.expert.2")
    weights = open_weights(own_package, device)

    for _ in range(2):
        with pytest.raises(PackageCorrupt, match=r"unit layer\.1\.expert\.2"):
            fetch(weights, own_package, 1, [0, 2, 4], in_order=in_order)
        assert sorted(fetch(weights, own_package, 1, [0, 1, 3, 4, 5])) == [0, 1, 3, 4, 5]
        fetch(weights, own_package, 2, range(NUM_EXPERTS))
    weights.close()


def test_an_expert_that_was_altered_after_it_was_checked_is_told_by_its_file(own_package, device):
    weights = open_weights(own_package, device, num_slots=1)
    fetch(weights, own_package, 0, [0])
    os.utime(own_package.path_of("layer.0"), ns=(1, 1))

    with pytest.raises(PackageError, match="changed on disk"):
        fetch(weights, own_package, 0, [1])
    weights.close()


@pytest.mark.parametrize("num_taken", [0, 1, 2, 5])
@pytest.mark.parametrize("num_slots", [2, 6])
def test_a_request_that_is_given_up_leaves_nothing_wrong(package, device, num_taken, num_slots):
    weights = open_weights(package, device, num_slots=num_slots)
    for layer in (0, 1, 0, 2):
        with contextlib.closing(weights.fetch_experts(layer, range(NUM_EXPERTS), in_order=False)) as fetched:
            for _ in range(num_taken):
                next(fetched)

    for layer in range(NUM_LAYERS):
        assert sorted(fetch(weights, package, layer, range(NUM_EXPERTS))) == list(range(NUM_EXPERTS))
    weights.close()


def test_a_copy_that_fails_is_told_and_the_next_one_works(package):
    device = SeparateDevice()
    weights = open_weights(package, device)
    device.fail_copies = True
    with pytest.raises(DriverError, match="fell off the bus"):
        fetch(weights, package, 0, [1, 2])
    device.fail_copies = False

    fetch(weights, package, 0, [1, 2, 3])
    weights.close()
    device.close()


def test_experts_of_several_sizes_each_have_their_slots(own_package, device):
    sizes = sorted({unit.size_bytes for unit in own_package.manifest.units if unit.expert is not None})
    caches = (
        ExpertCache(slot_bytes=sizes[-1] + 4096, num_slots=2, num_experts=9),
        ExpertCache(slot_bytes=sizes[-1], num_slots=3, num_experts=9),
    )
    units = tuple(
        dataclasses.replace(unit, size_bytes=unit.size_bytes + 4096, digest="")
        if unit.expert in (1, 4) and unit.layer == 0
        else unit
        for unit in own_package.manifest.units
    )
    weights = StageWeights(
        package_dir=own_package.directory,
        manifest=dataclasses.replace(own_package.manifest, units=units),
        stage=caching(own_package, *caches),
        device=device,
        options=dataclasses.replace(OPTIONS, verify=False),
    )
    weights.open()

    for _ in range(3):
        assert fetch(weights, own_package, 0, range(NUM_EXPERTS), in_order=True) == list(range(NUM_EXPERTS))
        assert sorted(fetch(weights, own_package, 0, [1, 2, 3, 4])) == [1, 2, 3, 4]
    assert len(weights.expert_reports) == 2
    weights.close()


def test_closing_wakes_who_waits_for_an_expert(package):
    weights = open_weights(package, cpu_device())
    assert weights._pool is not None
    weights._pool.submit = lambda read: read.expect(len(read.targets))
    closer = threading.Timer(0.1, weights.close)
    closer.start()

    with pytest.raises(InternalError, match="closed"):
        fetch(weights, package, 0, [0])
    closer.join()


def test_weights_that_hold_every_expert_fetch_none(package):
    weights = StageWeights(
        package_dir=package.directory,
        manifest=package.manifest,
        stage=stage_of(package),
        device=cpu_device(),
        options=OPTIONS,
    )
    weights.open()

    assert weights.expert_reports == ()
    with pytest.raises(InternalError, match="hold every expert"):
        weights.fetch_experts(0, [0], in_order=False)
    weights.close()
