import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from teengined.cli.leash import ending_in_order, start_leashed, stop

SLEEP = [sys.executable, "-c", "import time; print('up', flush=True); time.sleep(60)"]
STUBBORN = [
    sys.executable,
    "-c",
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(60)",
]
PARENT = (
    "import subprocess, sys, time\n"
    "from teengined.cli.leash import start_leashed\n"
    f"child = start_leashed({SLEEP!r}, stdout=subprocess.PIPE)\n"
    "child.stdout.readline()\n"
    "print(child.pid, flush=True)\n"
    "time.sleep(60)\n"
)


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_leashed_process_ends_when_its_parent_is_killed():
    parent = subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())

    parent.kill()
    parent.wait(10)
    parent.stdout.close()

    deadline = time.monotonic() + 10
    while is_running(child) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not is_running(child)


@pytest.mark.parametrize(("program", "status"), [(SLEEP, -signal.SIGTERM), (STUBBORN, -signal.SIGKILL)])
def test_stopping_ends_even_the_stubborn(program: list[str], status: int):
    process = start_leashed(program, stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()

    assert stop(process, 0.3) == status
    assert stop(process, 0.3) == status
    process.stdout.close()


def end_in_order(number: signal.Signals, tidied: list[str]) -> None:
    with ending_in_order():
        try:
            os.kill(os.getpid(), number)
            threading.Event().wait(10)  # the signal ends it
        finally:
            os.kill(os.getpid(), number)
            tidied.append("yes")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_unwinds_and_a_second_one_does_not_disturb_it(number: signal.Signals):
    tidied: list[str] = []

    with pytest.raises(SystemExit) as ended:
        end_in_order(number, tidied)

    assert tidied == ["yes"]
    assert ended.value.code == 128 + number


def test_handlers_are_as_before_afterwards():
    before = signal.getsignal(signal.SIGTERM)

    with ending_in_order():
        assert signal.getsignal(signal.SIGTERM) is not before

    assert signal.getsignal(signal.SIGTERM) is before
