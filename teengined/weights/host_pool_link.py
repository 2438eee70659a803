"""A stage's connection to the daemon's pool of host memory: one question, one answer, descriptors with them."""

import os
import socket
from types import TracebackType
from typing import Any, Self

from teengined.core.errors import (
    CapacityError,
    DeadlineExceeded,
    ProtocolError,
    TeengineError,
    TransportError,
    error_class,
)
from teengined.protocol.pool_messages import (
    MAX_PACKET_BYTES,
    ClaimUnit,
    PoolRefusal,
    UnitFilled,
    UnitGrant,
    pack,
    unpack,
)
from teengined.weights.options import HostPoolAccess

__all__ = ["Granted", "HostPoolLink"]

Granted = tuple[UnitGrant, int | None]
"""Where a unit stands, and a descriptor of its memory, which is the caller's to close; None while another fills it."""


class HostPoolLink:
    """Connects on construction. For one thread. Units that were to be filled and are not are given back by `close`."""

    def __init__(self, access: HostPoolAccess, *, timeout_seconds: float) -> None:
        """Connect; no answer is waited for longer than `timeout_seconds`.

        Raises:
            TransportError: nobody listens there.
        """
        self._ticket = access.ticket
        self._timeout_seconds = timeout_seconds
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
        self._socket.settimeout(timeout_seconds)
        try:
            self._socket.connect(access.path)
        except OSError as error:
            self._socket.close()
            raise _lost(error) from error

    def claim(self, digest: str, *, wait: bool = False) -> Granted:
        """Ask for a unit's memory. Where `wait`, return when it is filled, or to be filled here.

        Raises:
            TeengineError: the pool refuses.
            TransportError: the daemon is gone.
            DeadlineExceeded: no answer came in time.
            CapacityError: this process has no descriptor left.
        """
        return self._ask(ClaimUnit(ticket=self._ticket, digest=digest, wait=wait))

    def note_filled(self, digest: str) -> Granted:
        """Tell that a unit's memory is filled and sealed. Raises as `claim`."""
        return self._ask(UnitFilled(ticket=self._ticket, digest=digest))

    def close(self) -> None:
        """Disconnect. Safe to call twice."""
        self._socket.close()

    def __enter__(self) -> Self:
        """Use as a context."""
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Disconnect."""
        self.close()

    def _ask(self, question: Any) -> Granted:
        try:
            self._socket.send(pack(question))
            packet, descriptors, flags, _ = socket.recv_fds(self._socket, MAX_PACKET_BYTES, 1, socket.MSG_CMSG_CLOEXEC)
        except TimeoutError as error:
            raise DeadlineExceeded(
                f"the pool of host memory did not answer within {self._timeout_seconds:g} s: another worker that was"
                " to fill a unit has not done so",
                hint="check the disk (`dmesg`), then load again",
            ) from error
        except OSError as error:
            raise _lost(error) from error
        if flags & socket.MSG_CTRUNC:
            raise CapacityError(
                "a worker has no descriptor left for a unit in the pool of host memory",
                hint="raise the limit on open files (LimitNOFILE= in the unit, `ulimit -n` in a shell)",
            )
        descriptor = descriptors[0] if descriptors else None
        try:
            return _checked(packet, descriptor), descriptor
        except BaseException:
            if descriptor is not None:
                os.close(descriptor)
            raise


def _checked(packet: bytes, descriptor: int | None) -> UnitGrant:
    if not packet:
        raise _lost(None)
    answer = unpack(packet)
    if isinstance(answer, PoolRefusal):
        raise error_class(answer.code)(answer.message, hint=answer.hint)
    if not isinstance(answer, UnitGrant) or (descriptor is None) != (answer.state == "busy"):
        raise ProtocolError("the pool of host memory gave an answer that is none")
    return answer


def _lost(error: OSError | None) -> TeengineError:
    why = f": {error.strerror or error}" if error else ""
    return TransportError(f"the daemon's pool of host memory does not answer{why}", hint="load the model again")
