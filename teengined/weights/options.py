"""Bounds of streaming, as values, so that every queue, buffer and wait below is set in one place."""

from dataclasses import dataclass

from teengined.core.model import ALIGNMENT_BYTES

__all__ = ["HostPoolAccess", "StreamOptions"]


@dataclass(frozen=True, slots=True, kw_only=True)
class HostPoolAccess:
    """Where units that wait in host memory are shared with other workers."""

    path: str
    """Socket of the daemon's pool."""
    ticket: str
    is_locked: bool = False
    """Keep them from being swapped out, as far as the system allows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamOptions:
    """How weights are read. Checked on construction."""

    read_threads: int = 4
    """Reads in flight at once. 4: fills a SATA or virtual disk; fast NVMe gains up to about 8."""
    read_chunk_bytes: int = 4 * 1024 * 1024
    """Bytes of one read, whole pages. 4 MiB: large enough that system calls cost nothing, small enough to share out."""
    ring_slots: int = 3
    """Buffers of the ring, each as large as the largest streamed group. 3: one computed, one ready, one being read."""
    direct_io: bool = True
    """Read past the page cache (O_DIRECT). False where the package fits in host memory and other programs share it."""
    verify: bool = True
    """Compare each unit with its digest the first time it is read. Costs about a second per gigabyte, once."""
    expert_policy: str = "auto"
    """Which routed experts give way in a cache: `lru`, `lfu`, `pinned`, `sticky`, or `auto`: what suits best."""
    expert_guesses: int = 0
    """Experts of a layer that may be read on its router's guess, before it asks. 0: none ever."""
    host_pool: HostPoolAccess | None = None
    """None: a device with memory of its own keeps such units for itself."""
    timeout_seconds: float = 60.0
    """Longest wait for one group or for threads to end. 60: a disk that needs longer is broken."""

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        if self.read_threads < 1:
            raise ValueError(f"read_threads must be at least 1, got {self.read_threads}")
        if self.read_chunk_bytes < ALIGNMENT_BYTES or self.read_chunk_bytes % ALIGNMENT_BYTES:
            raise ValueError(f"read_chunk_bytes must be whole pages of {ALIGNMENT_BYTES}, got {self.read_chunk_bytes}")
        if self.ring_slots < 1:
            raise ValueError(f"ring_slots must be at least 1, got {self.ring_slots}")
        if self.expert_guesses < 0:
            raise ValueError(f"expert_guesses must be at least 0, got {self.expert_guesses}")
        if not self.timeout_seconds > 0:
            raise ValueError(f"timeout_seconds must be above 0, got {self.timeout_seconds}")
