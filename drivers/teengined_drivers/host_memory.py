"""How much memory this process may really use, in two numbers."""

from pathlib import Path

from teengined.core.memory_limits import read_host_memory

__all__ = ["available_memory_bytes", "memory_limit_bytes"]


def memory_limit_bytes(root: Path = Path("/")) -> int:
    """Return the bytes that this process can ever use. `root` is where `proc` and `sys` are found."""
    return read_host_memory(root).limit_bytes


def available_memory_bytes(root: Path = Path("/")) -> int:
    """Return the bytes that could be allocated now without swapping, being slowed down or killed."""
    return read_host_memory(root).available_bytes
