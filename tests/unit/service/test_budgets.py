"""Budgets of devices in host memory fit what the host allows."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from teengined.core.device import DeviceSpec
from teengined.core.errors import ConfigError
from teengined.core.memory_limits import HostMemory
from teengined.service.budgets import fitted_specs, free_host_bytes, host_pool_budget, short_bytes

GIB, MIB = 1 << 30, 1 << 20
OVERHEAD = 64 * MIB + 2 * 256 * MIB


def memory(limit_bytes: int) -> HostMemory:
    return HostMemory(
        total_bytes=24 * GIB, limit_bytes=limit_bytes, available_bytes=limit_bytes, origin="/sys/fs/cgroup/x/memory.max"
    )


def spec(index: int, memory_bytes: int, driver: str = "cpu") -> DeviceSpec:
    return DeviceSpec(id=f"{driver}:{index}", driver=driver, memory_bytes=memory_bytes)


def test_budgets_that_fit_are_left_as_they_are() -> None:
    specs = (spec(0, GIB), spec(1, 2 * GIB))

    assert fitted_specs(specs, memory(3 * GIB + OVERHEAD)) == (specs, ())


def test_budgets_beyond_the_limit_are_lowered_in_proportion_and_the_numbers_are_told() -> None:
    (one, other), notes = fitted_specs((spec(0, 2 * GIB), spec(1, 4 * GIB)), memory(3 * GIB + OVERHEAD))

    assert (one.memory_bytes, other.memory_bytes) == (GIB, 2 * GIB)
    assert "cpu:0: the budget of 2.1 GB is lowered to 1.1 GB" in notes[0]
    assert "/sys/fs/cgroup/x/memory.max allows 3.8 GB" in notes[1]


def test_devices_with_memory_of_their_own_are_not_touched() -> None:
    specs = (spec(0, 80 * GIB, "cuda"), spec(0, 2 * GIB))

    (cuda, cpu), notes = fitted_specs(specs, memory(GIB + 320 * MIB))

    assert (cuda.memory_bytes, cpu.memory_bytes, len(notes)) == (80 * GIB, GIB, 1)


def test_a_limit_that_leaves_nothing_is_a_mistake_in_the_configuration() -> None:
    with pytest.raises(ConfigError, match=r"memory\.max allows 524 MB, which leaves nothing"):
        fitted_specs((spec(0, GIB), spec(1, GIB)), memory(500 * MIB))


@given(st.lists(st.integers(MIB, 8 * GIB), min_size=1, max_size=5), st.integers(2 * GIB, 30 * GIB))
def test_whatever_is_configured_fits_in_the_end(budgets: list[int], limit_bytes: int) -> None:
    specs, _ = fitted_specs([spec(index, budget) for index, budget in enumerate(budgets)], memory(limit_bytes))

    taken = sum(fitted.memory_bytes for fitted in specs)
    assert taken + 64 * MIB + len(budgets) * 256 * MIB <= max(limit_bytes, sum(budgets) + 64 * MIB)
    assert all(fitted.memory_bytes <= budget for fitted, budget in zip(specs, budgets, strict=True))


def test_what_others_use_now_is_taken_off_what_is_free() -> None:
    specs = (spec(0, 4 * GIB), spec(1, 2 * GIB))

    short = short_bytes(specs, {"cpu:0": 2 * GIB, "cpu:1": GIB}, 2 * GIB)

    assert sum(short.values()) == pytest.approx(GIB, abs=2)
    assert short["cpu:0"] == 2 * GIB * GIB // (3 * GIB) + 1


def test_where_there_is_enough_nothing_is_short() -> None:
    assert short_bytes((spec(0, GIB), spec(0, 80 * GIB, "cuda")), {}, 2 * GIB) == {}


def test_no_more_is_short_than_was_free() -> None:
    assert short_bytes((spec(0, GIB),), {}, 0) == {"cpu:0": GIB}


def test_the_pool_gets_what_devices_and_processes_leave_of_the_limit() -> None:
    specs = (spec(0, 2 * GIB), spec(0, 80 * GIB, "cuda"))
    room = 8 * GIB - 2 * GIB - OVERHEAD

    assert host_pool_budget(0, specs, memory(8 * GIB)) == (room, "")
    assert host_pool_budget(GIB, specs, memory(8 * GIB)) == (GIB, "")
    num_bytes, note = host_pool_budget(7 * GIB, specs, memory(8 * GIB))
    assert num_bytes == room
    assert "host.memory of 7.5 GB is lowered to 5.8 GB, since /sys/fs/cgroup/x/memory.max allows 8.6 GB" in note


def test_a_limit_that_is_spent_leaves_a_pool_of_nothing() -> None:
    assert host_pool_budget(0, (spec(0, 80 * GIB, "cuda"),), memory(300 * MIB)) == (0, "")


def test_without_a_device_of_its_own_memory_there_is_no_pool() -> None:
    assert host_pool_budget(GIB, (spec(0, GIB), spec(1, GIB)), memory(24 * GIB)) == (0, "")


def test_what_is_free_now_is_less_by_what_is_promised() -> None:
    specs = (spec(0, 4 * GIB), spec(0, 80 * GIB, "cuda"))

    assert free_host_bytes(specs, {}, 6 * GIB) == 2 * GIB - 2 * 256 * MIB
    assert free_host_bytes(specs, {"cpu:0": 3 * GIB, "cuda:0": GIB}, 6 * GIB) == 5 * GIB
    assert free_host_bytes(specs, {}, GIB) == 0
