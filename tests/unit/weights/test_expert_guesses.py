"""Reading ahead on a guess changes when bytes come, and neither what is cached nor what counts as missed."""

import contextlib
import random
import threading

import pytest

from teengined.core.errors import PackageCorrupt
from tests.fakes.package_builder import build_package
from tests.fakes.separate_device import SeparateDevice, cpu_device
from tests.unit.weights.test_expert_store import NUM_EXPERTS, NUM_LAYERS, expert_bytes, fetch, flip, open_weights

# Two of them can be lent.
NUM_SLOTS = 33
NUM_MANY = 24


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    return build_package(tmp_path_factory.mktemp("package"), num_layers=NUM_LAYERS, num_experts=NUM_MANY)


@pytest.fixture(params=["shared", "separate"])
def device(request):
    device = cpu_device() if request.param == "shared" else SeparateDevice()
    yield device
    device.close()


def guessing(package, device, *, num_slots=NUM_SLOTS, **changes):
    """Open weights in which guesses measured faster."""
    host = 0 if device.shares_host_memory else NUM_SLOTS
    weights = open_weights(
        package, device, num_slots=num_slots, num_host_slots=host, expert_guesses=4, policy="lru", **changes
    )
    for _ in range(400):
        weights.learn_step(1, 0.5 if weights.is_guessing_experts(1) else 1.0)
    assert weights.expert_guesses.is_on
    assert weights.is_guessing_experts(1)
    return weights


def sample(rng, most=4):
    return sorted(rng.sample(range(NUM_MANY), rng.randint(1, most)))


def settle(weights):
    """Wait until nothing is being read."""
    done = threading.Event()
    while not weights._reads.is_idle:
        done.wait(0.001)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("waits", [False, True])
def test_right_and_wrong_guesses_leave_every_tensor_and_every_count_as_it_was(package, device, seed, waits):
    weights = guessing(package, device)
    rng = random.Random(seed)
    for _ in range(60):
        for layer in range(NUM_LAYERS):
            experts = sample(rng)
            guess = [expert for expert in experts if rng.random() < 0.7] + sample(rng, 2)
            weights.guess_experts(layer, list(dict.fromkeys(guess)))
            if waits:
                settle(weights)
            assert sorted(fetch(weights, package, layer, experts)) == experts, f"seed {seed}"
    report, guesses, statistics = weights.expert_reports[0], weights.expert_guesses, weights.statistics

    assert report.num_hits == report.num_simulated_hits, f"seed {seed}"
    assert 0 < guesses.num_right < guesses.num_guessed, f"seed {seed}"
    if device.shares_host_memory:
        misses = report.num_accesses - report.num_hits
        assert statistics.expert_bytes == misses * expert_bytes(package), f"seed {seed}"
    assert statistics.wrong_guess_bytes <= (guesses.num_guessed - guesses.num_right) * expert_bytes(package)
    if waits:
        assert statistics.wrong_guess_bytes > 0
    weights.close()


def test_what_is_cached_with_guesses_is_what_is_cached_without(package):
    told = []
    for guess in (False, True):
        weights = guessing(package, cpu_device())
        rng = random.Random(8)
        for _ in range(50):
            for layer in range(NUM_LAYERS):
                experts, wrong = sample(rng), sample(rng)
                if guess:
                    weights.guess_experts(layer, wrong)
                fetch(weights, package, layer, experts)
        told.append(weights.expert_reports)
        weights.close()

    assert told[0] == told[1]


def test_a_right_guess_is_read_once_and_by_no_one_else(package, device):
    weights = guessing(package, device)
    weights.guess_experts(0, [7, 9])
    settle(weights)
    read = weights.statistics.reads

    assert fetch(weights, package, 0, [7, 9]) == [7, 9]
    assert weights.statistics.reads == read
    assert weights.statistics.expert_bytes == 2 * expert_bytes(package)
    assert weights.statistics.wrong_guess_bytes == 0
    assert fetch(weights, package, 0, [7, 9]) == [7, 9]
    assert weights.statistics.reads == read
    weights.close()


def test_no_more_is_guessed_than_was_lent_and_nothing_that_is_there(package, device):
    weights = guessing(package, device)
    fetch(weights, package, 0, [1, 2])

    weights.guess_experts(0, [1, 2, 3, 4, 5, 6])

    assert weights.expert_guesses.num_guessed == 2
    assert sorted(fetch(weights, package, 0, [3, 4])) == [3, 4]
    assert weights.expert_guesses.num_right == 2
    weights.close()


def test_nothing_is_guessed_while_something_else_is_read(package):
    weights = guessing(package, cpu_device())
    weights._clock.start()
    weights.guess_experts(0, [3, 4])
    weights._clock.stop()

    assert weights.expert_guesses.num_guessed == 0
    weights.guess_experts(0, [3, 4])
    assert weights.expert_guesses.num_guessed == 2
    weights.close()


def test_a_damaged_expert_that_was_guessed_wrongly_disturbs_nobody(tmp_path, device):
    package = build_package(tmp_path, num_layers=NUM_LAYERS, num_experts=NUM_MANY)
    flip(package, "layer.1.expert.5")
    weights = guessing(package, device)
    weights.guess_experts(1, [5])
    settle(weights)

    assert fetch(weights, package, 1, [2]) == [2]
    weights.close()


@pytest.mark.parametrize("waits", [False, True])
def test_a_damaged_expert_that_was_guessed_rightly_is_told_as_any(tmp_path, device, waits):
    package = build_package(tmp_path, num_layers=NUM_LAYERS, num_experts=NUM_MANY)
    flip(package, "layer.1.expert.5")
    weights = guessing(package, device)
    for _ in range(2):
        weights.guess_experts(1, [5, 2])
        if waits:
            settle(weights)
        with pytest.raises(PackageCorrupt, match=r"unit layer\.1\.expert\.5"):
            fetch(weights, package, 1, [2, 5])

    assert sorted(fetch(weights, package, 1, [2, 4])) == [2, 4]
    weights.close()


def test_a_request_that_is_given_up_leaves_its_guesses_free(package, device):
    weights = guessing(package, device)
    for layer in (0, 1, 2, 0):
        weights.guess_experts(layer, [20, 21])
        with contextlib.closing(weights.fetch_experts(layer, range(NUM_MANY), in_order=True)) as fetched:
            next(fetched)
    for layer in range(NUM_LAYERS):
        weights.guess_experts(layer, [3, 11])
        assert sorted(fetch(weights, package, layer, range(NUM_MANY))) == list(range(NUM_MANY))
    weights.close()


def test_slots_are_lent_only_while_there_are_guesses_and_memory_is_the_same(package):
    device = cpu_device()
    weights = guessing(package, device)
    allocated = device.memory_info().allocated_bytes
    for layer in range(2):
        fetch(weights, package, layer, range(NUM_MANY))
    store = weights._store
    assert store is not None
    assert len(store._parts[0].bank._slots) == NUM_SLOTS - 2

    for _ in range(20_000):
        weights.learn_step(1, 2.0 if weights.is_guessing_experts(1) else 1.0)
    assert not weights.expert_guesses.is_on
    while store._has_lent:
        weights.learn_step(1, 1.0)
    fetch(weights, package, 2, range(NUM_MANY))

    assert len(store._parts[0].bank._slots) == NUM_SLOTS
    assert device.memory_info().allocated_bytes == allocated
    weights.close()
    assert device.memory_info().allocated_bytes == 0


def test_large_steps_and_small_caches_are_not_guessed_for(package):
    device = cpu_device()
    weights = guessing(package, device)
    assert not weights.is_guessing_experts(64)
    weights.close()
    few = open_weights(package, device, num_slots=NUM_EXPERTS, expert_guesses=4)
    for _ in range(400):
        few.learn_step(1, 0.5 if few.is_guessing_experts(1) else 1.0)

    assert not few.expert_guesses.is_on
    few.close()
