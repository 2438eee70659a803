"""Where workers ask for memory of the pool: a unix socket in a private directory, since ZeroMQ passes no descriptors.

A connection is one stage that opens. When it ends, whatever it was to fill is given to another.
"""

import asyncio
import logging
import os
import socket
import struct
from pathlib import Path
from typing import Any

from teengined.core.errors import NotAllowed, ProtocolError, TeengineError
from teengined.protocol.pool_messages import (
    MAX_PACKET_BYTES,
    ClaimUnit,
    PoolRefusal,
    UnitFilled,
    UnitGrant,
    pack,
    unpack,
)
from teengined.service.host_pool import HostPool

__all__ = ["HostPoolSocket"]

logger = logging.getLogger(__name__)

# Stages that ask at once: each device opens one for each deployment at most.
_BACKLOG = 128
# Descriptors come back as models are unloaded; meanwhile the log should not fill.
_RETRY_SECONDS = 1.0
# Of SO_PEERCRED: process, user, group.
_CREDENTIALS = struct.Struct("3i")


class HostPoolSocket:
    """Answers workers until `close`. Lives on one event loop."""

    def __init__(self, pool: HostPool) -> None:
        """Serve `pool`; nothing is bound before `open`."""
        self.pool = pool
        self.path = ""
        self._listening: socket.socket | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    def open(self, path: Path) -> None:
        """Listen at `path`, in a directory that only this user may enter."""
        path.unlink(missing_ok=True)
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            listening.bind(str(path))
            listening.listen(_BACKLOG)
        except BaseException:
            listening.close()
            raise
        self._listening, self.path = listening, str(path)
        self._spawn(self._accept(listening))

    async def close(self) -> None:
        """Stop listening and answering."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._listening is not None:
            self._listening.close()
            _remove(self.path)

    async def _accept(self, listening: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, _ = await loop.sock_accept(listening)
            except OSError as error:  # Such as no descriptor left: those that are open go on.
                logger.error("a worker could not connect to the pool of host memory: %s", error)  # noqa: TRY400
                await asyncio.sleep(_RETRY_SECONDS)
                continue
            self._spawn(self._serve(connection))

    async def _serve(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        loop = asyncio.get_running_loop()
        try:
            _check_owner(connection)
            while packet := await loop.sock_recv(connection, MAX_PACKET_BYTES):
                await self._answer(connection, packet)
        except OSError as error:
            logger.warning("the connection of a worker to the pool of host memory broke: %s", error)
        except TeengineError as error:
            logger.warning("a connection to the pool of host memory is closed: %s", error.message)
        finally:
            self.pool.abandon(connection)
            connection.close()

    async def _answer(self, connection: socket.socket, packet: bytes) -> None:
        """Send one answer. It fits, since the worker waits for each; where it does not, the connection ends."""
        try:
            grant, descriptor = await self._grant(connection, unpack(packet))
        except TeengineError as error:
            connection.send(pack(PoolRefusal(code=error.code, message=error.message, hint=error.hint)))
            return
        descriptors = [] if grant.state == "busy" else [descriptor]
        socket.send_fds(connection, [pack(grant)], descriptors)

    async def _grant(self, connection: socket.socket, message: Any) -> tuple[UnitGrant, int]:
        if isinstance(message, UnitFilled):
            return self.pool.note_filled(message.ticket, message.digest, connection)
        if not isinstance(message, ClaimUnit):
            raise ProtocolError(f"a worker asked the pool {type(message).__name__}")
        grant, descriptor = self.pool.claim(message.ticket, message.digest, connection)
        while message.wait and grant.state == "busy":
            await self._wait(connection, message)
            grant, descriptor = self.pool.claim(message.ticket, message.digest, connection)
        return grant, descriptor

    async def _wait(self, connection: socket.socket, message: ClaimUnit) -> None:
        """Wait for the unit, or for the end of whoever waits for it: it sends nothing while it does."""
        changed = self.pool.next_change(message.ticket, message.digest)
        gone = asyncio.ensure_future(_until_readable(connection))
        try:
            done, _ = await asyncio.wait((gone, changed), return_when=asyncio.FIRST_COMPLETED)
        finally:
            for waiting in (gone, changed):
                waiting.cancel()
            await asyncio.gather(gone, changed, return_exceptions=True)
        if gone in done and changed not in done:
            raise ProtocolError("a worker left, or spoke, while it waited for a unit")

    def _spawn(self, work: Any) -> None:
        task: asyncio.Task[None] = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _remove(path: str) -> None:
    Path(path).unlink(missing_ok=True)


def _check_owner(connection: socket.socket) -> None:
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    _, owner, _ = _CREDENTIALS.unpack(raw)
    if owner != os.geteuid():
        raise NotAllowed(f"user {owner} asked for memory of user {os.geteuid()}")


async def _until_readable(connection: socket.socket) -> None:
    """Return when there is something to read, or the other end is gone."""
    loop = asyncio.get_running_loop()
    readable = loop.create_future()
    loop.add_reader(connection, lambda: readable.done() or readable.set_result(None))
    try:
        await readable
    finally:
        loop.remove_reader(connection)
