import asyncio
import os
import signal
import sys

import pytest

from teengined.daemon.supervise import launch


def program(text: str) -> list[str]:
    return [sys.executable, "-c", text]


def test_exit_status_is_told():
    async def story() -> int:
        return await launch(program("raise SystemExit(3)"), {}).wait()

    assert asyncio.run(story()) == 3


def test_killed_process_is_noticed_and_reaped():
    async def story() -> tuple[int, int]:
        process = launch(program("import time; time.sleep(60)"), {})
        process.send_signal(signal.SIGKILL)
        return await process.wait(), process.pid

    status, pid = asyncio.run(story())

    assert status == -signal.SIGKILL
    with pytest.raises(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)


def test_signal_after_the_end_goes_nowhere():
    async def story() -> None:
        process = launch(program("pass"), {})
        await process.wait()
        process.send_signal(signal.SIGKILL)

    asyncio.run(story())


def test_child_gets_its_own_session_its_variables_and_not_systemds(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("NOTIFY_SOCKET", "/run/notify")
    text = (
        "import os, sys; sys.exit(0 if os.getsid(0) == os.getpid() and os.environ['GIVEN'] == 'yes'"
        " and 'NOTIFY_SOCKET' not in os.environ and sys.stdin.read() == '' else 1)"
    )

    async def story() -> int:
        return await launch(program(text), {"GIVEN": "yes"}).wait()

    assert asyncio.run(story()) == 0
