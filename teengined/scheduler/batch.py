"""What goes into one step: every running sequence that decodes, then prompt chunks in the order of the policy."""

from collections.abc import Iterable

from teengined.core.errors import PluginError
from teengined.interfaces.policy import SchedulingPolicy
from teengined.protocol.worker_messages import SequenceStep
from teengined.scheduler.sequence import Sequence

__all__ = ["compose_step", "in_policy_order"]


def in_policy_order(policy: SchedulingPolicy, sequences: Iterable[Sequence], now_seconds: float) -> list[Sequence]:
    """Return the sequences in the order in which the policy serves them.

    Raises:
        PluginError: the policy raised, or its answer is no permutation of the ids it was given.
    """
    by_id = {sequence.submitted.sequence_id: sequence for sequence in sequences}
    try:
        order = list(policy.order([sequence.view() for sequence in by_id.values()], now_seconds))
        is_permutation = sorted(order) == sorted(by_id)
    except Exception as error:  # The edge: a stranger's code may raise anything.
        raise PluginError(f"scheduling policy {policy.name!r} failed: {error!r:.200}") from error
    if not is_permutation:
        raise PluginError(f"scheduling policy {policy.name!r} did not return a permutation of the sequences")
    return [by_id[sequence_id] for sequence_id in order]


def compose_step(ordered: Iterable[Sequence], max_step_tokens: int) -> tuple[SequenceStep, ...]:
    """Return the parts of one step, at most `max_step_tokens` tokens, and count them as computed.

    Decode goes first: one token each, so a long prompt never stops an answer that is being read. At least one token
    is left for prefill as long as there are fewer decoding sequences than `max_step_tokens`.
    """
    running = [sequence for sequence in ordered if sequence.running and not sequence.ended]
    decoding = [sequence for sequence in running if sequence.prefilled][:max_step_tokens]
    parts = [sequence.next_part(1) for sequence in decoding]
    budget = max_step_tokens - len(parts)
    for sequence in running:
        if budget > 0 and not sequence.prefilled:
            part = sequence.next_part(budget)
            budget -= len(part.token_ids)
            parts.append(part)
    return tuple(parts)
