"""The CPU side of a worker: which cores it may run on, and how many threads its arithmetic takes."""

import os
from pathlib import Path

from teengined.core.device import DeviceSpec
from teengined.core.errors import DeviceUnavailable

__all__ = ["bind_process", "processor_name"]


def bind_process(spec: DeviceSpec) -> None:
    """Put every thread of this process on the device's cores and give torch its number of threads.

    Raises:
        DeviceUnavailable: a core does not exist or is not ours, or the thread count is none.
    """
    import torch

    if spec.threads < 1:
        raise DeviceUnavailable(f"{spec.id} is given {spec.threads} threads", hint="set its `threads` to 1 or more")
    if spec.cores:
        _bind_threads(spec)
    torch.set_num_threads(spec.threads)


def _bind_threads(spec: DeviceSpec) -> None:
    # Threads start with their parent's cores; those that run already (torch's pool, for one) are moved one by one.
    for task in Path("/proc/self/task").iterdir():
        try:
            os.sched_setaffinity(int(task.name), spec.cores)
        except ProcessLookupError:
            continue  # the thread ended meanwhile
        except OSError as error:
            allowed = ", ".join(map(str, sorted(os.sched_getaffinity(0))))
            raise DeviceUnavailable(
                f"{spec.id} cannot run on cores {', '.join(map(str, spec.cores))}: {error.strerror}",
                hint=f"choose its `cores` among {allowed}",
            ) from error


def processor_name(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Return the CPU's model as its maker writes it, or the machine type where the kernel does not tell."""
    try:
        for line in cpuinfo.read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    except OSError:
        pass
    return os.uname().machine
