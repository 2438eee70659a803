"""The call for metrics: all that a daemon tells of its process, its workers, its socket, and its models."""

import os
import platform
import time
from collections.abc import Iterator

from teengined import __version__
from teengined.protocol.messages import GetMetrics, HostPoolStatus, MetricFamily, Metrics, MetricSeries
from teengined.protocol.openmetrics import openmetrics_text
from teengined.service.context import ServiceContext
from teengined.service.host import rss_bytes
from teengined.service.metrics.call_meter import SocketMeter
from teengined.service.metrics.model_families import call_families, model_families
from teengined.service.metrics.model_values import ModelReading
from teengined.service.server import Call

__all__ = ["get_metrics", "read_metrics"]


async def get_metrics(context: ServiceContext, _call: Call, _message: GetMetrics) -> Metrics:
    """Tell what a monitoring program reads."""
    return read_metrics(context)


def read_metrics(context: ServiceContext) -> Metrics:
    """Return the counters, gauges and histograms of a daemon, as they are now."""
    models = context.deployments.models
    readings = [ModelReading(deployment=model.describe(placements=False), meter=model.meter) for model in models]
    calls = [("", context.socket_meter.unknown), *((model.name, model.calls) for model in models)]
    families = (
        *_process_families(context),
        *_worker_families(context),
        *_host_pool_families(context.deployments.host_pool.describe()),
        *_socket_families(context.socket_meter),
        *call_families(calls),
        *model_families(readings),
    )
    return Metrics(families=families, text=openmetrics_text(families))


def _process_families(context: ServiceContext) -> Iterator[MetricFamily]:
    labels = {"version": __version__, "python": platform.python_version()}
    yield MetricFamily(
        name="teengine_build", kind="info", help="What runs.", series=(MetricSeries(labels=labels, value=1.0),)
    )
    yield _single("teengine_draining", "gauge", "1 while nothing new is taken.", context.deployments.draining)
    uptime_seconds = time.monotonic() - context.started_seconds
    start = time.time() - uptime_seconds
    yield _single("teengine_uptime_seconds", "gauge", "Since the daemon's start.", uptime_seconds, "seconds")
    yield _single("process_start_time_seconds", "gauge", "Unix time of the daemon's start.", start, "seconds")
    used = os.times()
    yield _single(
        "process_cpu_seconds", "counter", "Processor time of the daemon alone.", used.user + used.system, "seconds"
    )
    yield _single("process_resident_memory_bytes", "gauge", "Memory of the daemon alone.", rss_bytes(), "bytes")


def _worker_families(context: ServiceContext) -> Iterator[MetricFamily]:
    up: list[MetricSeries] = []
    starts: list[MetricSeries] = []
    losses: list[MetricSeries] = []
    for spec in context.specs:
        labels = {"device": spec.id}
        num_starts, num_losses = context.pool.counts_of(spec.id)
        up.append(MetricSeries(labels=labels, value=float(context.pool.state_of(spec.id)[0] == "ready")))
        starts.append(MetricSeries(labels=labels, value=max(0, num_starts - 1)))
        losses.append(MetricSeries(labels=labels, value=num_losses))
    yield MetricFamily(
        name="teengine_worker_up", kind="gauge", help="1 while a device's worker is ready.", series=tuple(up)
    )
    yield MetricFamily(
        name="teengine_worker_restarts",
        kind="counter",
        help="Starts of a device's worker after its first.",
        series=tuple(starts),
    )
    yield MetricFamily(
        name="teengine_worker_losses",
        kind="counter",
        help="Ends of a device's worker that nobody asked for.",
        series=tuple(losses),
    )


def _host_pool_families(pool: HostPoolStatus) -> Iterator[MetricFamily]:
    for part, num_bytes, text in (
        ("budget", pool.budget_bytes, "Most that the pool of host memory may hold."),
        ("planned", pool.planned_bytes, "Of it, taken by the loaded models; what they share is counted once."),
        ("filled", pool.filled_bytes, "Of it, units that are there."),
        ("unshared", pool.unshared_bytes, "What the loaded models would take if each had its own."),
    ):
        yield _single(f"teengine_host_pool_{part}_bytes", "gauge", text, num_bytes, "bytes")


def _socket_families(meter: SocketMeter) -> Iterator[MetricFamily]:
    yield _single("teengine_calls", "gauge", "Calls under way, of any kind.", meter.num_calls)
    yield _single(
        "teengine_slow_readers", "counter", "Clients cut off because they did not read.", meter.num_slow_readers
    )
    yield MetricFamily(
        name="teengine_messages_refused",
        kind="counter",
        help="Messages that did not become a call, by the code of their error.",
        series=tuple(
            MetricSeries(labels={"code": code}, value=count) for code, count in sorted(meter.refused_messages.items())
        ),
    )


def _single(name: str, kind: str, text: str, value: float, unit: str = "") -> MetricFamily:
    series = (MetricSeries(labels={}, value=float(value)),)
    return MetricFamily(
        name=name, kind="counter" if kind == "counter" else "gauge", help=text, unit=unit, series=series
    )
