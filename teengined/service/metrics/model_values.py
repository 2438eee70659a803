"""The gauges, counters and histograms that each loaded model has: names, meanings, and where each is read."""

from collections.abc import Callable
from dataclasses import dataclass

from teengined.protocol.loading_messages import ExpertFigures
from teengined.protocol.messages import Deployment
from teengined.service.metrics.histogram import Histogram
from teengined.service.metrics.model_meter import ModelMeter, StageTotals

__all__ = ["SPREADS", "STAGE_SUMS", "VALUES", "ModelReading", "Spread", "StageSum", "Value"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelReading:
    """One model, now."""

    deployment: Deployment
    meter: ModelMeter


@dataclass(frozen=True, slots=True)
class Value:
    """A gauge or counter of a model."""

    name: str
    help: str
    read: Callable[[ModelReading], float]
    unit: str = ""
    is_counter: bool = False


@dataclass(frozen=True, slots=True)
class Spread:
    """A histogram of a model."""

    name: str
    help: str
    read: Callable[[ModelMeter], Histogram]
    unit: str = ""


@dataclass(frozen=True, slots=True)
class StageSum:
    """A counter of each stage."""

    name: str
    help: str
    read: Callable[[StageTotals], float]
    unit: str


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole > 0 else 0.0


def _of_experts(read: Callable[[ExpertFigures], float]) -> Callable[[ModelReading], float]:
    """Return a reading of the expert caches; 0 where a model has none."""
    return lambda item: 0.0 if item.deployment.experts is None else read(item.deployment.experts)


VALUES = (
    Value("teengine_requests_running", "Sequences that hold KV.", lambda item: item.deployment.num_running),
    Value("teengine_requests_waiting", "Sequences that wait for KV.", lambda item: item.deployment.num_queued),
    Value(
        "teengine_waiting_tokens",
        "Prompt tokens of sequences that wait.",
        lambda item: item.deployment.num_queued_tokens,
        "tokens",
    ),
    Value(
        "teengine_prompt_tokens",
        "Tokens of prompts that began to run, cached ones among them.",
        lambda item: item.meter.num_prompt_tokens,
        "tokens",
        is_counter=True,
    ),
    Value(
        "teengine_cached_prompt_tokens",
        "Tokens of prompts that the prefix cache had.",
        lambda item: item.meter.num_cached_tokens,
        "tokens",
        is_counter=True,
    ),
    Value(
        "teengine_generation_tokens",
        "Tokens drawn.",
        lambda item: item.meter.num_generated_tokens,
        "tokens",
        is_counter=True,
    ),
    Value(
        "teengine_generation_tokens_per_second",
        "Tokens of all answers together, over the last seconds.",
        lambda item: item.deployment.total_tokens_per_second,
    ),
    Value(
        "teengine_answer_tokens_per_second",
        "Tokens of one answer: a running mean over those that ended.",
        lambda item: item.deployment.tokens_per_second,
    ),
    Value(
        "teengine_bound_tokens_per_second",
        "Tokens of one answer, where only the resource that binds takes time.",
        lambda item: item.deployment.bound_tokens_per_second,
    ),
    Value(
        "teengine_bound_share_ratio",
        "How near answers come to that bound; 0 before the first.",
        lambda item: _ratio(item.deployment.tokens_per_second, item.deployment.bound_tokens_per_second),
        "ratio",
    ),
    Value("teengine_kv_blocks", "Blocks of KV.", lambda item: item.deployment.num_blocks),
    Value("teengine_kv_blocks_used", "Blocks that sequences hold.", lambda item: item.deployment.num_used_blocks),
    Value(
        "teengine_kv_blocks_cached",
        "Blocks that only the prefix cache holds.",
        lambda item: item.deployment.num_cached_blocks,
    ),
    Value(
        "teengine_kv_cache_usage_ratio",
        "Share of the blocks that sequences hold.",
        lambda item: _ratio(item.deployment.num_used_blocks, item.deployment.num_blocks),
        "ratio",
    ),
    Value(
        "teengine_preemptions",
        "Sequences that had to give up their KV.",
        lambda item: item.deployment.num_preempted,
        is_counter=True,
    ),
    Value(
        "teengine_expert_hit_ratio",
        "Share of the routed experts asked for that were cached; 0 where none is streamed.",
        _of_experts(lambda experts: experts.hit_rate),
        "ratio",
    ),
    Value(
        "teengine_expert_best_hit_ratio",
        "The same of a cache that knows the future.",
        _of_experts(lambda experts: experts.best_hit_rate),
        "ratio",
    ),
    Value(
        "teengine_expert_guessed_ratio",
        "Share of the experts asked for and not cached whose reads had begun on a guess.",
        _of_experts(lambda experts: experts.guessed_rate),
        "ratio",
    ),
    Value(
        "teengine_expert_guess_right_ratio",
        "Share of the guessed experts that were asked for.",
        _of_experts(lambda experts: experts.guess_right_rate),
        "ratio",
    ),
)

SPREADS = (
    Spread(
        "teengine_request_queue_time_seconds",
        "From admission to the first step.",
        lambda meter: meter.queue_seconds,
        "seconds",
    ),
    Spread(
        "teengine_time_to_first_token_seconds",
        "From admission to the first token.",
        lambda meter: meter.first_token_seconds,
        "seconds",
    ),
    Spread(
        "teengine_inter_token_latency_seconds",
        "Between the moments at which tokens of a sequence came.",
        lambda meter: meter.inter_token_seconds,
        "seconds",
    ),
    Spread(
        "teengine_step_duration_seconds",
        "Time that the slowest stage worked on a step.",
        lambda meter: meter.step_seconds,
        "seconds",
    ),
    Spread("teengine_step_tokens", "Rows of a step.", lambda meter: meter.step_rows, "tokens"),
    Spread("teengine_step_sequences", "Sequences in a step.", lambda meter: meter.step_sequences),
)

STAGE_SUMS = (
    StageSum("teengine_stage_busy_seconds", "Time with a step.", lambda stage: stage.busy_seconds, "seconds"),
    StageSum("teengine_stage_compute_seconds", "Time of arithmetic.", lambda stage: stage.compute_seconds, "seconds"),
    StageSum(
        "teengine_stage_stall_seconds",
        "Time of waiting for streamed weights.",
        lambda stage: stage.stall_seconds,
        "seconds",
    ),
    StageSum("teengine_stage_streamed_bytes", "Weights moved for steps.", lambda stage: stage.streamed_bytes, "bytes"),
)
