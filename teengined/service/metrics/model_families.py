"""What is told of each loaded model: from how the deployment describes itself, and from what its meters counted."""

from collections.abc import Iterator, Sequence

from teengined.protocol.messages import MetricFamily, MetricSeries
from teengined.service.metrics.call_meter import CallMeter
from teengined.service.metrics.model_values import SPREADS, STAGE_SUMS, VALUES, ModelReading, StageSum

__all__ = ["call_families", "model_families"]

_STATES = ("loading", "ready", "failed", "unloading")


def model_families(readings: Sequence[ModelReading]) -> Iterator[MetricFamily]:
    """Yield every family that has a series for each loaded model."""
    yield _states(readings)
    for value in VALUES:
        series = (MetricSeries(labels=_labels(item), value=value.read(item)) for item in readings)
        kind = "counter" if value.is_counter else "gauge"
        yield MetricFamily(name=value.name, kind=kind, help=value.help, unit=value.unit, series=tuple(series))
    for spread in SPREADS:
        series = (
            MetricSeries(labels=_labels(item), distribution=spread.read(item.meter).distribution) for item in readings
        )
        yield MetricFamily(name=spread.name, kind="histogram", help=spread.help, unit=spread.unit, series=tuple(series))
    yield _bubbles(readings)
    for total in STAGE_SUMS:
        yield _stage_family(total, readings)


def call_families(calls: Sequence[tuple[str, CallMeter]]) -> Iterator[MetricFamily]:
    """Yield how calls ended, by the name of their model; an empty name stands for all that are not loaded."""
    yield MetricFamily(
        name="teengine_requests",
        kind="counter",
        help="Calls that ended, by how they ended: a reason, or an error's code.",
        series=tuple(
            MetricSeries(labels={"model": model, "kind": kind, "outcome": outcome}, value=count)
            for model, meter in calls
            for (kind, outcome), count in sorted(meter.ended.items())
        ),
    )
    yield MetricFamily(
        name="teengine_requests_refused",
        kind="counter",
        help="Those of them that were wrong, or for which there was no room.",
        series=tuple(
            MetricSeries(labels={"model": model, "kind": kind, "code": code}, value=count)
            for model, meter in calls
            for (kind, code), count in sorted(meter.refused.items())
        ),
    )
    yield MetricFamily(
        name="teengine_e2e_request_latency_seconds",
        kind="histogram",
        unit="seconds",
        help="From a call's arrival to its end, of those that did not fail.",
        series=tuple(
            MetricSeries(labels={"model": model}, distribution=meter.seconds.distribution) for model, meter in calls
        ),
    )


def _states(readings: Sequence[ModelReading]) -> MetricFamily:
    series = (
        MetricSeries(labels={**_labels(item), "state": state}, value=float(item.deployment.state == state))
        for item in readings
        for state in _STATES
    )
    return MetricFamily(
        name="teengine_model_state", kind="gauge", help="1 for the state that a model is in.", series=tuple(series)
    )


def _bubbles(readings: Sequence[ModelReading]) -> MetricFamily:
    series = (
        MetricSeries(labels=_stage_labels(item, index), value=seconds)
        for item in readings
        for index, seconds in enumerate(item.deployment.stage_bubble_seconds)
    )
    return MetricFamily(
        name="teengine_stage_bubble_seconds",
        kind="counter",
        unit="seconds",
        help="Time with steps under way in which a stage had nothing to do.",
        series=tuple(series),
    )


def _stage_family(total: StageSum, readings: Sequence[ModelReading]) -> MetricFamily:
    series = (
        MetricSeries(labels=_stage_labels(item, index), value=total.read(stage))
        for item in readings
        for index, stage in enumerate(item.meter.stages)
    )
    return MetricFamily(name=total.name, kind="counter", unit=total.unit, help=total.help, series=tuple(series))


def _labels(item: ModelReading) -> dict[str, str]:
    return {"model": item.deployment.model}


def _stage_labels(item: ModelReading, index: int) -> dict[str, str]:
    return {**_labels(item), "stage": str(index), "device": item.deployment.plan.stages[index].device_id}
