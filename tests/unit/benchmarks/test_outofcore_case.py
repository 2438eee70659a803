"""How tokens are counted: after the prompt and the warm steps, up to the most tokens or the most seconds."""

import runpy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from benchmarks import outofcore_case

PEERS = Path(outofcore_case.__file__).parent / "peers"
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


@pytest.fixture(params=["ours", "peers"])
def decode(request: pytest.FixtureRequest) -> Callable[..., list[tuple[float, int]]]:
    """The two loops that must count alike: peers' programs cannot import ours."""
    if request.param == "ours":
        return outofcore_case.decode
    return runpy.run_path(str(PEERS / "streamed.py"))["decode"]


def steps_of(decode: Callable[..., list[Any]], order: dict[str, Any]) -> tuple[list[Sequence[int]], int]:
    steps: list[Sequence[int]] = []
    stamps = decode(order, steps.append)
    return steps, len(stamps) - 1


def test_all_forced_tokens_but_the_warm_ones_count(decode: Callable[..., list[Any]]) -> None:
    steps, num_counted = steps_of(decode, order_of())

    assert steps == [[1, 2, 3], [10], [11], [12], [13], [14], [15]]
    assert num_counted == 4


def test_warm_steps_end_with_their_time_after_the_first(decode: Callable[..., list[Any]]) -> None:
    _, num_counted = steps_of(decode, order_of(warm_seconds=-1.0))

    assert num_counted == 5


def test_counting_ends_with_its_time_after_the_least_tokens(decode: Callable[..., list[Any]]) -> None:
    steps, num_counted = steps_of(decode, order_of(max_seconds=-1.0))

    assert num_counted == 2
    assert steps[-1] == [13]


def test_stamps_never_go_back(decode: Callable[..., list[Any]]) -> None:
    stamps = decode(order_of(), lambda token_ids: None)

    assert [list(stamp) for stamp in stamps] == sorted(list(stamp) for stamp in stamps)
