"""Whether a request is taken. Decided at once, on tokens, before any work; what is taken is never shed."""

from dataclasses import dataclass

from teengined.core.errors import ContextTooLong, QueueFull, QuotaExceeded, RequestError
from teengined.core.request import Goal
from teengined.scheduler.events import Submitted
from teengined.scheduler.sequence import num_kept_tokens, num_promised_blocks
from teengined.scheduler.state import State

__all__ = ["check_admission", "check_room", "num_queued_tokens"]


def num_queued_tokens(submitted: Submitted, choice: int) -> int:
    """Return how many tokens a choice has to prefill: the first all of the prompt, the others its last token."""
    return len(submitted.prompt) if choice == 0 or submitted.goal is not Goal.GENERATE else 1


def check_admission(state: State, submitted: Submitted, *, ready: bool) -> None:
    """Refuse a request that can never run, or for which there is no room now. Changes nothing.

    Raises:
        RequestError: the prompt is empty, or it has more choices than the queue has places.
        ContextTooLong: it needs more blocks than there are.
        QueueFull: too much waits.
        QuotaExceeded: too much of the same owner waits.
    """
    _check_possible(state, submitted)
    wanted = _Wanted(
        owner=submitted.owner,
        num_sequences=len(submitted.sequence_ids),
        num_tokens=_num_tokens(submitted),
        num_blocks=len(submitted.sequence_ids) * num_promised_blocks(submitted, state.limits.block_tokens),
    )
    _check_places(state, wanted, ready=ready)


def check_room(state: State, owner: str, num_choices: int, *, ready: bool) -> None:
    """Refuse a request whose prompt is not known yet, where it would be refused with any prompt.

    Raises:
        RequestError: it has more choices than the queue has places.
        QueueFull: too much waits.
        QuotaExceeded: too much of the same owner waits.
    """
    _check_choices(state, num_choices)
    _check_places(
        state, _Wanted(owner=owner, num_sequences=num_choices, num_tokens=1, num_blocks=num_choices), ready=ready
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Wanted:
    """What a request would add to what waits."""

    owner: str
    num_sequences: int
    num_tokens: int
    num_blocks: int
    """All that it may come to need."""


def _check_places(state: State, wanted: _Wanted, *, ready: bool) -> None:
    num_free = max(0, state.limits.max_running - len(state.running)) if ready else 0
    _check_owner(state, wanted, num_free)
    _check_queue(state, wanted, num_free)
    _check_promised(state, wanted)


def _check_promised(state: State, wanted: _Wanted) -> None:
    """Keep what was promised to all within its bound; one request alone may always have its own."""
    limits, num_promised = state.limits, state.num_promised_blocks
    num_excess = num_promised + wanted.num_blocks - limits.max_promised_blocks
    if not limits.max_promised_blocks or not num_promised or num_excess <= 0:
        return
    num_ends = -(-num_excess * len(state.sequences) // num_promised)  # Of sequences of the mean size.
    raise QueueFull(
        f"{num_promised} blocks of KV are promised already, and this needs {wanted.num_blocks}; "
        f"the limit is {limits.max_promised_blocks}",
        hint="try again later, ask for fewer tokens, or raise limits.max_promised_kv",
        retry_after_seconds=state.drain.seconds_for(num_ends, 0),
    )


def _check_possible(state: State, submitted: Submitted) -> None:
    limits = state.limits
    num_choices, length = len(submitted.sequence_ids), len(submitted.prompt)
    if not length:
        raise RequestError("the prompt has no tokens", hint="send at least one")
    _check_choices(state, num_choices)
    if num_promised_blocks(submitted, limits.block_tokens) > limits.num_blocks:
        num_kept = num_kept_tokens(submitted)
        raise ContextTooLong(
            f"prompt and answer may take {num_kept} tokens; the KV of this deployment has room for "
            f"{limits.num_blocks * limits.block_tokens}",
            hint="shorten the prompt, or ask for fewer tokens",
        )


def _check_choices(state: State, num_choices: int) -> None:
    limits = state.limits
    if num_choices > limits.max_running + min(limits.max_waiting, limits.max_owner_waiting):
        raise RequestError(f"{num_choices} choices are more than can ever wait here", hint="ask for fewer at a time")


def _num_tokens(submitted: Submitted) -> int:
    return sum(num_queued_tokens(submitted, choice) for choice in range(len(submitted.sequence_ids)))


def _check_queue(state: State, wanted: _Wanted, num_free: int) -> None:
    limits = state.limits
    num_excess = len(state.waiting) + wanted.num_sequences - limits.max_waiting - num_free
    num_tokens = state.num_waiting_tokens
    num_excess_tokens = num_tokens + wanted.num_tokens - limits.max_waiting_tokens if num_tokens else 0
    if num_excess <= 0 and num_excess_tokens <= 0:
        return
    full = (
        f"{len(state.waiting)} sequences wait already; the limit is {limits.max_waiting}"
        if num_excess > 0
        else f"{num_tokens} prompt tokens wait already; the limit is {limits.max_waiting_tokens}"
    )
    name = "max_waiting" if num_excess > 0 else "max_waiting_tokens"
    raise QueueFull(
        full,
        hint=f"try again later, or raise limits.{name}",
        retry_after_seconds=state.drain.seconds_for(num_excess, num_excess_tokens),
    )


def _check_owner(state: State, wanted: _Wanted, num_free: int) -> None:
    limits, owner = state.limits, state.owners[wanted.owner]
    num_excess = owner.num_waiting + wanted.num_sequences - limits.max_owner_waiting - num_free
    num_tokens = owner.num_waiting_tokens
    num_excess_tokens = num_tokens + wanted.num_tokens - limits.max_owner_waiting_tokens if num_tokens else 0
    if num_excess <= 0 and num_excess_tokens <= 0:
        return
    full = (
        f"{owner.num_waiting} sequences of {wanted.owner!r} wait already; the limit is {limits.max_owner_waiting}"
        if num_excess > 0
        else f"{num_tokens} prompt tokens of {wanted.owner!r} wait already; the limit is "
        f"{limits.max_owner_waiting_tokens}"
    )
    share = max(1, state.owners.num_active)  # Others' sequences leave in between.
    raise QuotaExceeded(
        full,
        hint="wait for answers before asking for more",
        retry_after_seconds=state.drain.seconds_for(num_excess * share, num_excess_tokens * share),
    )
