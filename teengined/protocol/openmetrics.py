"""Metrics as OpenMetrics 1.0 text, which Prometheus and its like read. Pure."""

import math
from collections.abc import Iterable, Iterator, Mapping
from itertools import accumulate

from teengined.protocol.metric_messages import Distribution, MetricFamily, MetricSeries

__all__ = ["CONTENT_TYPE", "openmetrics_text"]

CONTENT_TYPE = "application/openmetrics-text; version=1.0.0; charset=utf-8"
_ESCAPES = str.maketrans({"\\": r"\\", "\n": r"\n", '"': r"\""})
# Whole numbers beyond are not exact as floating point, and written as such.
_EXACT = 2.0**53


def openmetrics_text(families: Iterable[MetricFamily]) -> str:
    """Return the exposition: families in order, each with its series, and the mark that ends it."""
    lines = [line for family in families for line in _family(family)]
    return "\n".join([*lines, "# EOF", ""])


def _family(family: MetricFamily) -> Iterator[str]:
    yield f"# TYPE {family.name} {family.kind}"
    if family.unit:
        yield f"# UNIT {family.name} {family.unit}"
    yield f"# HELP {family.name} {family.help.translate(_ESCAPES)}"
    for series in family.series:
        if series.distribution is not None:
            yield from _histogram(family.name, series.labels, series.distribution)
        else:
            yield _plain(family, series)


def _plain(family: MetricFamily, series: MetricSeries) -> str:
    suffix = {"counter": "_total", "info": "_info"}.get(family.kind, "")
    return f"{family.name}{suffix}{_labels(series.labels)} {_number(series.value)}"


def _histogram(name: str, labels: Mapping[str, str], distribution: Distribution) -> Iterator[str]:
    """Yield the buckets, each with all that is not above its bound."""
    edges = [*(repr(float(bound)) for bound in distribution.bounds), "+Inf"]
    for edge, count in zip(edges, accumulate(distribution.counts), strict=True):
        yield f"{name}_bucket{_labels({**labels, 'le': edge})} {count}"
    yield f"{name}_count{_labels(labels)} {sum(distribution.counts)}"
    yield f"{name}_sum{_labels(labels)} {_number(distribution.total)}"


def _labels(labels: Mapping[str, str]) -> str:
    if not labels:
        return ""
    pairs = (f'{name}="{value.translate(_ESCAPES)}"' for name, value in labels.items())
    return f"{{{','.join(pairs)}}}"


def _number(value: float) -> str:
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else f"{'+' if value > 0 else '-'}Inf"
    return str(int(value)) if value == int(value) and abs(value) < _EXACT else repr(float(value))
