"""Budgets, figures, bounds and rows of the out-of-core benchmark, on numbers that a reader can check by hand."""

import json

import pytest

from benchmarks.outofcore_figures import (
    HEADERS,
    CaseKey,
    Run,
    bound_curve,
    dense_budget_bytes,
    floor_seconds,
    mixture_budget_bytes,
    plot_order,
    refused_case,
    run_figures,
    summarised_case,
    table_row,
)

PROMISED_KEYS = {
    "engine", "model", "model_bytes", "budget_bytes", "seconds_per_token", "bytes_per_token", "peak_bytes", "share",
}  # fmt: skip


def key_of(engine: str = "teengine-int8", *, budget_bytes: int = 1_000, all_read: bool = True) -> CaseKey:
    return CaseKey(
        engine=engine,
        precision="int8 × bf16",
        model="random-3b",
        model_bytes=3_000,
        budget_bytes=budget_bytes,
        ratio=3.0,
        all_read=all_read,
    )


def run_of(seconds: float, num_bytes: float, rate: float = 1_000.0) -> Run:
    return Run(
        seconds_per_token=seconds,
        bytes_per_token=num_bytes,
        num_tokens=4,
        peak_bytes=900,
        read_bytes_per_second=rate,
    )


def test_dense_budget_is_exceeded_by_the_ratio() -> None:
    assert [dense_budget_bytes(3_000, ratio) for ratio in (1.5, 2, 4)] == [2_000, 1_500, 750]


def test_mixture_budget_grows_by_the_share_of_the_experts() -> None:
    none, quarter, whole = (mixture_budget_bytes(1_000_000, 800_000, share) for share in (0.0, 0.25, 1.0))

    assert (quarter - none, whole - none) == (200_000, 800_000)


def test_run_is_the_mean_over_the_counted_tokens() -> None:
    run = run_figures([(10.0, 500), (11.0, 700), (14.0, 1_100)], 900, 1_000.0, "kept")

    assert (run.seconds_per_token, run.bytes_per_token, run.num_tokens, run.note) == (2.0, 300.0, 2, "kept")


def test_floor_is_the_time_of_what_cannot_be_kept() -> None:
    assert floor_seconds(key_of(), 1_000.0) == 2.0


def test_floor_of_a_model_that_fits_is_nothing() -> None:
    assert floor_seconds(key_of(budget_bytes=4_000), 1_000.0) == 0.0


def test_mixture_has_no_floor() -> None:
    case = summarised_case(key_of(all_read=False), [run_of(2.0, 300.0)])

    assert (case["floor_seconds"], case["floor_share"]) == (None, None)


def test_bound_falls_along_the_budgets_to_nothing() -> None:
    assert bound_curve(3_000, [0, 1_000, 3_000, 5_000], 1_000.0) == [3.0, 2.0, 0.0, 0.0]


def test_case_is_the_median_of_its_rounds_against_the_median_of_the_disk() -> None:
    case = summarised_case(key_of(), [run_of(4.0, 2_000.0), run_of(2.5, 2_000.0), run_of(9.0, 2_000.0, 2_000.0)])

    assert (case["seconds_per_token"], case["bytes_per_token"], case["num_rounds"]) == (4.0, 2_000.0, 3)
    assert case["share"] == pytest.approx(0.5)
    assert case["floor_share"] == pytest.approx(0.5)


def test_every_case_has_the_promised_keys_whether_it_ran_or_not() -> None:
    ran, refused = summarised_case(key_of(), [run_of(1.0, 1.0)]), refused_case(key_of(), "it has no int4")

    assert ran.keys() >= PROMISED_KEYS
    assert refused.keys() == ran.keys()
    assert json.loads(json.dumps({"cases": [ran, refused]}))["cases"][1]["reason"] == "it has no int4"


def test_refused_case_has_no_figure() -> None:
    case = refused_case(key_of(), "it has no int4")

    assert {case[name] for name in ("seconds_per_token", "bytes_per_token", "peak_bytes", "share")} == {None}


def test_every_row_has_a_cell_for_every_header() -> None:
    cases = [summarised_case(key_of(), [run_of(1.0, 1.0)]), refused_case(key_of(), "it has no int4")]

    assert [len(table_row(case)) for case in cases] == [len(HEADERS)] * 2
    assert table_row(cases[1])[-1] == "it has no int4"


def test_plot_has_a_line_for_each_engine_that_ran_and_a_bound_for_its_form() -> None:
    cases = [
        summarised_case(key_of(budget_bytes=2_000), [run_of(2.0, 1_000.0)]),
        summarised_case(key_of(budget_bytes=1_000), [run_of(3.0, 2_000.0)]),
        refused_case(key_of("airllm-8bit"), "it needs CUDA"),
    ]

    (panel,) = plot_order(cases)["models"]

    assert panel["engines"] == {"teengine-int8": [(1_000, 3.0), (2_000, 2.0)]}
    assert list(panel["bounds"]) == ["least for int8"]
    assert (panel["bounds"]["least for int8"][0], panel["bounds"]["least for int8"][-1]) == ((750, 2.25), (2_500, 0.5))


def test_plot_of_a_mixture_is_bounded_by_the_fewest_bytes_that_were_read() -> None:
    cases = [
        summarised_case(key_of(all_read=False), [run_of(2.0, 1_000.0)]),
        summarised_case(key_of("airllm-bf16", all_read=False), [run_of(9.0, 6_000.0)]),
    ]

    (panel,) = plot_order(cases)["models"]

    assert list(panel["bounds"].values()) == [[(1_000, 1.0)]]
