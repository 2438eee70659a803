"""How a waiting sequence begins: with which KV that is there already, and whether there are blocks for the rest."""

from dataclasses import replace

from teengined.core.plan import Tier
from teengined.kvcache.kv_cache import Prefix
from teengined.scheduler.sequence import Sequence
from teengined.scheduler.state import State

__all__ = ["choose_beginning", "may_begin"]

# Part of the pool that is left for running sequences to grow into at most, when another begins.
_MARGIN_SHARE = 8


def may_begin(state: State) -> bool:
    """Whether it is worth to look at what waits."""
    return bool(state.waiting) and len(state.running) < state.limits.max_running and state.may_start


def choose_beginning(state: State, sequence: Sequence) -> Prefix | None:
    """Return what a waiting sequence begins with, or None while there are too few blocks for it.

    There must be blocks for all tokens it knows, beside those that the prompts being computed still need, and a margin
    for the answers to grow: what begins is not soon preempted, or it would have been computed in vain.
    """
    known = _worthwhile(state, sequence, _known_beginning(state, sequence))
    # A part of a block costs a copy, which may be the one block too many.
    for beginning in (known, state.cache.whole_blocks(known)):
        num_needed = state.cache.num_needed_after(beginning, sequence.num_tokens)
        if num_needed + _num_reserved(state) <= state.cache.pool.num_available:
            return beginning
    return None


def _known_beginning(state: State, sequence: Sequence) -> Prefix:
    """Return the longer of what another choice has computed and what the prefix cache has.

    The last token always runs, because its logits are wanted.
    """
    request = sequence.request
    source = request.source()
    can_fork = source is not None and state.cache.can_fork(source.table)
    forked = None if source is None or not can_fork else state.cache.fork(source.table, request.num_prompt_tokens - 1)
    if forked is not None and not sequence.emitted:
        return forked
    most = min(sequence.num_tokens - 1, request.max_cached_tokens)
    matched = state.cache.match(sequence.table, sequence.tokens, request.submitted.salt, most)
    return forked if forked is not None and forked.num_tokens >= matched.num_reached else matched


def _worthwhile(state: State, sequence: Sequence, known: Prefix) -> Prefix:
    """Return a beginning without what is computed sooner than restored."""
    tiers = [item.stored.tier or Tier.DISK for item in known.restorable]
    if not tiers:
        return known
    num_left, num_after = sequence.num_tokens - known.num_tokens, sequence.num_tokens - known.num_reached
    num_restored = state.costs.num_restored(tiers, num_left, num_after, known.num_tokens)
    return replace(known, restorable=known.restorable[:num_restored])


def _num_reserved(state: State) -> int:
    unfinished = sum(
        item.table.num_missing(item.num_tokens) for item in state.running.values() if item.num_remaining > 1
    )
    return unfinished + min(len(state.running), state.limits.num_blocks // _MARGIN_SHARE)
