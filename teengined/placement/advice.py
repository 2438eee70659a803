"""What would make a plan faster, found by planning again with a little more of each thing."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from teengined.core.errors import TeengineError
from teengined.core.plan import Objective, Plan
from teengined.core.quantities import format_bytes
from teengined.interfaces.policy import PlacementPolicy
from teengined.placement.inputs import PlanningInput
from teengined.placement.planner import plan

__all__ = ["suggestions"]

# Changes that gain less are noise beside the error of the prediction.
_LEAST_GAIN = 0.05
# Devices that are tried with more memory, those that stream most first: each costs a plan.
_MAX_DEVICES = 4


@dataclass(frozen=True, slots=True)
class _Change:
    words: str
    planning: PlanningInput


def suggestions(planning: PlanningInput, policy: PlacementPolicy, current: Plan, *, limit: int = 3) -> tuple[str, ...]:
    """Return at most `limit` changes that make `current` faster by its objective, the largest gain first.

    Plans again up to seven times.
    """
    gains: list[tuple[float, str]] = []
    for change in _changes(planning, current):
        try:
            better = plan(change.planning, policy)
        except TeengineError:  # a change that no plan survives is no suggestion
            continue
        gain = _seconds(current) / _seconds(better) - 1
        if gain >= _LEAST_GAIN:
            gains.append((gain, f"{change.words} -> {gain:+.0%} tokens/s"))
    return tuple(text for _, text in sorted(gains, key=lambda pair: -pair[0])[:limit])


def _seconds(found: Plan) -> float:
    return found.seconds_per_token if found.objective is Objective.LATENCY else found.period_seconds


def _changes(planning: PlanningInput, current: Plan) -> Iterator[_Change]:
    streaming = sorted((stage for stage in current.stages if stage.streamed_bytes), key=lambda s: -s.streamed_bytes)
    for stage in streaming[:_MAX_DEVICES]:
        more = _round_up(stage.streamed_bytes // 2)
        devices = tuple(
            replace(spec, memory_bytes=spec.memory_bytes + more) if spec.id == stage.device_id else spec
            for spec in planning.devices
        )
        yield _Change(f"+{format_bytes(more)} on {stage.device_id}", replace(planning, devices=devices))
    if streaming:
        disk = planning.host.disk_read_bytes_per_second
        host = replace(planning.host, disk_read_bytes_per_second=2 * disk)
        yield _Change(f"a disk of {format_bytes(2 * disk)}/s", replace(planning, host=host))
        half = planning.context_tokens // 2
        if half:
            yield _Change(f"a context of {half} tokens", replace(planning, context_tokens=half))
        if planning.num_slots > 1:
            slots = planning.num_slots // 2
            yield _Change(f"{slots} slots", replace(planning, num_slots=slots))


def _round_up(num_bytes: int) -> int:
    """Return the next number with two significant digits: nobody buys 137,439,232 bytes."""
    step = 10 ** max(0, len(str(num_bytes)) - 2)
    return -(-num_bytes // step) * step
