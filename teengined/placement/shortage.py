"""Why nothing fits, and the smallest budgets and the longest context that would: computed, never guessed."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from teengined.core.errors import DoesNotFit
from teengined.core.quantities import format_bytes
from teengined.interfaces.policy import Assignment
from teengined.placement.costs import CostModel
from teengined.placement.experts import LEAST_SLOTS
from teengined.placement.residency import IntArray, least_bytes
from teengined.placement.table import interval_sums, last_column, stage_sizes, streaming_limit

__all__ = ["longest_context", "smallest_budgets", "smallest_equal_budget", "stage_shortage", "total_shortage"]

# Sets of devices are searched exactly up to here; beyond, devices are taken from the largest to the smallest.
_EXACT_DEVICES = 8
# Devices that an error lists by name.
_MAX_NAMED = 4


def total_shortage(model: CostModel) -> DoesNotFit:
    """Return the error for a model that fits in no way on these devices."""
    planning = model.planning
    have, works = _budgets_now(model), _budgets_that_work(model)
    context = longest_context(model)
    if context is None:
        return DoesNotFit(
            f"{planning.manifest.name} does not fit even when everything is streamed{_beside(model)}: {have}; {works}",
            hint="give a device more memory, or add a device",
        )
    kv_bytes = min(sum(model.kv_bytes_of_layers(device)) for device in range(len(planning.devices)))
    return DoesNotFit(
        f"the KV of {planning.num_slots} x {planning.context_tokens} tokens takes {_bytes(kv_bytes)}, which does not "
        f"fit: {have}; the largest context that fits is {context} tokens; for {planning.context_tokens}, {works}",
        hint=f"ask for a context of at most {context} tokens, for fewer slots, or give a device more memory",
    )


def stage_shortage(model: CostModel, assignment: Assignment, chosen_by: str) -> DoesNotFit:
    """Return the error for one stage that does not fit its device, where other plans may."""
    spec = model.planning.devices[assignment.device]
    need = int(_need(model, assignment.device)[assignment.layer_start, assignment.layer_end])
    return DoesNotFit(
        f"{chosen_by} puts layers {assignment.layer_start} to {assignment.layer_end - 1} on {spec.id}, which has "
        f"{_bytes(model.budget_bytes(assignment.device))}; they need at least {_bytes(need)} there",
        hint="let the policy `optimal` choose, or move layers to another device",
    )


def smallest_budgets(model: CostModel) -> list[int]:
    """Return, for each device, the smallest budget with which it runs the whole model alone."""
    return [int(_need(model, device)[0, model.num_layers]) for device in range(len(model.planning.devices))]


def smallest_equal_budget(model: CostModel) -> int:
    """Return the smallest budget that suffices when every device has it: the least largest need over all cuts."""
    need_se = np.max([_need(model, device) for device in range(len(model.planning.devices))], axis=0)
    best_e = need_se[0]
    for _ in model.planning.devices[1:]:
        later_e = np.maximum(best_e[: model.num_layers, None], need_se).min(axis=0)
        best_e = np.minimum(best_e, later_e)
    return int(best_e[model.num_layers])


def longest_context(model: CostModel) -> int | None:
    """Return the largest context at which some plan fits, or None where not even one token does."""
    low, high = 0, model.planning.manifest.max_context_tokens
    while low < high:
        middle = (low + high + 1) // 2
        trial = replace(model, planning=replace(model.planning, context_tokens=middle))
        low, high = (middle, high) if _fits(trial) else (low, middle - 1)
    return low or None


def _budgets_now(model: CostModel) -> str:
    devices = range(len(model.planning.devices))
    largest = sorted(devices, key=lambda device: -model.budget_bytes(device))[:_MAX_NAMED]
    named = ", ".join(f"{model.planning.devices[d].id} has {_bytes(model.budget_bytes(d))}" for d in sorted(largest))
    others = len(devices) - len(largest)
    return f"{named}, {others} others no more than these" if others else named


def _budgets_that_work(model: CostModel) -> str:
    devices = model.planning.devices
    alone = smallest_budgets(model)
    least = min(range(len(devices)), key=lambda device: alone[device])
    one = f"the smallest budget that works is {_bytes(alone[least])} on {devices[least].id}"
    if len(devices) == 1:
        return one
    return f"{one} alone, or {_bytes(smallest_equal_budget(model))} on each of the {len(devices)}"


def _fits(model: CostModel) -> bool:
    """Whether some devices in some order cover all layers: the furthest layer reached by each set of devices."""
    num_devices = len(model.planning.devices)
    reach_ds = [_reach(_need(model, device), model.budget_bytes(device)) for device in range(num_devices)]
    if num_devices > _EXACT_DEVICES:
        order = sorted(range(num_devices), key=lambda device: (-reach_ds[device][0], device))
        return _walk(reach_ds, order) == model.num_layers
    furthest = [0] * (1 << num_devices)
    for used in range(1, 1 << num_devices):
        members = [device for device in range(num_devices) if used >> device & 1]
        furthest[used] = max(reach_ds[device][furthest[used & ~(1 << device)]] for device in members)
    return furthest[-1] == model.num_layers


def _walk(reach_ds: Sequence[Sequence[int]], order: Sequence[int]) -> int:
    done = 0
    for device in order:
        done = reach_ds[device][done]
    return done


def _reach(need_se: IntArray, budget_bytes: int) -> list[int]:
    """Return, for each first layer, the end of the longest stage that fits; the start itself where none does.

    A longer stage never needs less, so the stages that fit are the shortest ones.
    """
    num_layers = len(need_se)
    fitting_s = [int((need_se[start, start + 1 :] <= budget_bytes).sum()) for start in range(num_layers)]
    return [*(start + fitting for start, fitting in enumerate(fitting_s)), num_layers]


def _need(model: CostModel, device: int) -> IntArray:
    """Return the smallest budget of each stage on `device`, shape [s, e]; reserved bytes included."""
    stage = stage_sizes(model)
    limit = streaming_limit(model, stage.total_bytes)
    weights_se = least_bytes(stage, ring_slots=model.planning.ring_slots, limit=limit)
    body, head = (model.workspace_bytes(device, has_head=has_head) for has_head in (False, True))
    kv_se = interval_sums(model.kv_bytes_of_layers(device))
    need_se = weights_se + kv_se + body + last_column(model.num_layers) * (head - body)
    reserved = model.planning.reserved_bytes.get(model.planning.devices[device].id, 0)
    empty_se = np.arange(model.num_layers + 1)[None, :] <= np.arange(model.num_layers)[:, None]
    return np.where(empty_se, np.iinfo(np.int64).max // 2, need_se + reserved)


def _beside(model: CostModel) -> str:
    """Say what stays at any rate where a model has routed experts."""
    if not any(group.experts for group in model.groups.layers):
        return ""
    return f" and only {LEAST_SLOTS} experts are cached"


def _bytes(num_bytes: int) -> str:
    """Write a size for people and exactly, so that the smallest budget can be copied into a configuration."""
    return f"{format_bytes(num_bytes)} ({num_bytes} bytes)" if num_bytes >= 1000 else format_bytes(num_bytes)
