"""Threads for one purpose alone: a policy plugin may never return, a long prompt keeps a tokenizer for seconds.

The loop's own executor is joined when the daemon ends, and shared with all that reads files; these are neither.
"""

import asyncio
import contextlib
import threading
from collections.abc import Callable
from functools import partial
from typing import TypeVar

__all__ = ["DetachedThreads"]

T = TypeVar("T")


class DetachedThreads:
    """Runs functions in threads that nothing waits for at the end of the process."""

    def __init__(self, num_threads: int) -> None:
        """Allow `num_threads` at once; a function that never returns keeps its place for ever."""
        self._free = asyncio.Semaphore(num_threads)
        self._num_waiting = 0

    @property
    def num_waiting(self) -> int:
        """Functions that wait for a thread."""
        return self._num_waiting

    async def run(self, function: Callable[[], T]) -> T:
        """Return what `function` returns, or raise what it raises. Cancelling the wait does not stop the function."""
        self._num_waiting += 1
        try:
            await self._free.acquire()
        finally:
            self._num_waiting -= 1
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[T] = loop.create_future()

        def work() -> None:
            try:
                settle = partial(answer.set_result, function())
            except BaseException as error:  # noqa: BLE001 - handed to the one who waits
                settle = partial(answer.set_exception, error)
            with contextlib.suppress(RuntimeError):  # the loop has ended, and with it whoever waited
                loop.call_soon_threadsafe(self._settle, answer, settle)

        try:
            threading.Thread(target=work, name="detached", daemon=True).start()
        except BaseException:  # The system has no thread to give now; its place is there for the next one.
            self._free.release()
            raise
        return await answer

    def _settle(self, answer: "asyncio.Future[T]", settle: Callable[[], None]) -> None:
        self._free.release()
        if not answer.done():  # else nobody waits any more
            settle()
