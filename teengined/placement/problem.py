"""The placement problem as policies see it, with its solution and its lower bound computed once."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

from teengined.core.errors import DoesNotFit
from teengined.core.plan import Objective
from teengined.interfaces.policy import Assignment, PlacementProblem
from teengined.placement.bound import lower_bound
from teengined.placement.costs import CostModel
from teengined.placement.routes import Route
from teengined.placement.shortage import total_shortage
from teengined.placement.solver import Instance, Solution, solve
from teengined.placement.stages import build_stages, latency_seconds, period_seconds
from teengined.placement.table import StageTable, build_table, hop_table

__all__ = ["DeploymentProblem", "objective_seconds"]

# Sums of floats in another order differ by about this much.
_SAME = 1 + 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class _Answer:
    assignment: tuple[Assignment, ...]
    lower_bound_seconds: float
    exact: bool


class DeploymentProblem(PlacementProblem):
    """One model on one host's devices. Pure; everything is derived from the cost model."""

    def __init__(self, model: CostModel) -> None:
        """Read the model's sizes; costs are tabled at the first question."""
        self._model = model
        self.num_layers = model.num_layers
        self.device_ids = tuple(spec.id for spec in model.planning.devices)
        self.memory_bytes = tuple(_weight_bytes(model, device) for device in range(len(self.device_ids)))
        self.layer_bytes = tuple(group.size_bytes for group in model.groups.layers)
        self.objective = model.planning.objective

    def stage_seconds(self, device: int, layer_start: int, layer_end: int) -> float:
        """Return the cost of a stage, with the whole host tier to itself; infinite where it does not fit."""
        if not 0 <= layer_start < layer_end <= self.num_layers:
            raise IndexError(f"layers {layer_start} to {layer_end} of {self.num_layers}")
        return float(self._table.seconds_dse[device, layer_start, layer_end])

    def hop_seconds(self, source: int, target: int) -> float:
        """Return the cost of one activation between two devices."""
        return 0.0 if source == target else self._model.hop_seconds(source, target)

    def exact_assignment(self) -> tuple[Assignment, ...]:
        """Return the best assignment: proven where `is_exact`, else the best that the search found.

        Raises:
            DoesNotFit: nothing fits; the message has the smallest budgets that would.
        """
        return self._answer.assignment

    @property
    def lower_bound_seconds(self) -> float:
        """Seconds that no plan for this input can be below. Raises as `exact_assignment`."""
        return self._answer.lower_bound_seconds

    @property
    def is_exact(self) -> bool:
        """Whether `exact_assignment` was solved exactly. Raises as it does."""
        return self._answer.exact

    @functools.cached_property
    def _table(self) -> StageTable:
        return self._table_with_host(self._model.host_tier_bytes())

    @functools.cached_property
    def _answer(self) -> _Answer:
        optimistic = self._solve(self._table)
        if optimistic is None:
            raise self._nothing_found()
        best = min(self._candidates(optimistic), key=self._achieved_seconds)
        bound = self._bound(optimistic)
        return _Answer(assignment=best, lower_bound_seconds=bound, exact=optimistic.exact and self._table.exact)

    def _candidates(self, optimistic: Solution) -> list[tuple[Assignment, ...]]:
        """Return assignments to choose from: several only where stages compete for the host tier."""
        first = _assignment(optimistic.route)
        if self._achieved_seconds(first) <= optimistic.route.value * _SAME:
            return [first]
        users = sum(self._model.uses_host_tier(device) for device in range(len(self.device_ids)))
        shares = {self._model.host_tier_bytes() // users if users else 0, 0}
        solutions = [self._solve(self._table_with_host(share)) for share in sorted(shares, reverse=True)]
        return [first, *(_assignment(solution.route) for solution in solutions if solution is not None)]

    def _achieved_seconds(self, assignment: Sequence[Assignment]) -> float:
        seconds = objective_seconds(self._model, assignment)
        return float("inf") if seconds is None else seconds

    def _bound(self, optimistic: Solution) -> float:
        if optimistic.exact and self._table.exact:
            return optimistic.route.value
        # Where groups were not chosen exactly, a part of a group may be resident: at least as fast as any choice.
        table = self._table if self._table.exact else self._table_with_host(self._model.host_tier_bytes(), whole=False)
        instance = self._instance(table)
        if optimistic.exact and (relaxed := solve(instance)) is not None:
            return relaxed.route.value
        return lower_bound(instance, optimistic.route.value)

    def _table_with_host(self, host_bytes: int, *, whole: bool = True) -> StageTable:
        devices = range(len(self.device_ids))
        shares = [host_bytes if self._model.uses_host_tier(device) else 0 for device in devices]
        return build_table(self._model, shares, fractional=not whole)

    def _instance(self, table: StageTable) -> Instance:
        return Instance(
            cost_dse=table.seconds_dse,
            disk_dse=table.disk_seconds_dse,
            hop_dd=hop_table(self._model),
            objective=self.objective,
        )

    def _solve(self, table: StageTable) -> Solution | None:
        return solve(self._instance(table))

    def _nothing_found(self) -> DoesNotFit:
        return total_shortage(self._model)


def objective_seconds(model: CostModel, assignment: Sequence[Assignment]) -> float | None:
    """Return what an assignment costs by the objective, host tier shared out; None where a stage does not fit."""
    stages = build_stages(model, assignment)
    if stages is None:
        return None
    return latency_seconds(stages) if model.planning.objective is Objective.LATENCY else period_seconds(stages)


def _assignment(route: Route) -> tuple[Assignment, ...]:
    return tuple(
        Assignment(device=leg.device_class, layer_start=leg.layer_start, layer_end=leg.layer_end) for leg in route.legs
    )


def _weight_bytes(model: CostModel, device: int) -> int:
    """Return what is left for weights after workspace and the largest layer's KV; not below 0."""
    kv_bytes = max(model.kv_bytes_of_layers(device), default=0)
    return max(0, model.budget_bytes(device) - kv_bytes - model.workspace_bytes(device, has_head=True))
