"""The one way in: from what is known of a model and its devices to a plan with its predicted speed and its bound."""

from collections.abc import Sequence

from teengined.core.errors import ConfigError, ContextTooLong, PluginError, RequestError, TeengineError
from teengined.core.plan import Objective, Plan, Stage, Tier
from teengined.core.quantities import format_bytes
from teengined.interfaces.policy import Assignment, PlacementPolicy, PlacementProblem
from teengined.placement.costs import CostModel, cost_model_of
from teengined.placement.inputs import PlanningInput

__all__ = ["PREFILL_TOKENS", "plan"]

# The prompt whose time to first token a plan predicts.
PREFILL_TOKENS = 512

_FORCED = "forced"
# A gap below this is the rounding of sums.
_NO_GAP = 1e-9


def plan(planning: PlanningInput, policy: PlacementPolicy) -> Plan:
    """Return a plan for `planning`, cut into stages by `policy` (or by `planning.assignment`).

    Raises:
        ContextTooLong: the model cannot use such a context; both numbers are told.
        DoesNotFit: no plan exists, or the policy's (or the dictated) stages do not fit; says what would.
        ConfigError: no device, or one that was not measured.
        RequestError: the dictated stages do not cover every layer once.
        PluginError: the same of the policy's.
        PackageError: the manifest lacks units.
    """
    # numpy loads when the first plan is made, not when a daemon starts.
    from teengined.placement.problem import DeploymentProblem
    from teengined.placement.shortage import stage_shortage
    from teengined.placement.stages import build_stages

    _check(planning)
    model = cost_model_of(planning)
    problem = DeploymentProblem(model)
    bound = problem.lower_bound_seconds
    assignment = planning.assignment or _place(policy, problem)
    fault = _fault_of(assignment, num_layers=model.num_layers, num_devices=len(planning.devices))
    if fault and planning.assignment:
        raise RequestError(f"the stages that were asked for {fault}", hint="name each device once, with its layers")
    if fault:
        raise PluginError(f"placement policy {policy.name} gave stages that {fault}", hint="use the policy `optimal`")
    stages = build_stages(model, assignment)
    if stages is None:
        unfit = next(stage for stage in assignment if build_stages(model, [stage]) is None)
        raise stage_shortage(model, unfit, "the request" if planning.assignment else f"policy {policy.name}")
    name = _FORCED if planning.assignment else policy.name
    return _finish(model, stages, name=name, bound=bound, proven=problem.is_exact)


def _place(policy: PlacementPolicy, problem: PlacementProblem) -> tuple[Assignment, ...]:
    try:
        return policy.place(problem)
    except TeengineError:
        raise
    except Exception as error:
        raise PluginError(
            f"placement policy {policy.name} raised {error!r}", hint="use the policy `optimal`"
        ) from error


def _check(planning: PlanningInput) -> None:
    manifest = planning.manifest
    if not planning.devices:
        raise ConfigError("there is no device to plan for", hint="configure a device, or name another one")
    if planning.context_tokens > manifest.max_context_tokens:
        raise ContextTooLong(
            f"a context of {planning.context_tokens} tokens was asked for, and {manifest.name} knows "
            f"{manifest.max_context_tokens} at most",
            hint=f"ask for a context of at most {manifest.max_context_tokens} tokens",
        )


def _fault_of(assignment: Sequence[Assignment], *, num_layers: int, num_devices: int) -> str:
    """Return what is wrong with stages, or an empty text."""
    done = 0
    seen: set[int] = set()
    for stage in assignment:
        if not 0 <= stage.device < num_devices:
            return f"name device {stage.device} of {num_devices}"
        if stage.device in seen:
            return f"use device {stage.device} twice"
        if stage.layer_start != done or stage.layer_end <= stage.layer_start:
            return f"go from layer {done} to layers {stage.layer_start} to {stage.layer_end}"
        seen.add(stage.device)
        done = stage.layer_end
    return "" if done == num_layers else f"end at layer {done} of {num_layers}"


def _finish(model: CostModel, stages: tuple[Stage, ...], *, name: str, bound: float, proven: bool) -> Plan:
    from teengined.placement.stages import latency_seconds, period_seconds, prefill_seconds

    planning = model.planning
    latency, period = latency_seconds(stages), period_seconds(stages)
    achieved = latency if planning.objective is Objective.LATENCY else period
    bound = min(bound, achieved)
    gap = (achieved - bound) / achieved if achieved else 0.0
    used = {stage.device_id for stage in stages}
    return Plan(
        model=planning.manifest.name,
        policy=name,
        objective=planning.objective,
        context_tokens=planning.context_tokens,
        num_slots=planning.num_slots,
        stages=stages,
        seconds_per_token=latency,
        period_seconds=period,
        prefill_seconds=prefill_seconds(model, stages, min(PREFILL_TOKENS, planning.context_tokens)),
        streamed_bytes_per_token=sum(stage.streamed_bytes for stage in stages),
        lower_bound_seconds=bound,
        gap=gap if gap > _NO_GAP else 0.0,
        unused_device_ids=tuple(spec.id for spec in planning.devices if spec.id not in used),
        notes=_notes(model, stages, proven=proven),
    )


def _notes(model: CostModel, stages: Sequence[Stage], *, proven: bool) -> tuple[str, ...]:
    planning = model.planning
    package_dtype = planning.manifest.compute_dtype
    notes = [
        f"{stage.device_id} computes in {stage.compute_dtype}: {package_dtype} is slow there"
        for stage in stages
        if stage.compute_dtype != package_dtype
    ]
    first = stages[0]
    embedding = model.groups.embedding
    if embedding is not None and first.units[0].tier is not Tier.DEVICE and not (first.has_head and model.groups.tied):
        notes.append(f"the embedding ({format_bytes(embedding.size_bytes)}) stays on disk: a token reads its row only")
    if planning.resident_fraction is not None:
        notes.append(f"at most {planning.resident_fraction:.0%} of each stage is resident, as asked")
    if not proven:
        notes.append("too many different devices to search every plan: the gap says how much better one could be")
    return tuple(notes)
