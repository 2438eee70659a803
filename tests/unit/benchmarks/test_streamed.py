"""How tokens are counted: after the prompt and the warm steps, up to the most tokens or the most seconds."""

from collections.abc import Sequence
from typing import Any

from benchmarks.peers.streamed import decode

ENDLESS = 1e9


def order_of(**changes: Any) -> dict[str, Any]:
    order = {
        "prompt": [1, 2, 3],
        "forced": [10, 11, 12, 13, 14, 15],
        "num_warm": 2,
        "warm_seconds": ENDLESS,
        "min_tokens": 2,
        "max_seconds": ENDLESS,
    }
    return {**order, **changes}


def steps_of(order: dict[str, Any]) -> tuple[list[Sequence[int]], int]:
    steps: list[Sequence[int]] = []
    stamps = decode(order, steps.append)
    return steps, len(stamps) - 1


def test_all_forced_tokens_but_the_warm_ones_count() -> None:
    steps, num_counted = steps_of(order_of())

    assert steps == [[1, 2, 3], [10], [11], [12], [13], [14], [15]]
    assert num_counted == 4


def test_warm_steps_end_with_their_time_after_the_first() -> None:
    _, num_counted = steps_of(order_of(warm_seconds=-1.0))

    assert num_counted == 5


def test_counting_ends_with_its_time_after_the_least_tokens() -> None:
    steps, num_counted = steps_of(order_of(max_seconds=-1.0))

    assert num_counted == 2
    assert steps[-1] == [13]


def test_stamps_never_go_back() -> None:
    stamps = decode(order_of(), lambda token_ids: None)

    assert [list(stamp) for stamp in stamps] == sorted(list(stamp) for stamp in stamps)
