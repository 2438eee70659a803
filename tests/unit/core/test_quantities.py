"""Bytes and seconds as people write them."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from teengined.core.quantities import (
    format_bytes,
    format_count,
    format_seconds,
    parse_bytes,
    parse_count,
    parse_seconds,
)


@pytest.mark.parametrize(
    ("text", "num_bytes"),
    [("4096", 4096), ("512MiB", 512 << 20), ("2 GB", 2 * 10**9), ("1.5kib", 1536), ("0", 0), (" 1 B ", 1)],
)
def test_sizes_are_read(text: str, num_bytes: int) -> None:
    assert parse_bytes(text) == num_bytes


@pytest.mark.parametrize("text", ["", "MiB", "-1", "1 XB", "1e3", "1,5 GB", "0x10", "1 GB 2"])
def test_what_is_no_size_is_refused_with_the_units(text: str) -> None:
    with pytest.raises(ValueError, match="KiB, MiB"):
        parse_bytes(text)


@pytest.mark.parametrize(
    ("text", "seconds"), [("250ms", 0.25), ("5m", 300), ("1.5", 1.5), ("2 h", 7200), ("3us", 3e-6), ("1d", 86400)]
)
def test_durations_are_read(text: str, seconds: float) -> None:
    assert parse_seconds(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "s", "-1s", "5 minutes", "1:30"])
def test_what_is_no_duration_is_refused_with_the_units(text: str) -> None:
    with pytest.raises(ValueError, match="us, ms, s"):
        parse_seconds(text)


@given(st.text())
def test_any_text_is_a_size_or_a_value_error(text: str) -> None:
    with contextlib.suppress(ValueError):
        assert parse_bytes(text) >= 0


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [(0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (1_500_000, "1.5 MB"), (42e9, "42.0 GB"), (120e9, "120 GB")],
)
def test_sizes_are_written_short(num_bytes: float, text: str) -> None:
    assert format_bytes(num_bytes) == text


@given(st.integers(min_value=0, max_value=10**15))
def test_written_size_reads_back_within_its_rounding(num_bytes: int) -> None:
    assert parse_bytes(format_bytes(num_bytes)) == pytest.approx(num_bytes, rel=0.051, abs=1)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(2e-6, "2 µs"), (0.012, "12 ms"), (3.4, "3.4 s"), (268, "4m28s"), (7380, "2h03m")],
)
def test_durations_are_written_short(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text


def test_size_beyond_what_a_float_holds_is_exact() -> None:
    assert parse_bytes("9007199254740993") == 9007199254740993


def test_size_of_any_length_is_a_number() -> None:
    assert parse_bytes("9" * 400) == int("9" * 400)


def test_duration_without_end_is_refused() -> None:
    with pytest.raises(ValueError, match="not a duration"):
        parse_seconds("9" * 400)


@pytest.mark.parametrize(("text", "number"), [("1T", 10**12), ("30B", 30 * 10**9), ("1.5m", 1_500_000), (" 7 ", 7)])
def test_sizes_of_models_are_read(text: str, number: int) -> None:
    assert parse_count(text) == number


@pytest.mark.parametrize("text", ["", "T", "-1B", "1 X", "1e9", "1,5B"])
def test_what_is_no_size_of_a_model_is_refused_with_the_factors(text: str) -> None:
    with pytest.raises(ValueError, match="K, M, B, T"):
        parse_count(text)


@pytest.mark.parametrize(
    ("number", "text"), [(0, "0"), (999, "999"), (135_000_000, "135M"), (30_500_000_000, "30.5B"), (10**12, "1T")]
)
def test_sizes_of_models_are_written(number: int, text: str) -> None:
    assert format_count(number) == text
