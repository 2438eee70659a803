"""Slots below the device: which contents lie in host memory and on disk, and what is to move between them. Pure.

    device ──store──> host slot ──(write)──> host and disk slot ──(host slot wanted)──> disk slot
       ^                  │  ^                                                              │
       └──(restore)───────┘  └─────────────────────────(fetch)──────────────────────────────┘

Stores and restores are part of a step and done when the steps after it run. Writes and fetches go on beside the steps
and are done when every stage has said so. What is here may be lost at any time but while it is pinned: it is computed
again then.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from teengined.core.plan import Tier

__all__ = ["SlotMove", "Spool", "Stored"]

# Part of the host slots that can be had without losing anything: a burst of evictions finds room, and the disk has its
# time to take what must go there.
_RESERVE_SHARE = 4
# Moves under way: enough to keep the disk of every stage at work, few enough that a fetch is not far behind.
_MAX_MOVES = 64


@dataclass(slots=True, kw_only=True, eq=False)
class Stored:
    """The content of one block, below the device. Who made it may hold on to it; whether it is still there is asked."""

    host: int | None = None
    disk: int | None = None
    serial: int | None = None
    """Of its node in the prefix index; None: it is one waiting sequence's own."""
    digests: tuple[bytes, ...] = ()
    """Of the bytes on disk, by stage."""
    num_pins: int = 0
    """Holders that are about to restore it."""
    is_writing: bool = False
    is_fetching: bool = False
    is_dropped: bool = False
    is_written: bool = False
    """It was on disk and gave way there to what was used later: it is not written again."""

    @property
    def is_busy(self) -> bool:
        """Whether its slots must stay as they are."""
        return self.num_pins > 0 or self.is_writing or self.is_fetching

    @property
    def tier(self) -> Tier | None:
        """Where it can be had from now; None: nowhere."""
        if self.host is not None and not self.is_fetching:
            return Tier.HOST
        return Tier.DISK if self.disk is not None and not self.is_writing else None


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotMove:
    """Bytes to copy between a host slot and a disk slot, on every stage."""

    host: int
    disk: int
    to_disk: bool
    digests: tuple[bytes, ...] = ()
    """What the bytes on disk must be, by stage; of a finished write what they are."""


@dataclass(slots=True, kw_only=True, eq=False)
class Spool:
    """Accounts for the slots. Every operation takes constant time, or time for each slot that it moves."""

    num_host_slots: int
    num_disk_slots: int
    on_lost: Callable[[Stored], None] = lambda stored: None
    """Hears of content that gave way to other content or went wrong."""
    write_early: bool = False
    """Write everything as soon as it can be, not only what may have to go: what is on disk outlives the stages."""
    outlives: bool = False
    """What is on disk is there for the next deployment: everything is to get there, and is written early."""
    num_lost: int = 0
    """Contents that nobody can have any more, since the beginning."""
    num_written: int = 0
    num_fetched: int = 0
    num_failed: int = 0
    """Moves that went wrong."""
    may_write: bool = True
    """False while the disk is not to be tried, because it is full or broken."""
    _free_host: list[int] = field(init=False)
    _free_disk: list[int] = field(init=False)
    _dirty: OrderedDict[int, Stored] = field(default_factory=OrderedDict[int, Stored])
    """Only in host memory, by slot, least recently used first. As the next three without those that are busy."""
    _clean: OrderedDict[int, Stored] = field(default_factory=OrderedDict[int, Stored])
    """In host memory and on disk, by host slot."""
    _settled: OrderedDict[int, Stored] = field(default_factory=OrderedDict[int, Stored])
    """Only in host memory, by slot, and not to be written again."""
    _below: OrderedDict[int, Stored] = field(default_factory=OrderedDict[int, Stored])
    """Only on disk, by disk slot."""
    _moving: dict[tuple[int, int], Stored] = field(default_factory=dict[tuple[int, int], Stored])
    _ordered: list[SlotMove] = field(default_factory=list[SlotMove])
    """Moves that are to be told with the next run."""

    def __post_init__(self) -> None:
        """Begin empty."""
        self._free_host = list(range(self.num_host_slots - 1, -1, -1))
        self._free_disk = list(range(self.num_disk_slots - 1, -1, -1))
        self.write_early |= self.outlives

    @property
    def has_spare_host(self) -> bool:
        """Whether something can be stored without losing what is still to be written."""
        return bool(self._free_host or self._clean or self._settled)

    @property
    def num_host(self) -> int:
        """Host slots in use."""
        return self.num_host_slots - len(self._free_host)

    @property
    def num_disk(self) -> int:
        """Disk slots in use."""
        return self.num_disk_slots - len(self._free_disk)

    @property
    def num_moving(self) -> int:
        """Writes and fetches under way."""
        return len(self._moving)

    def store(self, serial: int | None = None) -> Stored | None:
        """Return a place in host memory for a block's content, or None where there is none now.

        What was used least of late gives way: a copy of what is on disk first, then what is nowhere else.
        """
        slot = self._take_host()
        if slot is None:
            self.num_lost += 1
            return None
        stored = Stored(host=slot, serial=serial)
        self._file(stored)
        return stored

    def disk_slots_by_use(self) -> Iterable[int]:
        """Return the disk slots that nobody uses now, least recently used first."""
        yield from self._below
        yield from (stored.disk for stored in self._clean.values() if stored.disk is not None)

    def put_on_disk(self, contents: Sequence[Stored]) -> None:
        """Take in what lies in disk slots that are free, each in its own, least recently used first."""
        taken = {stored.disk for stored in contents}
        self._free_disk = [slot for slot in self._free_disk if slot not in taken]
        for stored in contents:
            self._file(stored)

    def touch(self, stored: Stored) -> None:
        """Count it as used now."""
        self._unfile(stored)
        self._file(stored)

    def pin(self, stored: Stored) -> None:
        """Keep it until as many calls of `unpin`."""
        self._unfile(stored)
        stored.num_pins += 1

    def unpin(self, stored: Stored) -> None:
        """Undo one `pin`; it counts as used now."""
        stored.num_pins -= 1
        self._file(stored)

    def drop(self, stored: Stored) -> None:
        """Forget it; slots that are busy are free when they are not any more. Nobody is told."""
        if not stored.is_dropped:
            self._unfile(stored)
            stored.is_dropped = True
            self._file(stored)

    def fetch(self, stored: Stored) -> bool:
        """Have it brought from disk to host memory; False where there is no room for it or the way is full."""
        if stored.is_fetching or stored.host is not None:
            return True
        if stored.disk is None or stored.is_dropped or len(self._moving) >= _MAX_MOVES:
            return False
        stored.num_pins += 1  # Its own disk slot must not give way to what the host slot held.
        self._below.pop(stored.disk, None)
        stored.host = self._take_host()
        stored.num_pins -= 1
        if stored.host is None:
            self._file(stored)
            return False
        stored.is_fetching = True
        self._order(stored, to_disk=False)
        return True

    def take_moves(self, *, writes: bool = True) -> tuple[SlotMove, ...]:
        """Return the moves that the next run tells; `writes` begin here where too few host slots could be had."""
        if writes:
            self._begin_writes()
        moves = tuple(self._ordered)
        self._ordered.clear()
        return moves

    @property
    def has_orders(self) -> bool:
        """Whether a fetch waits for the next run."""
        return bool(self._ordered)

    def settle(self, move: SlotMove, *, succeeded: bool) -> None:
        """Take in how a move ended, the same on every stage or failed; one that is not known is passed over."""
        stored = self._moving.pop((move.host, move.disk), None)
        if stored is None:
            return
        stored.is_writing = stored.is_fetching = False
        self.num_failed += not succeeded
        if move.to_disk:
            self._end_write(stored, move, succeeded=succeeded)
        elif succeeded:
            self.num_fetched += 1
        else:
            self._lose(stored)
            self._free(stored)  # Also where it is pinned: nobody may restore it.
        self._file(stored)

    def lose_host(self, *, and_disk: bool = False) -> None:
        """Forget what is in host memory and every move under way: the stages are gone. What is on disk stays.

        With `and_disk` it is forgotten too: those who come after the stages would compute something else.
        """
        known = (*self._dirty.values(), *self._settled.values(), *self._clean.values(), *self._moving.values())
        for stored in known:
            if stored.is_writing and stored.disk is not None:
                self._free_disk.append(stored.disk)
                stored.disk = None
            stored.host, stored.is_writing, stored.is_fetching = None, False, False
        lost = [stored for stored in known if stored.disk is None]
        kept = [stored for stored in known if stored.disk is not None]
        self._free_host = list(range(self.num_host_slots - 1, -1, -1))
        for table in (self._dirty, self._settled, self._clean, self._moving, self._ordered):
            table.clear()
        for stored in lost:
            self._lose(stored)
        for stored in kept:
            self._file(stored)
        if and_disk:
            self._lose_disk()

    def _lose_disk(self) -> None:
        for stored in tuple(self._below.values()):
            self.pin(stored)
            self._lose(stored)
            self.unpin(stored)

    def _end_write(self, stored: Stored, move: SlotMove, *, succeeded: bool) -> None:
        if succeeded:
            self.num_written += 1
            stored.digests = move.digests
        elif stored.disk is not None:
            self._free_disk.append(stored.disk)
            stored.disk = None

    def _lose(self, stored: Stored) -> None:
        if not stored.is_dropped:
            self.num_lost += 1
            stored.is_dropped = True
            self.on_lost(stored)

    def _take_host(self) -> int | None:
        """Return a host slot that holds nothing any more."""
        if self._free_host:
            return self._free_host.pop()
        if self._clean:
            slot, stored = self._clean.popitem(last=False)
            stored.host = None
            self._file(stored)
            return slot
        table = self._settled or self._dirty
        if table:
            slot, stored = table.popitem(last=False)
            stored.host = None
            self._lose(stored)
            return slot
        return None

    def _take_disk(self) -> int | None:
        if self._free_disk:
            return self._free_disk.pop()
        if self._below:
            slot, stored = self._below.popitem(last=False)
            stored.disk = None
            self._lose(stored)
            return slot
        return self._take_copy() if self.write_early else None

    def _take_copy(self) -> int | None:
        """Return the disk slot of what is in host memory too: what outlives the stages is what was used last."""
        if not self._clean:
            return None
        _, stored = self._clean.popitem(last=False)
        slot, stored.disk, stored.is_written = stored.disk, None, True
        self._file(stored)
        return slot

    def _begin_writes(self) -> None:
        """Write what was used least of late, until enough host slots could be had without losing anything."""
        if not self.may_write or not self.num_disk_slots:
            return
        reserve = self.num_host_slots if self.write_early else self.num_host_slots // _RESERVE_SHARE
        num_writing = sum(stored.is_writing for stored in self._moving.values())
        while self._dirty and len(self._moving) < _MAX_MOVES:
            if len(self._free_host) + len(self._clean) + num_writing >= reserve and not self.write_early:
                return
            disk = self._take_disk()
            if disk is None:
                return
            _, stored = self._dirty.popitem(last=False)
            stored.disk, stored.is_writing = disk, True
            self._order(stored, to_disk=True)
            num_writing += 1

    def _order(self, stored: Stored, *, to_disk: bool) -> None:
        assert stored.host is not None, "a move needs both slots"
        assert stored.disk is not None, "a move needs both slots"
        self._moving[stored.host, stored.disk] = stored
        self._ordered.append(
            SlotMove(host=stored.host, disk=stored.disk, to_disk=to_disk, digests=() if to_disk else stored.digests)
        )

    def _unfile(self, stored: Stored) -> None:
        """Take it out of what may give way."""
        if stored.host is not None:
            self._dirty.pop(stored.host, None)
            self._clean.pop(stored.host, None)
            self._settled.pop(stored.host, None)
        if stored.disk is not None and self._below.get(stored.disk) is stored:
            del self._below[stored.disk]

    def _file(self, stored: Stored) -> None:
        """Put it where it stands among what may give way, as used last; or free its slots, if it is dropped."""
        if stored.is_busy:
            return
        if stored.is_dropped:
            self._free(stored)
        elif stored.host is not None:
            fresh = self._settled if stored.is_written else self._dirty
            (fresh if stored.disk is None else self._clean)[stored.host] = stored
        elif stored.disk is not None:
            self._below[stored.disk] = stored

    def _free(self, stored: Stored) -> None:
        if stored.host is not None:
            self._free_host.append(stored.host)
        if stored.disk is not None:
            self._free_disk.append(stored.disk)
        stored.host = stored.disk = None
