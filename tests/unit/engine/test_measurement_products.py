import pytest
import torch

from teengined.core.device import MEASURED_TOKENS
from teengined.engine.measurement_products import (
    MeasuredProducts,
    PassLimits,
    _cost,
    fastest_compute_dtype,
    last_level_cache_bytes,
    measure_products,
)
from teengined.interfaces.precision import PrecisionStrategy
from tests.fakes.separate_device import cpu_device

ONE_PASS = PassLimits(min_passes=1, max_passes=1, enough_seconds=0)


class Counting(PrecisionStrategy):
    """Multiplies nothing and remembers at how many rows it was asked, and with which weights."""

    name = "counting"

    def __init__(self):
        self.rows, self.addresses = [], set()

    def stored_bytes(self, shape):
        return shape[0] * shape[1]

    def encode(self, weight):
        return {"data": torch.zeros(weight.shape, dtype=torch.int8)}

    def decode(self, parts, dtype):
        return parts["data"].to(dtype)

    def linear(self, x_TI, parts, bias_O):
        self.rows.append(x_TI.shape[0])
        self.addresses.add(parts["data"].data_ptr())
        return x_TI


def products(name, *seconds):
    return MeasuredProducts(name, dict(zip(MEASURED_TOKENS, seconds, strict=True)))


def test_a_strategy_is_measured_at_every_row_count():
    strategy = Counting()

    measured = measure_products(cpu_device(), strategy, torch.float32, ONE_PASS)

    assert set(strategy.rows) == set(MEASURED_TOKENS)
    assert [point.num_tokens for point in measured.points()] == list(MEASURED_TOKENS)


def test_weights_exceed_the_caches_and_go_back_to_the_device():
    device, strategy = cpu_device(2 << 30), Counting()

    measure_products(device, strategy, torch.float32, PassLimits(min_passes=50, max_passes=50))

    assert len(strategy.addresses) / 3 * 37_748_736 > 2 * last_level_cache_bytes()
    assert device.memory_info().allocated_bytes == 0


def test_a_kernel_that_crawls_is_asked_at_few_rows_only_and_grows_with_rows():
    strategy = Counting()
    limits = PassLimits(min_passes=1, max_passes=1, enough_seconds=0, max_pass_seconds=0)

    measured = measure_products(cpu_device(), strategy, torch.float32, limits).seconds_per_parameter

    assert set(strategy.rows) == {1}
    assert measured[512] == pytest.approx(512 * measured[1])


def test_the_cost_is_the_median_of_the_passes_for_each_parameter():
    seconds = iter([1e-3, 0.3, 0.1, 0.2])

    cost = _cost(
        lambda work: next(seconds),
        lambda: None,
        [lambda: None],
        10,
        PassLimits(min_passes=1, max_passes=3, enough_seconds=9),
    )

    assert cost == pytest.approx(0.02)


def test_one_slow_moment_does_not_pass_for_a_kernel_that_crawls():
    seconds = iter([5.0, 1e-3, 5.0, 0.1, 0.1, 0.1])

    cost = _cost(lambda work: next(seconds), lambda: None, [lambda: None], 10, PassLimits(max_passes=3))

    assert cost == pytest.approx(0.01)


def test_the_fastest_dtype_is_that_of_the_least_cost_over_all_rows():
    measured = {"fp32": products("fp32", 1, 1, 1, 1), "bf16": products("bf16", 2, 2, 2, 2)}

    assert fastest_compute_dtype(measured) == "fp32"


def test_bf16_is_preferred_where_fp16_is_hardly_faster():
    measured = {"fp16": products("fp16", 0.95, 0.95, 0.95, 0.95), "bf16": products("bf16", 1, 1, 1, 1)}

    assert fastest_compute_dtype(measured) == "bf16"


def test_a_device_without_bf16_takes_the_best_of_the_rest():
    assert fastest_compute_dtype({"fp32": products("fp32", 1, 1, 1, 1)}) == "fp32"


def test_the_largest_cache_counts(tmp_path):
    for index, size in enumerate(("48K", "2M", "36M")):
        (tmp_path / f"index{index}").mkdir()
        (tmp_path / f"index{index}" / "size").write_text(size + "\n")

    assert last_level_cache_bytes(tmp_path) == 36 << 20


def test_an_unknown_cache_is_guessed(tmp_path):
    assert last_level_cache_bytes(tmp_path) > 0
