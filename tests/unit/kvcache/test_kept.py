"""Which blocks outlive a deployment, and that they are found again by the same tokens after the same tokens only."""

import random
from dataclasses import replace
from typing import Any

import pytest

from teengined.kvcache.block_table import BlockTable
from teengined.kvcache.kept import KeptBlock, snapshot, take_over, without_old
from teengined.kvcache.kv_cache import KVCache
from teengined.kvcache.prefix import PrefixIndex
from teengined.kvcache.spool import SlotMove, Spool

SIZE, SALT = 2, b"salt"


def block(**changed: Any) -> KeptBlock:
    values: dict[str, Any] = {"slot": 0, "salt": SALT, "token_ids": (1, 2), "digests": (b"d",)}
    return KeptBlock(**values | changed)


def after(parent: int, **changed: Any) -> KeptBlock:
    return block(parent=parent, salt=b"", **changed)


def fresh(num_disk_slots: int = 8) -> tuple[PrefixIndex, Spool]:
    spool = Spool(num_host_slots=4, num_disk_slots=num_disk_slots, outlives=True)
    cache = KVCache(8, SIZE, prefix_cache=True, spool=spool)
    return cache.tiers.index, spool


def computed(*sequences: tuple[int, ...]) -> KVCache:
    """Return a cache whose full blocks are all on disk."""
    cache = KVCache(16, SIZE, prefix_cache=True, spool=Spool(num_host_slots=16, num_disk_slots=16, outlives=True))
    for tokens in sequences:
        table = BlockTable(SIZE)
        cache.extend(table, 0, len(tokens))
        cache.commit(table, lambda start, stop, tokens=tokens: tokens[start:stop], SALT, len(tokens))
        cache.release(table)
    cache.tiers.save(16)
    for move in cache.tiers.spool.take_moves():
        end_write(cache.tiers.spool, move)
    return cache


def end_write(spool: Spool, move: SlotMove) -> None:
    spool.settle(replace(move, digests=(bytes([move.disk]),)), succeeded=True)


def test_blocks_are_told_parents_first_with_the_salt_of_each_chain():
    cache = computed((1, 2, 3, 4), (1, 2, 5, 6), (7, 8))

    blocks = snapshot(cache.tiers.index, cache.tiers.spool).blocks()

    assert [(item.parent, item.salt, item.token_ids) for item in blocks] == [
        (-1, SALT, (1, 2)),
        (0, b"", (3, 4)),
        (0, b"", (5, 6)),
        (-1, SALT, (7, 8)),
    ]
    assert all(item.digests == (bytes([item.slot]),) for item in blocks)


def test_block_behind_one_that_is_not_on_disk_is_not_told():
    cache = computed((1, 2, 3, 4, 5, 6))
    index, spool = cache.tiers.index, cache.tiers.spool
    middle = list(index.nodes())[1].stored
    assert middle is not None
    spool.drop(middle)

    assert [item.token_ids for item in snapshot(index, spool).blocks()] == [(1, 2)]


def test_what_is_taken_over_is_told_again_the_same():
    cache = computed((1, 2, 3, 4), (1, 2, 5, 6), (7, 8))
    blocks = snapshot(cache.tiers.index, cache.tiers.spool).blocks()
    index, spool = fresh()

    assert take_over(index, spool, blocks) == 4
    assert snapshot(index, spool).blocks() == blocks
    assert spool.num_disk == 4


def test_least_recently_used_gives_way_first_after_as_before():
    index, spool = fresh(num_disk_slots=2)
    take_over(index, spool, [block(slot=0, rank=5), block(slot=1, rank=2, token_ids=(3, 4))])

    assert spool.store() is not None
    (move,) = spool.take_moves()

    assert move.disk == 1


@pytest.mark.parametrize(
    ("blocks", "num_taken"),
    [
        ([block(slot=8)], 0),
        ([block(slot=99), after(0, slot=1)], 0),
        ([block(slot=1), block(slot=1, token_ids=(3, 4))], 1),
        ([block(slot=1), block(slot=2)], 1),
        ([block(slot=1), after(0, slot=1), after(1, slot=2)], 1),
    ],
)
def test_block_without_a_slot_or_a_name_of_its_own_is_passed_over(blocks: list[KeptBlock], num_taken: int):
    index, spool = fresh()

    assert take_over(index, spool, blocks) == num_taken
    assert spool.num_disk == num_taken
    assert len(index) == num_taken


@pytest.mark.parametrize(
    "changed",
    [
        {"slot": -1},
        {"parent": -2},
        {"rank": -1},
        {"written_unix_seconds": -1.0},
        {"written_unix_seconds": float("nan")},
        {"parent": 3},
        {"salt": bytes(65)},
        {"token_ids": ()},
        {"token_ids": (-1, 2)},
        {"token_ids": (1, 1 << 31)},
        {"digests": ()},
        {"digests": (b"",)},
        {"digests": (bytes(65),)},
    ],
)
def test_block_that_cannot_be_is_refused(changed: dict[str, Any]):
    with pytest.raises(ValueError, match="block"):
        block(**changed)


def test_old_blocks_go_and_take_along_what_follows_them():
    blocks = [
        block(written_unix_seconds=100.0),
        block(slot=1, written_unix_seconds=10.0),
        after(1, slot=2, written_unix_seconds=100.0),
        after(0, slot=3, written_unix_seconds=95.0),
        after(3, slot=4, written_unix_seconds=200.0),
    ]

    kept = without_old(blocks, 105.0, 20.0)

    assert [(item.slot, item.parent) for item in kept] == [(0, -1), (3, 0)]


def test_random_blocks_never_confuse_the_slots(seed: int):
    rng = random.Random(seed)
    for _ in range(300):
        index, spool = fresh(num_disk_slots=6)
        blocks: list[KeptBlock] = []
        for place in range(rng.randint(0, 8)):
            parent = rng.randint(-1, place - 1)
            salt = rng.choice([b"a", b"b"]) if parent == -1 else b""
            tokens = rng.randrange(3), rng.randrange(3)
            blocks.append(
                block(slot=rng.randrange(8), parent=parent, salt=salt, token_ids=tokens, rank=rng.randrange(9))
            )
        num_taken = take_over(index, spool, blocks)

        told = snapshot(index, spool).blocks()
        assert len(told) == num_taken == spool.num_disk == len({item.slot for item in told})
        assert sorted([*spool._free_disk, *(item.slot for item in told)]) == list(range(6))
        assert {item.slot for item in told} <= {item.slot for item in blocks}


def test_nothing_is_taken_over_where_something_is_on_disk_already():
    cache = computed((1, 2))

    assert take_over(cache.tiers.index, cache.tiers.spool, [block(slot=5, token_ids=(3, 4))]) == 0
    assert cache.tiers.spool.num_disk == len(cache.tiers.index) == 1
