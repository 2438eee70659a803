import asyncio
import threading

import pytest

from teengined.service.detached_threads import DetachedThreads


def test_what_the_function_returns_comes_back():
    async def ask() -> int:
        return await DetachedThreads(1).run(lambda: 7)

    assert asyncio.run(ask()) == 7


def test_what_the_function_raises_comes_back():
    def fail() -> None:
        raise LookupError("no plan")

    with pytest.raises(LookupError, match="no plan"):
        asyncio.run(DetachedThreads(1).run(fail))


def test_a_function_that_does_not_return_costs_one_place_and_not_the_end_of_the_loop():
    never = threading.Event()

    async def ask() -> int:
        threads = DetachedThreads(2)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await threads.run(never.wait)
        return await threads.run(lambda: 7)

    assert asyncio.run(ask()) == 7
    never.set()


def test_places_are_given_back():
    async def ask() -> list[int]:
        threads = DetachedThreads(1)
        return [await threads.run(lambda: number) for number in range(5)]  # noqa: B023 - each is awaited before the next

    assert asyncio.run(ask()) == [0, 1, 2, 3, 4]


def test_a_thread_that_cannot_start_costs_no_place(monkeypatch: pytest.MonkeyPatch):
    def refuse(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    async def ask() -> int:
        threads = DetachedThreads(1)
        with monkeypatch.context() as patched:
            patched.setattr(threading.Thread, "start", refuse)
            with pytest.raises(RuntimeError, match="can't start"):
                await threads.run(lambda: 1)
        async with asyncio.timeout(20):
            return await threads.run(lambda: 7)

    assert asyncio.run(ask()) == 7
