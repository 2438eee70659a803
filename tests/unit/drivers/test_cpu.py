import os
import subprocess
import sys
from pathlib import Path

import pytest

from teengined.core.device import DeviceSpec
from teengined.core.errors import DeviceUnavailable
from teengined_drivers.cpu import CpuDriver
from teengined_drivers.processor import processor_name

PROGRAM = """
import os, sys, threading, torch
from teengined.core.device import DeviceSpec
from teengined_drivers.cpu import CpuDriver
torch.ones(512, 512) @ torch.ones(512, 512)
waiting = threading.Event()
threading.Thread(target=waiting.wait, daemon=True).start()
core = max(os.sched_getaffinity(0))
spec = DeviceSpec(id="cpu:3", driver="cpu", memory_bytes=1, threads=3, cores=(core,))
with CpuDriver().open(spec):
    tasks = os.listdir("/proc/self/task")
    bound = all(os.sched_getaffinity(int(task)) == {core} for task in tasks)
    print(bound, len(tasks) > 1, torch.get_num_threads())
waiting.set()
"""


def test_opening_binds_every_thread_of_the_process_and_sets_their_number() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True, timeout=60)

    assert done.stdout.split() == ["True", "True", "3"]


def test_core_that_is_not_there_is_refused_with_those_that_are() -> None:
    spec = DeviceSpec(id="cpu:0", driver="cpu", memory_bytes=1, cores=(4000,))

    with pytest.raises(DeviceUnavailable, match="cpu:0 cannot run on cores 4000") as raised:
        CpuDriver().open(spec)

    assert str(max(os.sched_getaffinity(0))) in raised.value.hint


def test_device_without_threads_is_refused() -> None:
    with pytest.raises(DeviceUnavailable, match="0 threads"):
        CpuDriver().open(DeviceSpec(id="cpu:0", driver="cpu", memory_bytes=1, threads=0))


def test_several_logical_devices_have_budgets_of_their_own() -> None:
    driver = CpuDriver()
    specs = [DeviceSpec(id=f"cpu:{index}", driver="cpu", memory_bytes=8192) for index in range(2)]

    with driver.open(specs[0]) as first, driver.open(specs[1]) as second:
        first.allocate(8192)

        assert second.memory_info().allocated_bytes == 0
        assert second.allocate(8192).numel() == 8192


def test_cpu_is_named_as_its_maker_writes_it(tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor\t: 0\nmodel name\t: Some CPU @ 2.00GHz\n")

    assert processor_name(cpuinfo) == "Some CPU @ 2.00GHz"
    assert processor_name(tmp_path / "none") == os.uname().machine
