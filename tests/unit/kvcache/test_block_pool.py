import random

import pytest

from teengined.core.errors import InternalError
from teengined.kvcache.block_pool import BlockPool


def counts(pool: BlockPool) -> tuple[int, int, int]:
    return pool.num_free, pool.num_used, pool.num_cached


def test_block_is_free_again_when_its_last_holder_leaves():
    pool = BlockPool(3)
    block_id = pool.allocate()
    pool.share(block_id)

    pool.release(block_id)
    assert counts(pool) == (2, 1, 0)
    pool.release(block_id)

    assert counts(pool) == (3, 0, 0)


def test_block_whose_content_is_known_stays_cached_and_can_be_taken_up_again():
    pool = BlockPool(2)
    block_id = pool.allocate()
    pool.keep(block_id)
    pool.release(block_id)
    assert counts(pool) == (1, 0, 1)

    assert pool.num_idle([block_id]) == 1
    pool.share(block_id)

    assert counts(pool) == (1, 1, 0)
    assert pool.num_idle([block_id]) == 0


def test_free_blocks_go_before_cached_ones_and_those_by_their_last_use():
    evicted: list[int] = []
    pool = BlockPool(3, evicted.append)
    first, second = pool.allocate(), pool.allocate()
    for block_id in (first, second):
        pool.keep(block_id)
        pool.release(block_id)
    pool.share(first)  # Used once more, so the other one is older now.
    pool.release(first)

    taken = [pool.allocate() for _ in range(3)]

    assert taken[1:] == [second, first]
    assert evicted == [second, first]


def test_pool_that_has_nothing_left_says_so():
    pool = BlockPool(1)
    pool.allocate()

    assert pool.num_available == 0
    with pytest.raises(InternalError):
        pool.allocate()


def test_only_a_single_holder_writes_and_only_to_unknown_content():
    pool = BlockPool(2)
    block_id = pool.allocate()
    assert pool.is_writable(block_id)

    pool.share(block_id)
    assert not pool.is_writable(block_id)
    pool.release(block_id)
    pool.keep(block_id)

    assert not pool.is_writable(block_id)


def test_content_that_is_dropped_frees_a_cached_block_and_leaves_a_used_one_in_use():
    pool = BlockPool(2)
    cached, used = pool.allocate(), pool.allocate()
    pool.keep(cached)
    pool.keep(used)
    pool.release(cached)

    pool.drop(cached)
    pool.drop(used)

    assert counts(pool) == (1, 1, 0)
    assert pool.is_writable(used)


def test_blocks_are_never_given_twice_nor_lost(seed: int):
    rng = random.Random(seed)
    pool = BlockPool(8)
    held: list[int] = []
    for step in range(5000):
        if rng.random() < 0.5 and pool.num_available:
            block_id = pool.allocate()
            assert block_id not in held, f"seed {seed}, step {step}"
            held.append(block_id)
        elif held and rng.random() < 0.3:
            block_id = rng.choice(held)
            pool.share(block_id)
            held.append(block_id)
        elif held:
            if rng.random() < 0.5:
                pool.keep(rng.choice(held))
            pool.release(held.pop(rng.randrange(len(held))))
        assert pool.num_used == len(set(held)), f"seed {seed}, step {step}"
        assert sum(counts(pool)) == 8
