from collections.abc import Callable, Hashable

import pytest
import torch

from teengined_plugins.precisions import kernel_choice
from teengined_plugins.precisions.kernel_choice import KernelChoice, rows_bucket

ONE, TWO = torch.ones(1), torch.full((1,), 2.0)


class Timed:
    """Kernels that take the seconds they say, on a clock of their own."""

    def __init__(self) -> None:
        self.now = 0.0
        self.calls: list[str] = []

    def clock(self) -> float:
        return self.now

    def kernel(self, name: str, seconds: float, product: torch.Tensor = ONE) -> Callable[[], torch.Tensor]:
        def run() -> torch.Tensor:
            self.now += seconds
            self.calls.append(name)
            return product

        return run


class Kept:
    """What other processes chose, and what this one adds."""

    def __init__(self, **winners: str) -> None:
        self.winners: dict[Hashable, str] = {**winners}
        self.added: list[tuple[Hashable, str]] = []

    def winner(self, key: Hashable) -> str | None:
        return self.winners.get(key)

    def keep(self, key: Hashable, winner: str) -> None:
        self.added.append((key, winner))


def _run(choice: KernelChoice, kernels: dict[str, Callable[[], torch.Tensor]], key: object = "key") -> torch.Tensor:
    return choice.run(key, kernels, agrees=torch.equal, synchronize=lambda: None)


def test_fastest_kernel_is_found_once_and_used_from_then_on() -> None:
    timed = Timed()
    choice = KernelChoice(clock=timed.clock)
    kernels = {"slow": timed.kernel("slow", 0.003), "fast": timed.kernel("fast", 0.001)}
    _run(choice, kernels)
    timed.calls.clear()

    _run(choice, kernels)

    assert timed.calls == ["fast"]
    assert choice.winners() == {"key": "fast"}


def test_kinds_of_calls_are_measured_apart() -> None:
    timed = Timed()
    choice = KernelChoice(clock=timed.clock)
    _run(choice, {"a": timed.kernel("a", 0.003), "b": timed.kernel("b", 0.001)}, key=1)
    _run(choice, {"a": timed.kernel("a", 0.001), "b": timed.kernel("b", 0.003)}, key=2)

    assert choice.winners() == {1: "b", 2: "a"}


def test_kernel_that_is_hardly_faster_does_not_replace_the_reference() -> None:
    timed = Timed()
    choice = KernelChoice(clock=timed.clock)

    _run(choice, {"a": timed.kernel("a", 0.00100), "b": timed.kernel("b", 0.00095)})

    assert choice.winners() == {"key": "a"}


def test_faster_kernel_that_disagrees_is_never_used() -> None:
    timed = Timed()
    choice = KernelChoice(clock=timed.clock)

    product = _run(choice, {"right": timed.kernel("right", 0.003), "wrong": timed.kernel("wrong", 0.001, TWO)})

    assert torch.equal(product, ONE)
    assert choice.winners() == {"key": "right"}


def test_kernel_that_the_build_lacks_drops_out() -> None:
    def lacking() -> torch.Tensor:
        raise RuntimeError("no such operator here")

    timed = Timed()
    choice = KernelChoice(clock=timed.clock)

    assert torch.equal(_run(choice, {"plain": timed.kernel("plain", 0.003), "lacking": lacking}), ONE)
    assert choice.winners() == {"key": "plain"}


def test_reference_that_fails_is_not_hidden() -> None:
    def broken() -> torch.Tensor:
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        _run(KernelChoice(), {"plain": broken, "other": lambda: ONE})


def test_long_runs_are_repeated_less() -> None:
    timed = Timed()

    _run(KernelChoice(clock=timed.clock), {"a": timed.kernel("a", 0.5), "b": timed.kernel("b", 0.4)})

    assert timed.calls.count("a") == 1  # compared with and timed at once


def test_kernel_that_takes_far_longer_is_not_measured_again_where_that_holds_up_a_request() -> None:
    timed = Timed()
    choice = KernelChoice(clock=timed.clock)
    kernels = {
        "slow": timed.kernel("slow", 0.012),
        "fast": timed.kernel("fast", 0.004),
        "near": timed.kernel("near", 0.005),
    }
    _run(choice, kernels)

    assert timed.calls.count("slow") == 1
    assert timed.calls.count("near") > 1
    assert choice.winners() == {"key": "fast"}


def test_moment_of_business_elsewhere_does_not_decide() -> None:
    timed = Timed()
    choice = KernelChoice(clock=timed.clock)
    seconds = iter([0.001, 0.050, 0.001, 0.001, 0.001, 0.001, 0.001])

    def disturbed() -> torch.Tensor:
        timed.now += next(seconds, 0.001)
        return ONE

    _run(choice, {"slow": timed.kernel("slow", 0.004), "fast": disturbed})

    assert choice.winners() == {"key": "fast"}


def test_without_measuring_the_reference_is_always_taken() -> None:
    timed = Timed()
    choice = KernelChoice(measures=False, clock=timed.clock)

    _run(choice, {"slow": timed.kernel("slow", 1.0), "fast": timed.kernel("fast", 0.001)})

    assert timed.calls == ["slow"]


def test_winner_that_is_no_candidate_now_is_measured_again() -> None:
    timed = Timed()
    choice = KernelChoice(clock=timed.clock)
    _run(choice, {"a": timed.kernel("a", 0.003), "b": timed.kernel("b", 0.001)})

    _run(choice, {"a": timed.kernel("a", 0.003), "c": timed.kernel("c", 0.001)})

    assert choice.winners() == {"key": "c"}


def test_memory_of_winners_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_choice, "MAX_REMEMBERED", 3)
    choice = KernelChoice()

    for key in range(10):
        _run(choice, {"a": lambda: ONE, "b": lambda: ONE}, key=key)

    assert list(choice.winners()) == [7, 8, 9]


def test_kept_winner_is_used_without_measuring() -> None:
    timed, kept = Timed(), Kept(key="b")
    choice = KernelChoice(clock=timed.clock, kept=kept)

    _run(choice, {"a": timed.kernel("a", 0.001), "b": timed.kernel("b", 0.003)})

    assert timed.calls == ["b"]
    assert choice.winner("key") == "b"
    assert kept.added == []


def test_kept_winner_is_told_to_nobody_before_it_was_among_the_candidates() -> None:
    assert KernelChoice(kept=Kept(key="b")).winner("key") is None


def test_kept_winner_that_is_not_offered_is_measured_instead() -> None:
    timed, kept = Timed(), Kept(key="gone")
    choice = KernelChoice(clock=timed.clock, kept=kept)

    _run(choice, {"a": timed.kernel("a", 0.003), "b": timed.kernel("b", 0.001)})

    assert choice.winners() == {"key": "b"}
    assert kept.added == [("key", "b")]


def test_kept_winner_that_fails_here_is_measured_instead() -> None:
    def lacking() -> torch.Tensor:
        raise RuntimeError("no such operator here")

    timed, kept = Timed(), Kept(key="lacking")
    choice = KernelChoice(clock=timed.clock, kept=kept)

    assert torch.equal(_run(choice, {"plain": timed.kernel("plain", 0.003), "lacking": lacking}), ONE)
    assert kept.added == [("key", "plain")]


def test_a_measurement_is_kept_once() -> None:
    timed, kept = Timed(), Kept()
    choice = KernelChoice(clock=timed.clock, kept=kept)

    for _ in range(3):
        _run(choice, {"a": timed.kernel("a", 0.003), "b": timed.kernel("b", 0.001)})

    assert kept.added == [("key", "b")]


def test_where_there_is_no_choice_nothing_is_asked_or_kept() -> None:
    timed, kept = Timed(), Kept(key="b")
    kernels = {"a": timed.kernel("a", 0.003), "b": timed.kernel("b", 0.001)}

    _run(KernelChoice(measures=False, clock=timed.clock, kept=kept), kernels)
    _run(KernelChoice(clock=timed.clock, kept=kept), {"a": kernels["a"]})

    assert timed.calls == ["a", "a"]
    assert kept.added == []


@pytest.mark.parametrize(("num_rows", "bucket"), [(1, 1), (2, 2), (3, 4), (8, 8), (9, 16), (512, 512), (4000, 512)])
def test_rows_are_told_apart_by_powers_of_two(num_rows: int, bucket: int) -> None:
    assert rows_bucket(num_rows) == bucket
