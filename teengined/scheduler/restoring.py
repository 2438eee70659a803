"""Bringing back what lies below the device: fetches that a waiting sequence waits for, and what a run tells of it."""

from collections.abc import Iterable
from dataclasses import dataclass

from teengined.core.plan import Tier
from teengined.kvcache import spool
from teengined.kvcache import tiers as kv_tiers
from teengined.kvcache.kv_cache import Prefix
from teengined.protocol.worker_messages import SlotCopy, SlotMove
from teengined.scheduler.events import SpoolReported
from teengined.scheduler.limits import SpoolLimits
from teengined.scheduler.sequence import Fetch, Sequence
from teengined.scheduler.state import State

__all__ = ["Transfers", "begin_fetch", "brings_back", "checkpoint", "is_fetching", "settle_moves", "take_transfers"]

# A disk that is full or broken is left alone for so long: long enough to cost nothing, short enough to come back.
_WRITE_PAUSE_SECONDS = 10.0
# A fetch is given so long at least: what was predicted of the first one may be far off.
_LEAST_FETCH_SECONDS = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Transfers:
    """What a run copies and moves besides its parts."""

    spooled: tuple[SlotCopy, ...]
    restored: tuple[SlotCopy, ...]
    moves: tuple[SlotMove, ...]


def begin_fetch(state: State, sequence: Sequence, beginning: Prefix, now_seconds: float) -> bool:
    """Have what a waiting sequence would begin with brought from disk; False where there is nothing to wait for.

    It is waited for once. What cannot be fetched, and what follows it, is computed.
    """
    if sequence.fetch is not None:
        return False
    on_disk = [item for item in beginning.restorable if item.stored.tier is Tier.DISK]
    if not on_disk:
        return False
    fetch = sequence.fetch = Fetch(stored=[], deadline_seconds=now_seconds)
    for item in beginning.restorable:
        if not state.spool.fetch(item.stored):
            break
        state.spool.pin(item.stored)
        fetch.stored.append(item.stored)
    num_tokens = sum(item.num_tokens for item in beginning.restorable[: len(fetch.stored)])
    computing_seconds = state.costs.compute_seconds(num_tokens, beginning.num_tokens)
    fetch.deadline_seconds += max(_LEAST_FETCH_SECONDS, computing_seconds)
    return is_fetching(state, sequence, now_seconds)


def is_fetching(state: State, sequence: Sequence, now_seconds: float) -> bool:
    """Whether a sequence still waits for what it has asked for: at most as long as computing it would take."""
    fetch = sequence.fetch
    if fetch is None or not fetch.stored:
        return False
    if now_seconds < fetch.deadline_seconds and any(stored.is_fetching for stored in fetch.stored):
        return True
    state.end_fetch(sequence)
    return False


def checkpoint(state: State, sequences: Iterable[Sequence], max_blocks: int, now_seconds: float) -> None:
    """Copy the known blocks of sequences whose last time is long ago, so many blocks at most.

    They are written to disk as soon as can be, and outlive the stages there.
    """
    limits = state.limits.spool
    for sequence in sequences if limits.has_checkpoints else ():
        if not _is_due(sequence, limits, now_seconds):
            continue
        max_blocks -= state.cache.tiers.checkpoint(sequence.table, max_blocks)
        if max_blocks <= 0:
            return  # The rest is for the next step.
        sequence.num_checkpointed, sequence.checkpointed_seconds = sequence.num_computed, now_seconds


def _is_due(sequence: Sequence, limits: SpoolLimits, now_seconds: float) -> bool:
    """Whether a running sequence has computed enough since its last checkpoint, or that is long enough ago."""
    has_come_far = 0 < limits.checkpoint_tokens <= sequence.num_computed - sequence.num_checkpointed
    return has_come_far or 0 < limits.checkpoint_seconds <= now_seconds - sequence.checkpointed_seconds


def brings_back(state: State) -> bool:
    """Whether somebody waits for a run, be it without parts."""
    return state.cache.tiers.has_copies or state.spool.has_orders


def take_transfers(state: State, step: int) -> Transfers:
    """Return what the run of this number copies and moves."""
    stores, restores = state.cache.tiers.take_copies()
    state.copies[step] = len(stores) + len(restores)
    return Transfers(
        spooled=tuple(map(_copy, stores)),
        restored=tuple(map(_copy, restores)),
        moves=tuple(
            SlotMove(host=move.host, disk=move.disk, to_disk=move.to_disk, digests=move.digests)
            for move in state.spool.take_moves(writes=state.costs.is_worthwhile(Tier.DISK))
        ),
    )


def _copy(copy: kv_tiers.SlotCopy) -> SlotCopy:
    return SlotCopy(block=copy.block_id, slot=copy.slot, num_tokens=copy.num_tokens)


def settle_moves(state: State, event: SpoolReported, now_seconds: float) -> None:
    """Take in which moves are over. After a failed write the disk is left alone for a while."""
    for move in event.done:
        state.spool.settle(_move(move), succeeded=True)
    for move in event.failed:
        state.spool.settle(_move(move), succeeded=False)
        if move.to_disk:
            state.spool.may_write, state.write_again_seconds = False, now_seconds + _WRITE_PAUSE_SECONDS
    num_fetched = sum(not move.to_disk for move in event.done)
    state.costs.learn_blocks(Tier.DISK, num_fetched, event.fetch_seconds)
    state.may_start = True


def _move(move: SlotMove) -> spool.SlotMove:
    return spool.SlotMove(host=move.host, disk=move.disk, to_disk=move.to_disk, digests=move.digests)
