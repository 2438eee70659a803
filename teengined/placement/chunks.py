"""How many prompt tokens a step may carry where experts are streamed: a chunk reads each expert once. Pure."""

from dataclasses import replace

from teengined.core.errors import TeengineError
from teengined.core.plan import Plan
from teengined.interfaces.policy import PlacementPolicy
from teengined.placement.inputs import PlanningInput
from teengined.placement.planner import plan

__all__ = ["plan_with_chunks"]

# The workspace of a larger chunk is taken from the cache: so much slower may a token be for it.
_MOST_LOSS = 1.05


def plan_with_chunks(
    planning: PlanningInput, policy: PlacementPolicy, expert_step_tokens: int
) -> tuple[Plan, PlanningInput]:
    """Return a plan and the input that it is for, whose `max_step_tokens` is raised where experts are streamed.

    A chunk of a few hundred tokens goes to nearly all experts already, so a larger one reads no more, and there are
    fewer of them. It is taken up to `expert_step_tokens`, as far as its memory costs a single token little.

    Raises:
        TeengineError: as `plan`.
    """
    found = plan(planning, policy)
    if not any(stage.experts is not None for stage in found.stages):
        return found, planning
    num_tokens = min(expert_step_tokens, planning.context_tokens)
    while num_tokens > planning.max_step_tokens:
        larger = replace(planning, max_step_tokens=num_tokens)
        try:
            other = plan(larger, policy)
        except TeengineError:  # It leaves no room for the cache.
            num_tokens //= 2
            continue
        if other.seconds_per_token <= _MOST_LOSS * found.seconds_per_token:
            return other, larger
        num_tokens //= 2
    return found, planning
