"""What a process gives up before it looks at bytes that nobody vouched for: files, network, children, memory.

The reader runs nothing of what it reads. Should it have a mistake all the same, or be made to loop or to grow, it ends
alone: it can open no file and no socket, write nowhere but into its pipe, and the kernel counts its memory and time.
"""

import contextlib
import ctypes
import os
import resource
import signal

__all__ = ["bound_time", "confine"]

_CLONE_NEWUSER = 0x10000000
_CLONE_NEWNET = 0x40000000
_PR_SET_PDEATHSIG = 1
_PR_SET_DUMPABLE = 4
_PR_SET_NO_NEW_PRIVS = 38


def confine(memory_bytes: int) -> None:
    """Give up everything but the descriptors that are open and `memory_bytes` beyond what is used now.

    A network namespace of its own is taken where the kernel lets it; without one, no descriptor is left for a socket.
    """
    _bound_memory(memory_bytes)
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
    libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNET)
    for what in (resource.RLIMIT_NOFILE, resource.RLIMIT_FSIZE, resource.RLIMIT_NPROC, resource.RLIMIT_CORE):
        with contextlib.suppress(OSError, ValueError):  # It may be below that already.
            resource.setrlimit(what, (0, 0))


def bound_time(cpu_seconds: float, wall_seconds: float) -> None:
    """Let the kernel end this process after so much time from now; 0: not any more."""
    signal.setitimer(signal.ITIMER_PROF, cpu_seconds)
    signal.setitimer(signal.ITIMER_REAL, wall_seconds)


def _bound_memory(memory_bytes: int) -> None:
    fd = os.open("/proc/self/statm", os.O_RDONLY)
    try:
        now_bytes = int(os.read(fd, 256).split()[0]) * resource.getpagesize()
    finally:
        os.close(fd)
    resource.setrlimit(resource.RLIMIT_AS, (now_bytes + memory_bytes, now_bytes + memory_bytes))
