"""What becomes of a block's content when it leaves the device, and how it comes back. Pure.

A full block that the prefix index knows is stored when its block is given to somebody else; others may begin with it.
What a sequence alone has, the part of a block at its end above all, is stored when the sequence is preempted, and is
its own. Either way the copy into host memory comes first in the run that is being composed, before anything is written.
"""

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from teengined.core.plan import Tier
from teengined.kvcache.block_pool import BlockPool
from teengined.kvcache.block_table import BlockTable
from teengined.kvcache.prefix import Node, PrefixIndex
from teengined.kvcache.restorable import Restorable, Swapped
from teengined.kvcache.spool import Spool, Stored

__all__ = ["SlotCopy", "Tiers"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotCopy:
    """A block and a host slot, the one to be copied to the other on every stage."""

    block_id: int
    slot: int
    num_tokens: int
    """Of the block, from its start, that are its sequence's own; the rest is forgotten when it is restored."""


@dataclass(slots=True, kw_only=True, eq=False)
class Tiers:
    """Stores and restores for the blocks of one pool."""

    pool: BlockPool
    index: PrefixIndex
    spool: Spool
    is_worthwhile: Callable[[Tier], bool] = lambda tier: True
    """Whether a block comes back from a tier sooner than it is computed."""
    num_stored: int = 0
    """Blocks copied to host memory since the beginning, and back, as the next."""
    num_restored: int = 0
    _unsaved: deque[int] = field(init=False)
    """Serials of nodes that are to be on disk and never were told to go there; empty where nothing outlives."""
    _stores: list[SlotCopy] = field(default_factory=list[SlotCopy])
    _restores: list[SlotCopy] = field(default_factory=list[SlotCopy])
    _read: list[Stored] = field(default_factory=list[Stored])
    """Sources of restores in the run that is being composed, each pinned."""
    _arriving: set[int] = field(default_factory=set[int])
    """Blocks that such restores fill: what is stored in the same run is stored before."""

    def __post_init__(self) -> None:
        """Hear of what the spool loses."""
        self.spool.on_lost = self._on_lost
        # What was known before as many others would have given way to them on disk.
        self._unsaved = deque(maxlen=self.spool.num_disk_slots if self.spool.outlives else 0)

    def reset(self) -> None:
        """The stages are gone, and every sequence with them: keep what is on disk."""
        self.settle()
        self._stores.clear()
        self._restores.clear()
        self.spool.lose_host()

    def evict(self, block_id: int) -> None:
        """Store a block whose content is about to be written over, if that is worth it."""
        node = self.index.at(block_id)
        if node is not None and node.stored is None:
            self._store_node(node, block_id)
        self.index.leave(block_id)

    def checkpoint(self, table: BlockTable, max_blocks: int) -> int:
        """Store up to so many of a table's known blocks that are nowhere but on the device; return how many."""
        num_stored = 0
        for serial in table.nodes:
            node = self.index.of(serial)
            if node is not None and node.stored is None and node.block_id is not None:
                if num_stored == max_blocks or not self._store_node(node, node.block_id):
                    break
                num_stored += 1
        return num_stored

    def note_known(self, node: Node) -> None:
        """Note that a node became known, on the device."""
        self._unsaved.append(node.serial)

    def save(self, max_blocks: int) -> None:
        """Store up to so many blocks that are only on the device, for which nothing else gives way.

        Each is tried once: what gave way on disk since was used less than what is there.
        """
        while self._unsaved and max_blocks and self.spool.has_spare_host:
            node = self.index.of(self._unsaved[0])
            if node is not None and node.stored is None and node.block_id is not None:
                if not self._store_node(node, node.block_id):
                    return
                max_blocks -= 1
            self._unsaved.popleft()

    def forget(self, node: Node) -> None:
        """Let nobody begin with a node any more; its block, if it has one, is the caller's affair."""
        self.index.forget(node)
        if node.stored is not None:
            self.spool.drop(node.stored)
            node.stored = None

    def swap_out(self, table: BlockTable, num_computed: int) -> None:
        """Store what a sequence has on the device and the prefix index does not know, before it is released."""
        first = len(table.nodes)
        stored: list[Stored] = []
        size = table.block_tokens
        if self.is_worthwhile(Tier.HOST):
            for index in range(first, -(-num_computed // size)):
                place = self._store(table.block_ids[index], min(size, num_computed - index * size), None)
                if place is None:
                    break
                stored.append(place)
        num_tokens = min(num_computed, (first + len(stored)) * size)
        table.swapped = Swapped(first=first, stored=stored, num_tokens=num_tokens) if stored else None

    def behind(self, table: BlockTable, num_known: int, max_tokens: int) -> list[Restorable]:
        """Return what of a sequence's own follows its `num_known` known blocks, up to a number of tokens."""
        swapped, size = table.swapped, table.block_tokens
        if swapped is None or swapped.first > num_known:
            return []
        found: list[Restorable] = []
        for index in range(num_known, swapped.first + len(swapped.stored)):
            stored = swapped.stored[index - swapped.first]
            num_tokens = min(size, min(max_tokens, swapped.num_tokens) - index * size)
            if num_tokens <= 0 or stored.tier is None or stored.is_dropped:
                break
            found.append(Restorable(stored=stored, num_tokens=num_tokens))
        return found

    def adopt(self, table: BlockTable, restorables: Iterable[Restorable]) -> None:
        """Let a table go on with these after its blocks; they stay where they are until then."""
        table.pending = deque(restorables)
        for item in table.pending:
            self.spool.pin(item.stored)
        self.discard(table)

    def discard(self, table: BlockTable) -> None:
        """Forget what only this table's sequence could have used."""
        swapped, table.swapped = table.swapped, None
        for stored in () if swapped is None else swapped.stored:
            self.spool.drop(stored)

    def restore(self, table: BlockTable, max_blocks: int) -> tuple[int, int]:
        """Let a table have its next contents back, as far as blocks are available.

        Return how many blocks are copied, and how many tokens the table holds more. Where a content is gone, the rest
        is given up.
        """
        num_taken = num_tokens = 0
        while table.pending and num_taken < max_blocks:
            item = table.pending[0]
            shared = item.node is not None and item.node.block_id is not None
            if not shared and item.stored.tier is not Tier.HOST:
                self.give_up(table)
                break
            if not shared and not self.pool.num_available:
                break
            table.pending.popleft()
            num_taken += not shared
            num_tokens += item.num_tokens
            self._restore(table, item)
        return num_taken, num_tokens

    def give_up(self, table: BlockTable) -> None:
        """Compute what is still pending instead."""
        for item in table.pending:
            self.spool.unpin(item.stored)
        table.pending.clear()

    def take_copies(self) -> tuple[tuple[SlotCopy, ...], tuple[SlotCopy, ...]]:
        """Return the stores and the restores of the run that is being composed."""
        last_stores = {copy.slot: copy for copy in self._stores}  # A slot may have got another content since.
        copies = tuple(last_stores.values()), tuple(self._restores)
        self._stores.clear()
        self._restores.clear()
        return copies

    @property
    def has_copies(self) -> bool:
        """Whether the run has restores, which somebody waits for."""
        return bool(self._restores)

    def settle(self) -> None:
        """Let go of the sources of restores: the run that copies them is complete."""
        for stored in self._read:
            self.spool.unpin(stored)
        self._read.clear()
        self._arriving.clear()

    def _restore(self, table: BlockTable, item: Restorable) -> None:
        node = item.node
        hangs_together = len(table.nodes) == len(table.block_ids)
        if node is not None and node.block_id is not None:
            self.spool.unpin(item.stored)
            self.pool.share(node.block_id)
            table.block_ids.append(node.block_id)
        else:
            block_id = self._copy_back(item)
            table.block_ids.append(block_id)
            if node is None or not hangs_together or self.index.of(node.serial) is not node:
                return
            self.index.place(node, block_id)
            self.pool.keep(block_id)
        if hangs_together:
            table.nodes.append(node.serial)

    def _copy_back(self, item: Restorable) -> int:
        assert item.stored.host is not None, "what is in host memory has a slot"
        block_id = self.pool.allocate()
        self._restores.append(SlotCopy(block_id=block_id, slot=item.stored.host, num_tokens=item.num_tokens))
        self._read.append(item.stored)
        self._arriving.add(block_id)
        self.num_restored += 1
        return block_id

    def _store_node(self, node: Node, block_id: int) -> bool:
        if self.is_worthwhile(Tier.HOST):
            node.stored = self._store(block_id, len(node.token_ids), node.serial)
        return node.stored is not None

    def _store(self, block_id: int, num_tokens: int, serial: int | None) -> Stored | None:
        stored = None if block_id in self._arriving else self.spool.store(serial)
        if stored is not None and stored.host is not None:
            self.num_stored += 1
            self._stores.append(SlotCopy(block_id=block_id, slot=stored.host, num_tokens=num_tokens))
        return stored

    def _on_lost(self, stored: Stored) -> None:
        node = self.index.of(stored.serial)
        if node is not None and node.stored is stored:
            node.stored = None
            if node.block_id is None:
                self.index.forget(node)
