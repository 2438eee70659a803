"""The blocks of all sequences: begin with what is there already, extend, keep what was computed, let go.

A block is written by one sequence only. One that others hold too, or that the prefix cache knows, is copied before a
sequence writes into it.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

from teengined.kvcache.block_pool import BlockPool
from teengined.kvcache.block_table import BlockTable, num_blocks_for
from teengined.kvcache.prefix import Node, PrefixIndex
from teengined.kvcache.restorable import Restorable
from teengined.kvcache.spool import Spool
from teengined.kvcache.tiers import Tiers

__all__ = ["CopiedBlock", "Extension", "KVCache", "Prefix", "ReadTokens"]

ReadTokens = Callable[[int, int], tuple[int, ...]]
"""Returns a sequence's tokens from one position up to, not including, another."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prefix:
    """Tokens whose KV a sequence need not compute, and the blocks that hold it."""

    num_tokens: int
    block_ids: tuple[int, ...]
    """Of all these tokens; the last may hold more, or belong to another who goes on writing."""
    nodes: tuple[int, ...]
    """Serial numbers in the prefix index of the full blocks among them."""
    is_cached: bool
    """It came from the prefix cache, not from a sequence that runs."""
    restorable: tuple[Restorable, ...] = ()
    """What follows these tokens, which then end with a block, and lies below the device."""

    @property
    def num_reached(self) -> int:
        """Tokens that need not be computed once everything is restored."""
        return self.num_tokens + sum(item.num_tokens for item in self.restorable)


@dataclass(frozen=True, slots=True, kw_only=True)
class CopiedBlock:
    """Block `source` at place `index` of a table is to be copied to `target`, which stands there now."""

    index: int
    source: int
    target: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Extension:
    """What changed in a table so that tokens can be written."""

    new_block_ids: tuple[int, ...]
    copied: CopiedBlock | None


class KVCache:
    """Accounts for the KV blocks of a deployment."""

    def __init__(
        self,
        num_blocks: int,
        block_tokens: int,
        *,
        prefix_cache: bool,
        index: PrefixIndex | None = None,
        spool: Spool | None = None,
    ) -> None:
        """`prefix_cache`: keep full blocks after their sequence, for others that begin alike.

        `spool`: where contents go that leave the device; None: nowhere.
        """
        self.block_tokens = block_tokens
        self._prefix_cache = prefix_cache
        self._index = PrefixIndex() if index is None else index
        self.pool = BlockPool(num_blocks, self._evict)
        self.tiers = Tiers(pool=self.pool, index=self._index, spool=spool or Spool(num_host_slots=0, num_disk_slots=0))
        self._copied: list[int] = []  # Sources of copies in the run that is being composed, each with a holder.
        self._targets: set[int] = set()

    def _evict(self, block_id: int) -> None:
        self.tiers.evict(block_id)

    def reset(self) -> None:
        """Make every block free and forget all content but what is on disk. No table may be used again."""
        self.pool.reset()
        self.tiers.reset()
        self._index.leave_all()
        self._copied.clear()
        self._targets.clear()

    def match(self, table: BlockTable, read: ReadTokens, salt: bytes, max_tokens: int) -> Prefix:
        """Return the longest known prefix of at most `max_tokens` tokens among those of the same salt.

        Where `max_tokens` ends within a known block, that block is part of the answer: it is copied on write.
        """
        known = self._known_nodes(table, read, salt, max_tokens)
        num_here = next((number for number, node in enumerate(known) if node.block_id is None), len(known))
        here = known[:num_here]
        prefix = self._cut(
            min(max_tokens, num_here * self.block_tokens),
            [node.block_id for node in here if node.block_id is not None],
            [node.serial for node in here],
            is_cached=True,
        )
        below = self._restorable(known[num_here:], max_tokens - num_here * self.block_tokens)
        num_known = num_here + len(below)
        if num_known * self.block_tokens <= max_tokens:
            below += self.tiers.behind(table, num_known, max_tokens)
        return replace(prefix, restorable=tuple(below))

    def _known_nodes(self, table: BlockTable, read: ReadTokens, salt: bytes, max_tokens: int) -> list[Node]:
        parent: int | bytes = salt
        known: list[Node] = []
        for index in range(num_blocks_for(max_tokens, self.block_tokens) if self._prefix_cache else 0):
            token_ids = read(index * self.block_tokens, (index + 1) * self.block_tokens)
            if len(token_ids) < self.block_tokens:
                break
            node = self._index.find(parent, self._digest(table, index, read, salt), token_ids)
            if node is None:
                break
            known.append(node)
            parent = node.serial
        return known

    def _restorable(self, nodes: list[Node], max_tokens: int) -> list[Restorable]:
        """Return the first of these that can be had, whole ones only: what is restored in part is written to."""
        found: list[Restorable] = []
        for node in nodes[: max(0, max_tokens) // self.block_tokens]:
            if node.stored is None or node.stored.tier is None:
                break
            found.append(Restorable(stored=node.stored, num_tokens=self.block_tokens, node=node))
        return found

    def fork(self, table: BlockTable, num_tokens: int) -> Prefix:
        """Return the first tokens of a sequence that has computed them, to begin another one with."""
        return self._cut(num_tokens, table.block_ids, table.nodes, is_cached=False)

    def can_fork(self, table: BlockTable) -> bool:
        """Whether a table can be begun with in the run that is being composed: not if a copy of the run is part of it.

        The copies of a run read before anything is written.
        """
        return self._targets.isdisjoint(table.block_ids)

    def whole_blocks(self, prefix: Prefix) -> Prefix:
        """Return the prefix without the part of a block at its end, which costs a copy."""
        num_tokens = prefix.num_tokens - prefix.num_tokens % self.block_tokens
        return self._cut(num_tokens, prefix.block_ids, prefix.nodes, is_cached=prefix.is_cached)

    def _cut(
        self,
        num_tokens: int,
        block_ids: list[int] | tuple[int, ...],
        nodes: list[int] | tuple[int, ...],
        *,
        is_cached: bool,
    ) -> Prefix:
        return Prefix(
            num_tokens=num_tokens,
            block_ids=tuple(block_ids[: num_blocks_for(num_tokens, self.block_tokens)]),
            nodes=tuple(nodes[: num_tokens // self.block_tokens]),
            is_cached=is_cached,
        )

    def num_needed_after(self, prefix: Prefix, num_tokens: int) -> int:
        """Return how many available blocks it takes to adopt a prefix and then hold `num_tokens` tokens in all."""
        num_missing = num_blocks_for(num_tokens, self.block_tokens) - len(prefix.block_ids)
        num_copied = 1 if prefix.num_tokens % self.block_tokens else 0
        return num_missing + num_copied + self.pool.num_idle(prefix.block_ids)

    def adopt(self, table: BlockTable, prefix: Prefix) -> None:
        """Let an empty table begin with a prefix."""
        for block_id in prefix.block_ids:
            self.pool.share(block_id)
        table.block_ids[:] = prefix.block_ids
        table.nodes[:] = prefix.nodes
        self.tiers.adopt(table, prefix.restorable)

    def num_needed(self, table: BlockTable, start: int, stop: int) -> int:
        """Return how many blocks must be available before tokens `[start, stop)` are written."""
        return table.num_missing(stop) + self._must_copy(table, start)

    def has_room(self, table: BlockTable, start: int, stop: int) -> bool:
        """Whether `num_needed` blocks are available; most often seen without counting them."""
        num_available = self.pool.num_available
        return (stop - start) // self.block_tokens + 2 < num_available or (
            self.num_needed(table, start, stop) <= num_available
        )

    def num_writable(self, table: BlockTable, start: int) -> int:
        """Return how many tokens can be written from `start` on with the blocks that are available."""
        num_more = self.pool.num_available - self._must_copy(table, start)
        return table.num_fitting(num_more) - start if num_more >= 0 else 0

    def _must_copy(self, table: BlockTable, start: int) -> bool:
        index = start // self.block_tokens
        return index < len(table.block_ids) and not self.pool.is_writable(table.block_ids[index])

    def extend(self, table: BlockTable, start: int, stop: int) -> Extension:
        """Give a table the blocks to write tokens `[start, stop)`.

        The source of a copy keeps a holder until `settle`: the copies of a run read before anything is written, so no
        source may be another's target.

        Raises:
            InternalError: fewer blocks are available than `num_needed` says.
        """
        copied = None
        if self._must_copy(table, start):
            index = start // self.block_tokens
            copied = CopiedBlock(index=index, source=table.block_ids[index], target=self.pool.allocate())
            table.block_ids[index] = copied.target
            self._copied.append(copied.source)
            self._targets.add(copied.target)
        new_block_ids = tuple(self.pool.allocate() for _ in range(table.num_missing(stop)))
        table.block_ids += new_block_ids
        return Extension(new_block_ids=new_block_ids, copied=copied)

    def settle(self) -> None:
        """Let go of the sources of copies: the run that copies them is complete."""
        for block_id in self._copied:
            self.pool.release(block_id)
        self._copied.clear()
        self._targets.clear()
        self.tiers.settle()

    def commit(self, table: BlockTable, read: ReadTokens, salt: bytes, num_computed: int) -> None:
        """Make full blocks known of which all `num_computed` tokens are on the stages."""
        if not self._prefix_cache:
            return
        for index in range(len(table.nodes), num_computed // self.block_tokens):
            token_ids = read(index * self.block_tokens, (index + 1) * self.block_tokens)
            parent = table.nodes[-1] if table.nodes else salt
            digest = self._digest(table, index, read, salt)
            node = self._index.find(parent, digest, token_ids)
            if node is None:
                node = self._insert(table, parent, digest, token_ids)
            elif node.block_id is None:  # It came back by being computed.
                self._index.place(node, table.block_ids[index])
                self.pool.keep(table.block_ids[index])
            table.nodes.append(node.serial)

    def _insert(self, table: BlockTable, parent: int | bytes, digest: bytes, token_ids: tuple[int, ...]) -> Node:
        block_id = table.block_ids[len(table.nodes)]
        node, replaced = self._index.insert(parent, digest, token_ids, block_id)
        if replaced is not None:
            self.tiers.forget(replaced)
            if replaced.block_id is not None:
                self.pool.drop(replaced.block_id)
        self.pool.keep(block_id)
        self.tiers.note_known(node)
        return node

    def _digest(self, table: BlockTable, index: int, read: ReadTokens, salt: bytes) -> bytes:
        """Return the digest of block `index`, computing those that were never asked for."""
        for missing in range(len(table.digests), index + 1):
            parent = table.digests[-1] if missing else self._index.root(salt)
            token_ids = read(missing * self.block_tokens, (missing + 1) * self.block_tokens)
            table.digests.append(self._index.digest(parent, token_ids))
        return table.digests[index]

    def release(self, table: BlockTable) -> None:
        """Let go of all blocks of a table, the last first: what comes later is of use to fewer, and evicted sooner."""
        for block_id in reversed(table.block_ids):
            self.pool.release(block_id)
        table.block_ids.clear()
        table.nodes.clear()
        self.tiers.give_up(table)

    def distrust(self, table: BlockTable) -> None:
        """Let nobody begin with the blocks of a table any more: what is in them may be wrong."""
        for block_id in table.block_ids:
            node = self._index.at(block_id)
            if node is not None:
                self.tiers.forget(node)
            self.pool.drop(block_id)
