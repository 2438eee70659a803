"""Rates of decoding and of prompts from the moments of tokens, and the quotients that are aimed at."""

from benchmarks.resident_figures import comparison_rows, engine_run, summarised_engine


def test_decoding_is_measured_after_the_shortest_prompt_and_a_prompt_ends_with_its_first_token() -> None:
    run = engine_run({512: [4.0, 4.5], 128: [2.0, 2.5, 3.0, 4.0]})

    assert run.decode_tokens_per_s == 1.5
    assert run.prefill_tokens_per_s == {512: 128.0, 128: 64.0}


def test_engine_is_the_median_of_its_rounds() -> None:
    runs = [engine_run({128: [seconds, seconds + 1.0]}) for seconds in (1.0, 2.0, 8.0)]

    case = summarised_engine("teengine-int8", runs, [128], "")

    assert (case["prefill_128_tokens_per_s"], case["num_rounds"], case["reason"]) == (64.0, 3, "")


def test_engine_that_is_not_there_has_the_same_keys() -> None:
    ran = summarised_engine("teengine-int8", [engine_run({128: [1.0, 2.0]})], [128], "")
    absent = summarised_engine("teengine-int4", [], [128], "there is none")

    assert absent.keys() == ran.keys()
    assert absent["decode_tokens_per_s"] is None


def test_only_figures_that_are_both_there_are_compared() -> None:
    cases = [
        {"engine": "teengine-int8", "decode_tokens_per_s": 30.0, "prefill_128_tokens_per_s": 300.0},
        {"engine": "llama.cpp-q8_0", "decode_tokens_per_s": 20.0, "prefill_128_tokens_per_s": 100.0},
        {"engine": "teengine-int4", "decode_tokens_per_s": None},
    ]

    rows = {row["name"]: row["reached"] for row in comparison_rows(cases)}

    assert rows == {"int8 decode / Q8_0": 1.5, "prompt of 128, int8 activations / Q8_0": 3.0}
