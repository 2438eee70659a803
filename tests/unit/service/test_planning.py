"""What a plan may use of the pool of host memory: what is left of it, what is free now, and what it holds already."""

from dataclasses import replace
from typing import Any

import pytest

from teengined.core.device import DeviceSpec
from teengined.service.host_ledger import HostClaim
from teengined.service.host_pool import HostPool
from teengined.service.planning import Planner
from teengined.service.settings import Config, HostSettings
from tests.unit.placement.fleets import manifest, planning, spec

MIB = 1 << 20
NOT_ASKED: Any = None
GPU = DeviceSpec(id="null:0", driver="null", memory_bytes=MIB)
WORKER_BYTES = 256 * MIB


@pytest.fixture
def pool():
    made = HostPool(100 * MIB)
    yield made
    made.close()


def tier_of(pool: HostPool, *, wanted: int = 0, measured: int, available: int = 1 << 40):
    config = Config(host=HostSettings(memory=wanted))
    planner = Planner(
        config=config,
        registry=NOT_ASKED,
        store=NOT_ASKED,
        profiles=NOT_ASKED,
        specs=(GPU,),
        host_pool=pool,
        available_bytes=lambda: available,
    )
    inputs = planning(manifest([2] * 3), [spec(0, 9)])
    found = planner._with_host_tier(replace(inputs, host=replace(inputs.host, memory_bytes=measured)), {})
    return found.host.memory_bytes - found.reserved_host_bytes, found.held_unit_ids


def test_the_tier_is_what_was_measured_unless_it_is_configured(pool: HostPool) -> None:
    assert tier_of(pool, measured=30 * MIB)[0] == 30 * MIB
    assert tier_of(pool, measured=500 * MIB)[0] == 100 * MIB
    assert tier_of(pool, measured=0, wanted=100 * MIB)[0] == 100 * MIB


def test_what_others_claim_is_taken_off_and_what_they_share_is_told(pool: HostPool) -> None:
    shared = next(unit for unit in manifest([2] * 3).units if unit.id == "layer.1")
    pool.reserve("other", HostClaim(units={shared.digest: 20 * MIB}, private_bytes=5 * MIB))

    room, held = tier_of(pool, measured=60 * MIB)

    assert room == 35 * MIB
    assert "layer.1" in held


def test_no_more_is_planned_than_the_host_has_now_beside_what_is_still_to_be_read(pool: HostPool) -> None:
    pool.reserve("other", HostClaim(units={"blake2b:some": 20 * MIB}))

    assert tier_of(pool, measured=90 * MIB, available=WORKER_BYTES + 50 * MIB)[0] == 30 * MIB
    assert tier_of(pool, measured=90 * MIB, available=MIB)[0] == 0
