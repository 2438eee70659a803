"""Blocks of the KV pool by id: who holds them, which are free, and which are kept for what they contain."""

from collections import OrderedDict
from collections.abc import Callable, Iterable

from teengined.core.errors import InternalError

__all__ = ["BlockPool"]


class BlockPool:
    """Counts the holders of each block. Every operation takes constant time.

    A block is free, used (it has holders) or cached (it has none, but its content is known and may be wanted again).
    Cached blocks are taken, least recently used first, when no free one is left.
    """

    def __init__(self, num_blocks: int, on_evict: Callable[[int], None] = lambda block_id: None) -> None:
        """`on_evict` hears of each cached block that is taken for other content."""
        self._num_blocks = num_blocks
        self._on_evict = on_evict
        self.reset()

    def reset(self) -> None:
        """Make every block free; what they contained is forgotten without a word to `on_evict`."""
        self._free = list(range(self._num_blocks - 1, -1, -1))
        self._num_holders = [0] * self._num_blocks
        self._kept: set[int] = set()
        self._idle: OrderedDict[int, None] = OrderedDict()  # Kept blocks without holders, least recently used first.

    @property
    def num_free(self) -> int:
        """Blocks without holders and without known content."""
        return len(self._free)

    @property
    def num_cached(self) -> int:
        """Blocks without holders whose content is kept."""
        return len(self._idle)

    @property
    def num_used(self) -> int:
        """Blocks with holders."""
        return self._num_blocks - len(self._free) - len(self._idle)

    @property
    def num_available(self) -> int:
        """Blocks that `allocate` can still give."""
        return len(self._free) + len(self._idle)

    def allocate(self) -> int:
        """Return a block with one holder and no known content.

        Raises:
            InternalError: none is available; callers ask first.
        """
        if self._free:
            block_id = self._free.pop()
        elif self._idle:
            block_id, _ = self._idle.popitem(last=False)
            self._kept.discard(block_id)
            self._on_evict(block_id)
        else:
            raise InternalError("a KV block was taken from a pool that has none left")
        self._num_holders[block_id] = 1
        return block_id

    def share(self, block_id: int) -> None:
        """Add a holder to a block that is used or cached."""
        if self._num_holders[block_id] == 0:
            del self._idle[block_id]
        self._num_holders[block_id] += 1

    def release(self, block_id: int) -> None:
        """Take a holder away; the last one leaves the block cached if its content is kept, else free."""
        self._num_holders[block_id] -= 1
        if self._num_holders[block_id] == 0:
            if block_id in self._kept:
                self._idle[block_id] = None
            else:
                self._free.append(block_id)

    def keep(self, block_id: int) -> None:
        """Remember that the content of a used block is known: nobody may write to it any more."""
        self._kept.add(block_id)

    def drop(self, block_id: int) -> None:
        """Forget the content of a block; a cached one becomes free."""
        self._kept.discard(block_id)
        if block_id in self._idle:
            del self._idle[block_id]
            self._free.append(block_id)

    def is_writable(self, block_id: int) -> bool:
        """Whether its one holder may write to it."""
        return self._num_holders[block_id] == 1 and block_id not in self._kept

    def num_idle(self, block_ids: Iterable[int]) -> int:
        """Return how many of these blocks are cached, so that sharing them takes them from what is available."""
        return sum(self._num_holders[block_id] == 0 for block_id in block_ids)
