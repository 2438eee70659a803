"""A pool of host memory that answers on a real socket, on an event loop in a thread of its own."""

import asyncio
import tempfile
import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from teengined.service.host_ledger import HostClaim
from teengined.service.host_pool import HostPool
from teengined.service.host_pool_socket import HostPoolSocket
from teengined.weights.options import HostPoolAccess

__all__ = ["RunningPool"]

_WAIT_SECONDS = 20


class RunningPool:
    """Serves from its start to the end of the context; the pool itself is reached through `call`."""

    def __init__(self, budget_bytes: int = 1 << 30) -> None:
        self._pool = HostPool(budget_bytes)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def access(self, owner: str, units: dict[str, int], *, is_locked: bool = False) -> HostPoolAccess:
        """Reserve units, bytes by digest, and return how a worker of `owner` comes to them."""
        ticket = self.call(lambda pool: pool.reserve(owner, HostClaim(units=units)))
        return HostPoolAccess(path=self._socket.path, ticket=ticket, is_locked=is_locked)

    def call(self, what: Callable[[HostPool], Any]) -> Any:
        """Return `what(pool)`, called on the pool's own thread."""
        found: Future[Any] = Future()

        def run() -> None:
            try:
                found.set_result(what(self._pool))
            except BaseException as error:  # noqa: BLE001 - the caller's, whatever it is
                found.set_exception(error)

        self._loop.call_soon_threadsafe(run)
        return found.result(_WAIT_SECONDS)

    def __enter__(self) -> Self:
        self._thread.start()
        self._directory = tempfile.TemporaryDirectory(prefix="te-")
        self._socket = HostPoolSocket(self._pool)
        asyncio.run_coroutine_threadsafe(self._open(), self._loop).result(_WAIT_SECONDS)
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        asyncio.run_coroutine_threadsafe(self._socket.close(), self._loop).result(_WAIT_SECONDS)
        self.call(lambda pool: pool.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_WAIT_SECONDS)
        self._loop.close()
        self._directory.cleanup()

    async def _open(self) -> None:
        self._socket.open(Path(self._directory.name) / "memory.sock")
