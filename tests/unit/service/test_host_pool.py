"""The pool of host memory: who fills a unit, who waits for it, and when it is believed to be whole."""

import asyncio
import os

import pytest

from teengined.core.errors import CapacityError, InternalError, NotAllowed
from teengined.core.sealed_memory import fill_memory
from teengined.service.host_ledger import HostClaim
from teengined.service.host_pool import HostPool

PAGE = 4096
UNITS = {"a": PAGE, "b": 2 * PAGE}


@pytest.fixture
def pool():
    made = HostPool(8 * PAGE)
    yield made
    made.close()


def fill(pool: HostPool, ticket: str, digest: str, filler: object) -> None:
    grant, descriptor = pool.claim(ticket, digest, filler)
    assert grant.state == "fill"
    fill_memory(descriptor, memoryview(bytes(grant.size_bytes)))
    assert pool.note_filled(ticket, digest, filler)[0].state == "filled"


def test_the_first_fills_others_are_told_to_wait_and_then_all_have_it(pool: HostPool) -> None:
    one, two = pool.reserve("one", HostClaim(units=UNITS)), pool.reserve("two", HostClaim(units=UNITS))

    assert pool.claim(one, "a", "first")[0].state == "fill"
    assert pool.claim(two, "a", "second")[0].state == "busy"
    fill(pool, one, "a", "first")

    assert pool.claim(two, "a", "second")[0].state == "filled"
    assert pool.describe().filled_bytes == PAGE
    assert pool.unfilled_bytes == 2 * PAGE


def test_a_unit_that_is_not_sealed_is_not_believed_to_be_filled(pool: HostPool) -> None:
    ticket = pool.reserve("one", HostClaim(units=UNITS))
    _, descriptor = pool.claim(ticket, "a", "first")
    os.pwrite(descriptor, b"half", 0)

    with pytest.raises(InternalError, match="not sealed"):
        pool.note_filled(ticket, "a", "first")

    assert pool.describe().filled_bytes == 0


def test_what_a_filler_left_unfinished_is_the_next_ones_and_what_it_sealed_is_whole(pool: HostPool) -> None:
    ticket = pool.reserve("one", HostClaim(units=UNITS))
    _, half = pool.claim(ticket, "a", "first")
    os.pwrite(half, b"half", 0)
    _, whole = pool.claim(ticket, "b", "first")
    fill_memory(whole, memoryview(bytes(2 * PAGE)))  # and it dies before it can tell

    pool.abandon("first")

    assert pool.claim(ticket, "b", "second")[0].state == "filled"
    fill(pool, ticket, "a", "second")


def test_whoever_waits_is_woken_by_an_end_of_any_kind(pool: HostPool) -> None:
    async def run() -> None:
        one, two = pool.reserve("one", HostClaim(units=UNITS)), pool.reserve("two", HostClaim(units=UNITS))
        pool.claim(one, "a", "first")
        waiting = pool.next_change(two, "a")
        pool.abandon("first")
        await asyncio.wait_for(waiting, 10)

        pool.claim(one, "a", "first")
        waiting = pool.next_change(two, "a")
        pool.release("one")
        pool.release("two")
        await asyncio.wait_for(waiting, 10)
        with pytest.raises(NotAllowed):
            pool.claim(two, "a", "second")

    asyncio.run(run())


def test_memory_goes_with_the_last_who_claims_it(pool: HostPool) -> None:
    one, two = pool.reserve("one", HostClaim(units=UNITS)), pool.reserve("two", HostClaim(units={"a": PAGE}))
    fill(pool, one, "a", "first")

    pool.release("one")
    assert pool.claim(two, "a", "second")[0].state == "filled"
    assert (pool.describe().planned_bytes, pool.describe().num_units) == (PAGE, 1)

    pool.release("two")
    assert (pool.describe().planned_bytes, pool.describe().num_units) == (0, 0)


def test_a_ticket_is_good_for_its_own_units_and_no_longer_than_its_deployment(pool: HostPool) -> None:
    ticket = pool.reserve("one", HostClaim(units={"a": PAGE}))
    pool.reserve("two", HostClaim(units={"b": PAGE}))

    for wrong, digest in ((ticket, "b"), (ticket, "c"), ("", "a"), ("0" * 32, "a")):
        with pytest.raises(NotAllowed):
            pool.claim(wrong, digest, "first")
    pool.release("one")
    with pytest.raises(NotAllowed):
        pool.claim(ticket, "a", "first")


def test_a_claim_that_does_not_fit_leaves_nothing_behind(pool: HostPool) -> None:
    with pytest.raises(CapacityError, match="left of its"):
        pool.reserve("one", HostClaim(units={"a": 9 * PAGE}))

    assert (pool.describe().planned_bytes, pool.describe().num_units) == (0, 0)


def test_where_no_descriptor_is_left_nothing_stays_behind(pool: HostPool, monkeypatch: pytest.MonkeyPatch) -> None:
    import resource

    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.dup(0)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest + 1, limits[1]))
    try:
        with pytest.raises(CapacityError, match="no descriptor for 8\\.2 kB"):
            pool.reserve("one", HostClaim(units=UNITS))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)

    assert (pool.describe().planned_bytes, pool.describe().num_units) == (0, 0)
