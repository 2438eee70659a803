"""What leaves the device and what comes back, block by block."""

from teengined.core.plan import Tier
from teengined.kvcache.block_table import BlockTable
from teengined.kvcache.kv_cache import KVCache
from teengined.kvcache.spool import Spool

SALT, SIZE = b"salt", 4


class Tokens:
    """A sequence with its table, of ten tokens: two full blocks and a half."""

    def __init__(self, cache: KVCache, first: int = 0) -> None:
        self.cache, self.token_ids, self.table = cache, tuple(range(first, first + 10)), BlockTable(SIZE)

    def read(self, start: int, stop: int) -> tuple[int, ...]:
        return self.token_ids[start:stop]

    def match(self, max_tokens: int = 10):
        return self.cache.match(self.table, self.read, SALT, max_tokens)

    def compute(self):
        self.cache.extend(self.table, 0, 10)
        self.cache.commit(self.table, self.read, SALT, 10)
        return self

    def give_way(self):
        """Lose every block to others."""
        self.cache.tiers.swap_out(self.table, 10)
        self.cache.release(self.table)
        empty(self.cache)
        return self


def kv_cache(num_host_slots: int = 8, num_blocks: int = 3) -> KVCache:
    spool = Spool(num_host_slots=num_host_slots, num_disk_slots=0)
    return KVCache(num_blocks, SIZE, prefix_cache=True, spool=spool)


def empty(cache: KVCache) -> None:
    for block_id in [cache.pool.allocate() for _ in range(cache.pool.num_available)]:
        cache.pool.release(block_id)


def tokens_of(found) -> list[int]:
    return [item.num_tokens for item in found.restorable]


def test_full_blocks_are_anybodys_and_the_rest_its_sequences_own():
    cache = kv_cache()
    lost = Tokens(cache).compute().give_way()

    assert tokens_of(Tokens(cache).match()) == [4, 4]
    assert (tokens_of(lost.match()), lost.match().num_reached) == ([4, 4, 2], 10)
    assert tokens_of(lost.match(9)) == [4, 4, 1]
    assert tokens_of(lost.match(7)) == [4]


def test_restored_blocks_are_known_again_and_their_copies_stay():
    cache = kv_cache()
    lost = Tokens(cache).compute().give_way()
    cache.tiers.take_copies()
    cache.adopt(lost.table, lost.match())

    assert cache.tiers.restore(lost.table, 8) == (3, 10)
    stores, restores = cache.tiers.take_copies()
    cache.settle()

    assert (len(stores), [copy.block_id for copy in restores]) == (0, lost.table.block_ids)
    other = Tokens(cache)
    assert other.match().num_tokens == 8
    assert cache.tiers.spool.num_host == 2  # Its own part was of use once.
    cache.release(lost.table)
    empty(cache)
    assert cache.tiers.take_copies() == ((), ())


def test_shared_block_is_restored_once():
    cache = kv_cache(num_blocks=6)
    Tokens(cache).compute().give_way()
    one, two = Tokens(cache), Tokens(cache)
    cache.adopt(one.table, one.match())
    cache.adopt(two.table, two.match())

    assert cache.tiers.restore(one.table, 8) == (2, 8)
    assert cache.tiers.restore(two.table, 8) == (0, 8)
    assert one.table.block_ids == two.table.block_ids


def test_block_that_arrives_in_a_run_is_not_stored_in_the_same():
    cache = kv_cache()
    lost = Tokens(cache).compute().give_way()
    cache.adopt(lost.table, lost.match())
    cache.tiers.restore(lost.table, 8)
    cache.tiers.take_copies()

    cache.tiers.swap_out(lost.table, 10)

    assert lost.table.swapped is None
    assert cache.tiers.take_copies() == ((), ())


def test_what_is_cheaper_to_compute_is_not_stored():
    cache = kv_cache()
    cache.tiers.is_worthwhile = lambda tier: tier is not Tier.HOST
    lost = Tokens(cache).compute().give_way()

    assert (lost.match().restorable, cache.tiers.take_copies()) == ((), ((), ()))


def test_contents_that_found_no_slot_are_computed():
    cache = kv_cache(num_host_slots=1)
    lost = Tokens(cache).compute().give_way()

    assert lost.match().num_reached in (0, 4)
    assert cache.tiers.spool.num_lost == 2


def test_computed_again_it_is_on_the_device_and_below():
    cache = kv_cache()
    Tokens(cache).compute().give_way()
    again = Tokens(cache).compute()

    assert Tokens(cache).match().block_ids == tuple(again.table.block_ids[:2])
    cache.release(again.table)
    cache.tiers.take_copies()
    empty(cache)
    assert cache.tiers.take_copies() == ((), ())


def test_blocks_that_are_not_trusted_are_forgotten_below_too():
    cache = kv_cache()
    Tokens(cache).compute().give_way()
    again = Tokens(cache).compute()

    cache.distrust(again.table)
    cache.release(again.table)

    assert Tokens(cache).match().num_reached == 0
