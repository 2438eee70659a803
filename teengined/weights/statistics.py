"""What streaming cost so far, as one value that two moments can be subtracted from each other."""

from dataclasses import dataclass

__all__ = ["StreamStatistics"]


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamStatistics:
    """Counters since `open`; each only grows."""

    streamed_bytes: int = 0
    """Weight bytes moved to the device for streamed groups, and embedding rows and routed experts read from disk."""
    stall_seconds: float = 0.0
    """Time `acquire` blocked because a group was not there yet."""
    reads: int = 0
    """Read requests made of the operating system for streamed bytes."""
    read_seconds: float = 0.0
    """Time with at least one group of the ring being read: streamed bytes / this is the rate that the disk gave."""
    expert_bytes: int = 0
    """Of the streamed bytes, those of routed experts that were asked for."""
    wrong_guess_bytes: int = 0
    """Of the streamed bytes, those of routed experts that were read ahead and then not asked for."""
