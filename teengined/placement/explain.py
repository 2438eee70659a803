"""A plan in words: where everything lies, how fast it will be, how far from the best, and what binds. Pure."""

from collections.abc import Sequence

from teengined.core.plan import Objective, Plan, Stage
from teengined.core.quantities import format_bytes, format_seconds

__all__ = ["explain"]

_HEADERS = ("STAGE", "DEVICE", "LAYERS", "RESIDENT", "STREAMED/TOKEN", "KV", "COMPUTE", "DISK", "BINDING", "TIME")

_BINDING = {
    "compute": "arithmetic on {device}",
    "host": "copies from host memory to {device}",
    "disk": "reading streamed layers of {device} from disk",
    "hop": "passing activations on from {device}",
}


def explain(plan: Plan, *, model_bytes: int, suggestions: Sequence[str] = ()) -> tuple[str, ...]:
    """Return lines for a terminal.

    Args:
        plan: What to explain.
        model_bytes: Bytes of all units of the model.
        suggestions: Lines that say what would help, from `teengined.placement.advice`.
    """
    resident = sum(stage.resident_bytes for stage in plan.stages)
    planned = sum(stage.total_bytes for stage in plan.stages)
    return (
        f"{plan.model}: {format_bytes(model_bytes)}, {format_bytes(resident)} of it resident, "
        f"{format_bytes(plan.streamed_bytes_per_token)} streamed for each token; {format_bytes(planned)} of device "
        f"memory in all, for {plan.num_slots} x {plan.context_tokens} tokens",
        "",
        *_table([_HEADERS, *(_row(stage) for stage in plan.stages)]),
        *(_experts(stage) for stage in plan.stages if stage.experts is not None),
        "",
        *_speed(plan),
        _certainty(plan),
        _what_binds(plan),
        *(f"would help: {suggestion}" for suggestion in suggestions),
        *([f"not used: {', '.join(plan.unused_device_ids)}"] if plan.unused_device_ids else []),
        *(f"note: {note}" for note in plan.notes),
    )


def _row(stage: Stage) -> tuple[str, ...]:
    extras = ("embedding+" if stage.has_embedding else "", "+head" if stage.has_head else "")
    layers = f"{extras[0]}{stage.layer_start}–{stage.layer_end - 1}{extras[1]}"
    return (
        str(stage.index),
        stage.device_id,
        layers,
        format_bytes(stage.resident_bytes),
        format_bytes(stage.streamed_bytes) if stage.streamed_bytes else "-",
        format_bytes(stage.kv_bytes),
        format_seconds(stage.cost.compute_seconds),
        format_seconds(stage.cost.disk_seconds) if stage.cost.disk_seconds else "-",
        stage.cost.binding,
        format_seconds(stage.cost.seconds),
    )


def _experts(stage: Stage) -> str:
    experts = stage.experts
    assert experts is not None, "asked for stages that cache experts only"
    num_slots = sum(cache.num_slots for cache in experts.caches)
    num_experts = sum(cache.num_experts for cache in experts.caches)
    num_behind = sum(cache.num_host_slots for cache in experts.caches)
    behind = f" ({num_behind} more in host memory)" if num_behind else ""
    return (
        f"experts on {stage.device_id}: cache of {num_slots} of {num_experts}{behind}, "
        f"{format_bytes(experts.cache_bytes)}; expected hit rate {experts.hit_rate:.0%}, so that a token is expected "
        f"to read {format_bytes(experts.missed_bytes_per_token)} of its {format_bytes(experts.bytes_per_token)}"
    )


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _speed(plan: Plan) -> tuple[str, str]:
    prompt = min(512, plan.context_tokens)
    return (
        f"predicted: first token of a prompt of {prompt} after {format_seconds(plan.prefill_seconds)}, then "
        f"{_per_second(plan.seconds_per_token)} tokens/s ({format_seconds(plan.seconds_per_token)} each)",
        f"predicted with {len(plan.stages)} or more streams: {_per_second(plan.period_seconds)} tokens/s in all"
        if len(plan.stages) > 1
        else f"predicted with more streams: {_per_second(plan.period_seconds)} steps/s",
    )


def _per_second(seconds: float) -> str:
    return f"{1 / seconds:.3g}" if seconds else "unlimited"


def _certainty(plan: Plan) -> str:
    what = "time of a token" if plan.objective is Objective.LATENCY else "time between tokens"
    bound = format_seconds(plan.lower_bound_seconds)
    if not plan.gap:
        return f"lower bound: {bound} {what}; this plan reaches it, no plan on these devices is faster"
    return f"lower bound: {bound} {what}; this plan is within {plan.gap:.1%} of the best possible"


def _what_binds(plan: Plan) -> str:
    """Name the stage and the resource that take the most of a token's time."""
    slowest = max(plan.stages, key=lambda stage: stage.cost.seconds)
    share = slowest.cost.seconds / plan.seconds_per_token if plan.seconds_per_token else 0.0
    what = _BINDING[slowest.cost.binding].format(device=slowest.device_id)
    return f"binds: {what} ({share:.0%} of a token's time in stage {slowest.index})"
