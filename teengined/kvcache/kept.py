"""Which contents on disk can outlive a deployment, and how another one of the same settings takes them over. Pure.

A kept block names its tokens and the block before it; the first of a chain names its salt. So what is taken over is
found by the same tokens after the same tokens of the same salt, and by nothing else. The bytes themselves are held to
their digests when they are read.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from teengined.kvcache.prefix import Node, PrefixIndex
from teengined.kvcache.spool import Spool, Stored

__all__ = ["MAX_KEPT_BLOCKS", "KeptBlock", "Snapshot", "snapshot", "take_over", "without_old"]

MAX_KEPT_BLOCKS = 1 << 14
"""Of one deployment: a quarter of a million tokens in blocks of 16. Noting them takes some 20 ms, and taking them over
once some 80 ms, in which nothing else happens in the daemon."""
NO_PARENT = -1
_Noted = tuple[int, int | bytes, tuple[int, ...], tuple[bytes, ...]]
"""Slot; place of the block before it, or the salt; tokens; digests."""
_MAX_DIGEST_BYTES = 64
_MAX_TOKEN_ID = (1 << 31) - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptBlock:
    """A full block on disk, and all it takes to find it."""

    slot: int
    parent: int = NO_PARENT
    """Place of the block before it among all that are kept together, lower than its own; -1: it begins a chain."""
    salt: bytes = b""
    """Of a chain, in its first block alone."""
    token_ids: tuple[int, ...]
    digests: tuple[bytes, ...]
    """Of the bytes on disk, by stage."""
    rank: int = 0
    """What was used later has a higher one."""
    written_unix_seconds: float = 0.0

    def __post_init__(self) -> None:
        """Refuse what cannot be.

        Raises:
            ValueError: a number is out of range, or a digest is none.
        """
        if self.slot < 0 or self.parent < NO_PARENT or self.rank < 0 or not self.written_unix_seconds >= 0:
            raise ValueError("slot, parent, rank or time of a kept block is out of range")
        if len(self.salt) > _MAX_DIGEST_BYTES or (self.parent != NO_PARENT and self.salt):
            raise ValueError("only the first block of a chain has a salt, of a digest's length")
        if not self.token_ids or not 0 <= min(self.token_ids) <= max(self.token_ids) <= _MAX_TOKEN_ID:
            raise ValueError("a kept block has no tokens, or one that is none")
        if not self.digests or not all(0 < len(digest) <= _MAX_DIGEST_BYTES for digest in self.digests):
            raise ValueError("a kept block lacks a digest")


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What was on disk at one moment. Only noted, which is quick; `blocks` may be asked for in any thread."""

    _noted: tuple[_Noted, ...]
    _slots_by_use: tuple[int, ...]

    def blocks(self) -> tuple[KeptBlock, ...]:
        """Return the blocks, parents first."""
        ranks = {slot: rank for rank, slot in enumerate(self._slots_by_use)}
        return tuple(
            KeptBlock(
                slot=slot,
                parent=NO_PARENT if isinstance(parent, bytes) else parent,
                salt=parent if isinstance(parent, bytes) else b"",
                token_ids=token_ids,
                digests=digests,
                rank=ranks.get(slot, len(ranks)),
            )
            for slot, parent, token_ids, digests in self._noted
        )


def snapshot(index: PrefixIndex, spool: Spool) -> Snapshot:
    """Note the blocks whose bytes are on disk together with those of every block before them."""
    places: dict[int, int] = {}
    noted: list[_Noted] = []
    for node in index.nodes():
        stored, parent = node.stored, node.parent
        if len(noted) == MAX_KEPT_BLOCKS:
            break
        if stored is None or stored.disk is None or not stored.digests or stored.is_writing or stored.is_dropped:
            continue
        before = parent if isinstance(parent, bytes) else places.get(parent)
        if before is not None:
            places[node.serial] = len(noted)
            noted.append((stored.disk, before, node.token_ids, stored.digests))
    return Snapshot(tuple(noted), tuple(spool.disk_slots_by_use()))


def without_old(blocks: Sequence[KeptBlock], now_seconds: float, max_age_seconds: float) -> tuple[KeptBlock, ...]:
    """Return the blocks whose time is no further away than that, in either direction, and which follow such alone."""
    places = {NO_PARENT: NO_PARENT}
    kept: list[KeptBlock] = []
    for place, block in enumerate(blocks):
        if abs(now_seconds - block.written_unix_seconds) <= max_age_seconds and block.parent in places:
            places[place] = len(kept)
            kept.append(replace(block, parent=places[block.parent]))
    return tuple(kept)


def take_over(index: PrefixIndex, spool: Spool, blocks: Sequence[KeptBlock]) -> int:
    """Make blocks known that an earlier deployment left on disk, before anything else is; return how many.

    One whose slot does not exist, or is another's too, is passed over, and so is what follows it.
    """
    slots = set[int]() if spool.num_disk else set(range(spool.num_disk_slots))
    found: dict[int, Node] = {}
    for place, block in enumerate(blocks):
        if block.slot in slots and (node := _insert(index, found, block)) is not None:
            slots.remove(block.slot)
            found[place] = node
            node.stored = Stored(disk=block.slot, serial=node.serial, digests=block.digests)
    by_use = sorted(found, key=lambda place: blocks[place].rank)
    spool.put_on_disk([stored for place in by_use if (stored := found[place].stored) is not None])
    return len(found)


def _insert(index: PrefixIndex, nodes: dict[int, Node], block: KeptBlock) -> Node | None:
    """Return the new node of a block, or None where there is one already or what is before it is not known."""
    before = nodes.get(block.parent)
    if before is None and block.parent != NO_PARENT:
        return None
    parent: int | bytes = block.salt if before is None else before.serial
    digest = index.digest(index.root(block.salt) if before is None else before.digest, block.token_ids)
    if index.has(digest):
        return None
    node, _ = index.insert(parent, digest, block.token_ids, None)
    return node
