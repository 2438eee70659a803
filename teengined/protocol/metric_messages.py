"""Messages about metrics: what a monitoring program reads. Part of `messages`."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

__all__ = ["Distribution", "GetMetrics", "MetricFamily", "MetricSeries", "Metrics"]


@dataclass(frozen=True, slots=True, kw_only=True)
class GetMetrics:
    """Ask for all counters, gauges and histograms of the daemon. Text of requests is in none of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Distribution:
    """A histogram's counts."""

    bounds: tuple[float, ...]
    """Rising; each is the largest value of its bucket."""
    counts: tuple[int, ...]
    """Of each bucket alone, and last of what is above all bounds."""
    total: float
    """Sum of what was observed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricSeries:
    """One line of a family: its labels, and a value or a distribution."""

    labels: Mapping[str, str]
    value: float = 0.0
    distribution: Distribution | None = None
    """Of a histogram; then `value` says nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricFamily:
    """All series of one name."""

    name: str
    """Without the suffixes that OpenMetrics adds to it, such as `_total`."""
    kind: Literal["counter", "gauge", "histogram", "info"]
    help: str
    unit: str = ""
    """Also the end of the name; empty where there is none."""
    series: tuple[MetricSeries, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Metrics:
    """Answer to `GetMetrics`. Models that are not loaded have no series; requests for them are under an empty name."""

    families: tuple[MetricFamily, ...]
    text: str
    """The same as OpenMetrics 1.0 text, ready to be served."""
