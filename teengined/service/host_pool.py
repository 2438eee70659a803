"""The pool of host memory: units that wait there for devices with memory of their own, once for all workers of a host.

    empty ──claim──> filling ──sealed──> filled ──nobody claims it──> gone
      ^                 │ its worker went or gave up, and the memory is not sealed
      └─────────────────┘

The daemon owns the memory, so a worker's death frees nothing, and a worker that comes back finds what it had.
"""

import asyncio
import hmac
import os
import secrets
from dataclasses import dataclass, field
from typing import Literal

from teengined.core.errors import InternalError, NotAllowed
from teengined.core.sealed_memory import create_memory, is_sealed
from teengined.protocol.messages import HostPoolStatus
from teengined.protocol.pool_messages import UnitGrant
from teengined.service.host_ledger import HostClaim, HostLedger

__all__ = ["HostPool"]


@dataclass(slots=True, kw_only=True, eq=False)
class _Unit:
    """One unit's memory."""

    size_bytes: int
    descriptor: int
    state: Literal["empty", "filling", "filled"] = "empty"
    filler: object = None
    """Whoever fills it; anything that is the same for one connection."""
    waiting: "list[asyncio.Future[None]]" = field(default_factory=list["asyncio.Future[None]"])

    def move(self, state: Literal["empty", "filling", "filled"], filler: object = None) -> None:
        """Change state, and wake whoever waits for that."""
        self.state, self.filler = state, filler
        waiting, self.waiting = self.waiting, []
        for future in waiting:
            if not future.done():
                future.set_result(None)


class HostPool:
    """Memory by the units' digests. Lives on one event loop; nothing here blocks."""

    def __init__(self, budget_bytes: int) -> None:
        """Start empty."""
        self.ledger = HostLedger(budget_bytes)
        self._units: dict[str, _Unit] = {}
        self._tickets: dict[str, str] = {}
        """Owners by ticket."""

    @property
    def unfilled_bytes(self) -> int:
        """Bytes of claimed units that are yet to be read."""
        return sum(unit.size_bytes for unit in self._units.values() if unit.state != "filled")

    def reserve(self, owner: str, claim: HostClaim) -> str:
        """Make room for a deployment and return the ticket with which its workers ask for it.

        Raises:
            CapacityError: there is no room, or no descriptor; nothing was taken.
        """
        self.ledger.add(owner, claim)
        try:
            for digest, size_bytes in claim.units.items():
                if digest not in self._units:
                    descriptor = create_memory("teengine-unit", size_bytes)
                    self._units[digest] = _Unit(size_bytes=size_bytes, descriptor=descriptor)
        except BaseException:
            self.release(owner)
            raise
        ticket = secrets.token_hex(16)
        self._tickets[ticket] = owner
        return ticket

    def release(self, owner: str) -> None:
        """Let go of what a deployment claims, if anything; memory that nobody else claims is given back."""
        self._tickets = {ticket: known for ticket, known in self._tickets.items() if known != owner}
        for digest in self.ledger.remove(owner):
            if (unit := self._units.pop(digest, None)) is not None:
                os.close(unit.descriptor)
                unit.move("empty")

    def close(self) -> None:
        """Give everything back."""
        for owner in set(self._tickets.values()):
            self.release(owner)

    def claim(self, ticket: str, digest: str, filler: object) -> tuple[UnitGrant, int]:
        """Return where a unit stands, and its descriptor, which stays the pool's. Makes `filler` fill an empty one.

        Raises:
            NotAllowed: the ticket is for no such unit.
        """
        unit = self._find(ticket, digest)
        if unit.state == "empty":
            unit.move("filling", filler)
        if unit.state == "filled":
            return UnitGrant(state="filled", size_bytes=unit.size_bytes), unit.descriptor
        state = "fill" if unit.filler is filler else "busy"
        return UnitGrant(state=state, size_bytes=unit.size_bytes), unit.descriptor

    def note_filled(self, ticket: str, digest: str, filler: object) -> tuple[UnitGrant, int]:
        """Take a unit that `filler` says it has filled. Raises as `claim`, and InternalError: it is not sealed."""
        unit = self._find(ticket, digest)
        if unit.filler is filler:
            if not is_sealed(unit.descriptor):
                raise InternalError("a unit was said to be filled, and is not sealed")
            unit.move("filled")
        return self.claim(ticket, digest, filler)

    def next_change(self, ticket: str, digest: str) -> "asyncio.Future[None]":
        """Return what is done when a unit's state is another one than now. Raises as `claim`.

        No coroutine: one that had yet to begin would miss what changes until it does.
        """
        unit = self._find(ticket, digest)
        changed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        unit.waiting.append(changed)
        return changed

    def abandon(self, filler: object) -> None:
        """Take back what `filler` was to fill: what it sealed is whole, the rest is for the next who asks.

        Half of a unit in it is no matter: whoever fills it writes the same bytes, all of them, before it is sealed.
        """
        for unit in self._units.values():
            if unit.filler is filler:
                unit.move("filled" if is_sealed(unit.descriptor) else "empty")

    def describe(self) -> HostPoolStatus:
        """Return the pool as `teengine status` shows it."""
        units = self._units.values()
        return HostPoolStatus(
            budget_bytes=self.ledger.budget_bytes,
            planned_bytes=self.ledger.taken_bytes,
            filled_bytes=sum(unit.size_bytes for unit in units if unit.state == "filled"),
            num_units=len(self._units),
            unshared_bytes=sum(self.ledger.claim_of(owner).total_bytes for owner in set(self._tickets.values())),
        )

    def _find(self, ticket: str, digest: str) -> _Unit:
        owner = next((known for key, known in self._tickets.items() if hmac.compare_digest(key, ticket)), None)
        if owner is None or digest not in self.ledger.claim_of(owner).units:
            raise NotAllowed("the pool of host memory has no such unit for this ticket", hint="load the model again")
        return self._units[digest]
