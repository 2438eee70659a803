from teengined.core.plan import Tier
from teengined.kvcache.spool import SlotMove, Spool, Stored


def spool(num_host: int = 2, num_disk: int = 0, **options) -> tuple[Spool, list[Stored]]:
    lost: list[Stored] = []
    return Spool(num_host_slots=num_host, num_disk_slots=num_disk, on_lost=lost.append, **options), lost


def stored(where: Spool) -> Stored:
    found = where.store()
    assert found is not None
    return found


def written(where: Spool) -> Stored:
    """Return a content that is on disk as well."""
    found = stored(where)
    (move,) = where.take_moves()
    where.settle(SlotMove(host=move.host, disk=move.disk, to_disk=True, digests=(b"d",)), succeeded=True)
    return found


def test_what_was_used_least_of_late_gives_way_and_is_told():
    where, lost = spool()
    first, second = stored(where), stored(where)
    where.touch(first)

    third = stored(where)

    assert lost == [second]
    assert (second.tier, first.tier, third.tier) == (None, Tier.HOST, Tier.HOST)
    assert (where.num_lost, where.num_host) == (1, 2)


def test_what_is_pinned_never_gives_way():
    where, lost = spool()
    first, second = stored(where), stored(where)
    where.pin(first)
    where.pin(second)

    assert where.store() is None
    assert lost == []
    where.unpin(first)
    assert stored(where).host == 0
    assert lost == [first]


def test_dropped_content_frees_its_slot_when_nobody_restores_it_any_more():
    where, lost = spool(num_host=1)
    only = stored(where)
    where.pin(only)

    where.drop(only)
    where.drop(only)

    assert (where.num_host, only.tier) == (1, Tier.HOST)
    where.unpin(only)
    assert (where.num_host, only.tier, lost) == (0, None, [])


def test_written_content_gives_up_its_host_slot_first_and_is_fetched_again():
    where, lost = spool(num_host=2, num_disk=4, write_early=True)
    below = written(where)
    above = stored(where)

    stored(where)

    assert (below.tier, above.tier, lost) == (Tier.DISK, Tier.HOST, [])
    where.take_moves()
    assert not where.fetch(below)  # Both host slots are being written.
    for move in [SlotMove(host=host, disk=disk, to_disk=True) for host, disk in where._moving]:
        where.settle(move, succeeded=True)
    assert where.fetch(below)
    (move,) = where.take_moves()
    assert (move.to_disk, move.digests, below.tier) == (False, (b"d",), Tier.DISK)
    where.settle(move, succeeded=True)
    assert (below.tier, where.num_fetched) == (Tier.HOST, 1)


def test_writes_keep_a_quarter_of_the_host_slots_at_hand():
    where, _ = spool(num_host=8, num_disk=8)
    for _ in range(6):
        stored(where)
    assert where.take_moves() == ()

    stored(where)

    assert [move.host for move in where.take_moves()] == [0]
    assert where.take_moves() == ()


def test_failed_write_leaves_the_content_in_host_memory_and_frees_its_disk_slot():
    where, lost = spool(num_host=2, num_disk=1, write_early=True)
    only = stored(where)
    (move,) = where.take_moves()

    where.settle(move, succeeded=False)

    assert (only.tier, where.num_disk, where.num_failed, lost) == (Tier.HOST, 0, 1, [])
    where.may_write = False
    assert where.take_moves() == ()


def test_content_that_cannot_be_read_is_lost_even_where_it_is_pinned():
    where, lost = spool(num_host=1, num_disk=2, write_early=True)
    below = written(where)
    stored(where)
    (move,) = where.take_moves()
    where.settle(move, succeeded=True)
    assert where.fetch(below)
    where.pin(below)
    (move,) = where.take_moves()

    where.settle(move, succeeded=False)

    assert (below.tier, lost) == (None, [below])
    assert where.num_host == 0
    where.unpin(below)
    assert where.num_host == 0


def test_full_disk_gives_up_what_was_used_least_of_late():
    where, lost = spool(num_host=1, num_disk=1, write_early=True)
    first = written(where)

    second = written(where)

    assert lost == [first]
    assert (first.tier, second.tier) == (None, Tier.HOST)


def test_moves_that_nobody_knows_are_passed_over():
    where, _ = spool(num_disk=1)

    where.settle(SlotMove(host=0, disk=0, to_disk=True), succeeded=True)

    assert (where.num_written, where.num_disk) == (0, 0)


def test_what_is_on_disk_outlives_the_stages():
    where, lost = spool(num_host=3, num_disk=3, write_early=True)
    below, above = written(where), stored(where)
    (move,) = where.take_moves()
    dirty = stored(where)

    where.lose_host()

    assert (below.tier, above.tier, dirty.tier) == (Tier.DISK, None, None)
    assert (where.num_host, where.num_disk, where.num_moving) == (0, 1, 0)
    assert set(lost) == {above, dirty}
    where.settle(move, succeeded=True)
    assert where.num_disk == 1


def test_disk_holds_what_was_used_last_where_all_of_it_is_in_host_memory_too():
    where, lost = spool(num_host=4, num_disk=2, write_early=True)
    first, second = written(where), written(where)
    where.touch(first)

    third = written(where)

    assert (first.disk, second.disk, third.disk) == (0, None, 1)
    assert [each.tier for each in (first, second, third)] == [Tier.HOST] * 3
    assert where.take_moves() == ()  # What gave way on disk is not written again,
    assert lost == []
    for _ in range(4):
        stored(where)
    assert lost == [second]  # and is gone when its place in host memory is wanted.


def test_what_gave_way_on_disk_is_lost_with_the_stages():
    where, lost = spool(num_host=4, num_disk=1, write_early=True)
    first, second = written(where), written(where)

    where.lose_host()

    assert (first.tier, second.tier, lost) == (None, Tier.DISK, [first])
    assert (where.num_host, where.num_disk) == (0, 1)


def test_what_is_on_disk_can_be_given_up_too():
    where, lost = spool(num_host=2, num_disk=4, write_early=True)
    first, second = written(where), written(where)
    where.lose_host()

    where.lose_host(and_disk=True)

    assert (lost, where.num_disk, first.tier, second.tier) == ([first, second], 0, None, None)
