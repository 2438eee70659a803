"""A transport: moves activations from one stage to the next.

Guarantees of every transport, held by `tests/conformance/test_transport.py`: messages of one connection arrive whole,
once, in order, bit for bit; a `send` returns only when the tensor may be overwritten; a receiver that is behind holds
its sender back (bounded memory); when an end dies, the other gets `PeerLost`, not silence.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    import torch

__all__ = ["Activation", "Receiver", "Sender", "Transport", "TransportOptions"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TransportOptions:
    """Bounds of one connection."""

    max_message_bytes: int
    """Largest activation; a larger send raises `TransportError` before anything moves."""
    num_slots: int = 2
    """Messages in flight before `send` blocks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Activation:
    """A received message. `tensor` is on the CPU and owned by the receiver of the message."""

    tag: int
    """Chosen by the sender, such as the step number; compared by the receiver."""
    tensor: "torch.Tensor"


class Sender(ABC):
    """The sending end, used by one thread."""

    @abstractmethod
    def send(self, tag: int, tensor: "torch.Tensor", *, timeout_seconds: float) -> None:
        """Move a contiguous tensor to the other end.

        Raises:
            PeerLost: the receiver is gone.
            TransportTimeout: no slot became free in time; nothing was sent.
            TransportError: the tensor exceeds `max_message_bytes`.
        """

    @abstractmethod
    def close(self) -> None:
        """Close this end; the receiver gets what was sent, then `PeerLost`. Safe to call twice."""


class Receiver(ABC):
    """The receiving end, used by one thread."""

    @abstractmethod
    def recv(self, *, timeout_seconds: float) -> Activation:
        """Wait for the next message.

        Raises:
            PeerLost: the sender is gone and nothing of it is left.
            TransportTimeout: nothing came in time.
        """

    @abstractmethod
    def close(self) -> None:
        """Close this end and remove what it left on the host. Safe to call twice."""


class Transport(ABC):
    """Makes connections. The module imports without torch."""

    name: ClassVar[str]
    reach: ClassVar[str]
    """`process` (same process), `host` (same host) or `network`."""

    @abstractmethod
    def listen(self, address: str, options: TransportOptions) -> Receiver:
        """Make `address` reachable and return at once; the sender may connect later.

        `address` is a path prefix in a private directory for transports of reach `process` and `host`.
        """

    @abstractmethod
    def connect(self, address: str, options: TransportOptions, *, timeout_seconds: float) -> Sender:
        """Connect to a listening receiver, waiting for it to appear.

        Raises:
            TransportTimeout: nobody listens there in time.
        """
