"""What we expose is read back by the parser that comes with Prometheus' own client."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from teengined.protocol.messages import Distribution, MetricFamily, MetricSeries
from teengined.protocol.openmetrics import openmetrics_text

LABELS = st.dictionaries(st.sampled_from(["model", "device", "outcome"]), st.text(max_size=30), max_size=3)


def family(*series: MetricSeries, kind: Any = "gauge", name: str = "thing", unit: str = "") -> MetricFamily:
    return MetricFamily(name=name, kind=kind, help='How "much"\nof \\ it.', unit=unit, series=series)


def read(*families: MetricFamily):
    return list(text_string_to_metric_families(openmetrics_text(families)))


def test_each_kind_is_written_as_the_standard_says():
    text = openmetrics_text(
        [
            family(MetricSeries(labels={"model": "a"}, value=3.0), kind="counter", name="tokens"),
            family(MetricSeries(labels={"version": "1"}, value=1.0), kind="info", name="build"),
            family(
                MetricSeries(labels={}, distribution=Distribution(bounds=(0.5, 1.0), counts=(2, 0, 1), total=4.25)),
                kind="histogram",
                name="wait_seconds",
                unit="seconds",
            ),
        ]
    )

    assert text.splitlines() == [
        "# TYPE tokens counter",
        r"# HELP tokens How \"much\"\nof \\ it.",
        'tokens_total{model="a"} 3',
        "# TYPE build info",
        r"# HELP build How \"much\"\nof \\ it.",
        'build_info{version="1"} 1',
        "# TYPE wait_seconds histogram",
        "# UNIT wait_seconds seconds",
        r"# HELP wait_seconds How \"much\"\nof \\ it.",
        'wait_seconds_bucket{le="0.5"} 2',
        'wait_seconds_bucket{le="1.0"} 2',
        'wait_seconds_bucket{le="+Inf"} 3',
        "wait_seconds_count 3",
        "wait_seconds_sum 4.25",
        "# EOF",
    ]


def test_no_family_is_an_exposition_too():
    assert read() == []


def test_family_without_a_series_is_read():
    assert [(item.name, item.samples) for item in read(family(kind="counter"))] == [("thing", [])]


@given(LABELS, st.floats(allow_nan=False, allow_infinity=False))
def test_any_label_and_value_come_back(labels: dict[str, str], value: float):
    (found,) = read(family(MetricSeries(labels=labels, value=value)))

    assert found.documentation == 'How "much"\nof \\ it.'
    assert [(sample.labels, sample.value) for sample in found.samples] == [(labels, value)]


@given(st.lists(st.integers(0, 1000), min_size=3, max_size=3), st.floats(0, 1e6))
def test_buckets_add_up(counts: list[int], total: float):
    distribution = Distribution(bounds=(0.001, 1.0), counts=tuple(counts), total=total)
    (found,) = read(family(MetricSeries(labels={}, distribution=distribution), kind="histogram"))

    buckets = {sample.labels["le"]: sample.value for sample in found.samples if sample.name == "thing_bucket"}
    assert buckets == {"0.001": counts[0], "1.0": sum(counts[:2]), "+Inf": sum(counts)}


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_what_is_no_number_is_written_as_the_standard_writes_it(value: float):
    (found,) = read(family(MetricSeries(labels={}, value=value)))

    assert repr(found.samples[0].value) == repr(value)
