"""Real workers in odd circumstances, started by a daemon in the place of its own.

--die-while-filling DIRECTORY   the worker of null:0 writes half of the first unit that it is to fill, makes the
                                file `half`, and dies when there is a file `die`; the next one is as any other.
                                Every other worker makes the file `waiting` when it waits for a unit
--lock-limit BYTES              may lock no more memory than that, not even as root
"""

import argparse
import ctypes
import os
import resource
import signal
import sys
import time
from pathlib import Path

_PR_CAPBSET_DROP, _CAP_IPC_LOCK = 24, 14
_LIMITED = "TEENGINE_TEST_LIMITED"


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--die-while-filling", type=Path)
    parser.add_argument("--lock-limit", type=int)
    chosen = parser.parse_args()
    if chosen.lock_limit is not None and _LIMITED not in os.environ:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (chosen.lock_limit, chosen.lock_limit))
        # What is dropped here is gone with the next program, as which this process goes on.
        ctypes.CDLL(None).prctl(_PR_CAPBSET_DROP, _CAP_IPC_LOCK, 0, 0, 0)
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | {_LIMITED: "1"})
    if chosen.die_while_filling is not None:
        _be_odd(chosen.die_while_filling)
    from teengined.engine.worker import main as serve

    return serve()


def _be_odd(directory: Path) -> None:
    from teengined.weights import host_arena
    from teengined.weights.host_pool_link import Granted, HostPoolLink

    fill, claim = host_arena.fill_memory, HostPoolLink.claim

    def die_half_way(descriptor: int, content: memoryview) -> None:
        if '"null:0"' not in os.environ["TEENGINE_WORKER_SPEC"] or (directory / "half").exists():
            fill(descriptor, content)
            return
        os.pwrite(descriptor, content[: len(content) // 2], 0)
        (directory / "half").touch()
        while not (directory / "die").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGKILL)

    def tell_of_waiting(self: HostPoolLink, digest: str, *, wait: bool = False) -> Granted:
        if wait:
            (directory / "waiting").touch()
        return claim(self, digest, wait=wait)

    host_arena.fill_memory = die_half_way
    HostPoolLink.claim = tell_of_waiting


if __name__ == "__main__":
    sys.exit(main())
