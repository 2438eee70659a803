from teengined.kvcache.block_table import BlockTable
from teengined.kvcache.kv_cache import CopiedBlock, KVCache
from teengined.kvcache.prefix import PrefixIndex

SALT = b"salt"
SIZE = 4


class Tokens:
    """A sequence with its table."""

    def __init__(self, cache: KVCache, *token_ids: int, salt: bytes = SALT) -> None:
        self.cache, self.token_ids, self.salt = cache, token_ids, salt
        self.table = BlockTable(SIZE)

    def read(self, start: int, stop: int) -> tuple[int, ...]:
        return self.token_ids[start:stop]

    def match(self, max_tokens: int | None = None):
        most = len(self.token_ids) - 1 if max_tokens is None else max_tokens
        return self.cache.match(self.table, self.read, self.salt, most)

    def compute(self):
        """Take blocks for all tokens and make them known."""
        self.cache.extend(self.table, 0, len(self.token_ids))
        self.cache.commit(self.table, self.read, self.salt, len(self.token_ids))
        return self


def kv_cache(num_blocks: int = 8, *, prefix_cache: bool = True, index: PrefixIndex | None = None) -> KVCache:
    return KVCache(num_blocks, SIZE, prefix_cache=prefix_cache, index=index)


def test_sequence_begins_with_the_full_blocks_that_another_had():
    cache = kv_cache()
    first = Tokens(cache, *range(10)).compute()
    second = Tokens(cache, *range(9), 77)

    prefix = second.match()
    cache.adopt(second.table, prefix)

    assert prefix.num_tokens == 8
    assert second.table.block_ids == first.table.block_ids[:2]
    assert cache.pool.num_used == 3


def test_blocks_stay_known_when_their_sequence_is_gone():
    cache = kv_cache()
    first = Tokens(cache, *range(10)).compute()
    cache.release(first.table)

    assert (cache.pool.num_used, cache.pool.num_cached) == (0, 2)
    assert Tokens(cache, *range(10)).match().num_tokens == 8


def test_last_token_is_never_part_of_the_match():
    cache = kv_cache()
    Tokens(cache, *range(8)).compute()

    prefix = Tokens(cache, *range(8)).match()

    assert prefix.num_tokens == 7
    assert len(prefix.block_ids) == 2
    assert len(prefix.nodes) == 1


def test_block_that_is_only_partly_wanted_is_copied_before_it_is_written():
    cache = kv_cache()
    first = Tokens(cache, *range(8)).compute()
    second = Tokens(cache, *range(8))
    prefix = second.match()
    assert cache.num_needed_after(prefix, 8) == 1
    cache.adopt(second.table, prefix)
    assert cache.num_needed(second.table, 7, 8) == 1

    extension = cache.extend(second.table, 7, 8)

    assert extension.copied == CopiedBlock(index=1, source=first.table.block_ids[1], target=second.table.block_ids[1])
    assert second.table.block_ids[0] == first.table.block_ids[0]
    assert extension.new_block_ids == ()


def test_source_of_a_copy_is_nobodys_before_the_run_is_complete():
    cache = kv_cache(num_blocks=3)
    first = Tokens(cache, *range(8)).compute()
    cache.release(first.table)
    second = Tokens(cache, *range(8))
    cache.adopt(second.table, second.match())
    copied = cache.extend(second.table, 7, 8).copied

    assert cache.pool.num_available == 0
    cache.settle()

    assert cache.pool.num_available == 1
    assert copied is not None
    assert cache.pool.allocate() == copied.source


def test_match_counts_the_cached_blocks_that_it_takes_from_what_is_available():
    cache = kv_cache()
    cache.release(Tokens(cache, *range(12)).compute().table)
    second = Tokens(cache, *range(12), 5, 6)

    assert cache.num_needed_after(second.match(), 14) == 4
    assert cache.num_needed_after(cache.whole_blocks(second.match(10)), 14) == 4
    assert cache.num_needed_after(second.match(10), 14) == 5


def test_other_salts_share_nothing():
    cache = kv_cache()
    Tokens(cache, *range(8)).compute()

    assert Tokens(cache, *range(8), salt=b"other").match().num_tokens == 0


def test_colliding_digests_never_give_another_sequences_blocks():
    cache = kv_cache(index=PrefixIndex(lambda parent, content: b"same"))
    first = Tokens(cache, 1, 2, 3, 4, 5, 6, 7, 8).compute()

    assert Tokens(cache, 9, 9, 9, 9, 5, 6, 7, 8, 0).match().num_tokens == 0
    assert Tokens(cache, 5, 6, 7, 8, 0).match().num_tokens == 0
    assert first.match().num_tokens == 0  # Its second block took the place of its first.
    assert cache.pool.is_writable(first.table.block_ids[0])


def test_without_a_prefix_cache_nothing_is_kept():
    cache = kv_cache(prefix_cache=False)
    first = Tokens(cache, *range(8)).compute()

    assert first.match().num_tokens == 0
    cache.release(first.table)
    assert cache.pool.num_free == 8


def test_fork_shares_all_blocks_whether_or_not_there_is_a_prefix_cache():
    cache = kv_cache(prefix_cache=False)
    first = Tokens(cache, *range(6)).compute()
    second = Tokens(cache, *range(6))

    cache.adopt(second.table, cache.fork(first.table, 5))
    copied = cache.extend(second.table, 5, 6).copied

    assert copied is not None
    assert copied.source == first.table.block_ids[1]
    assert second.table.block_ids[0] == first.table.block_ids[0]
    cache.settle()
    assert cache.pool.is_writable(first.table.block_ids[1])


def test_later_blocks_of_a_sequence_are_evicted_before_earlier_ones():
    cache = kv_cache(num_blocks=3)
    cache.release(Tokens(cache, *range(12)).compute().table)

    cache.pool.allocate()

    assert Tokens(cache, *range(12)).match().num_tokens == 8


def test_same_content_computed_twice_is_known_once():
    cache = kv_cache()
    first, second = Tokens(cache, *range(9)), Tokens(cache, *range(9))
    first.compute()
    second.compute()

    cache.release(second.table)

    assert cache.pool.num_cached == 0
    assert Tokens(cache, *range(9)).match().block_ids == tuple(first.table.block_ids[:2])


def test_blocks_that_are_not_trusted_are_given_to_nobody():
    cache = kv_cache()
    first = Tokens(cache, *range(8)).compute()

    cache.distrust(first.table)
    cache.release(first.table)

    assert Tokens(cache, *range(8)).match().num_tokens == 0
    assert cache.pool.num_free == 8


def test_reset_forgets_everything():
    cache = kv_cache()
    Tokens(cache, *range(8)).compute()

    cache.reset()

    assert cache.pool.num_free == 8
    assert Tokens(cache, *range(8)).match().num_tokens == 0


def test_tokens_that_can_be_written_are_counted_in_available_blocks():
    cache = kv_cache(num_blocks=3)
    first = Tokens(cache, *range(6)).compute()

    assert cache.num_writable(first.table, 6) == 6
    assert cache.has_room(first.table, 6, 12)
    assert not cache.has_room(first.table, 6, 13)


def test_nobody_begins_with_a_copy_before_its_run_is_complete():
    cache = kv_cache()
    cache.release(Tokens(cache, *range(8)).compute().table)
    second = Tokens(cache, *range(8))
    cache.adopt(second.table, second.match())
    assert cache.can_fork(second.table)

    cache.extend(second.table, 7, 8)

    assert not cache.can_fork(second.table)
    cache.settle()
    assert cache.can_fork(second.table)
