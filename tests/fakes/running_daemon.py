"""A real daemon process on a private runtime directory, with the fake worker, for one test or one module of tests."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from teengined.client import Client
from teengined.protocol.messages import Loaded, LoadModel, PlanModel
from tests.fakes.byte_package import write_byte_package

__all__ = ["START_SECONDS", "RunningDaemon", "wait_until"]

FAKES = Path(__file__).parent
START_SECONDS = 20.0
CONFIG = """
[daemon]
drain_timeout = "5s"
[worker]
command = [{python!r}, {worker!r}, "--order", {order!r}{worker_arguments}]
ping_interval = "50ms"
ping_timeout = "1s"
restart_delay = "50ms"
start_timeout = "10s"
stop_timeout = "2s"
{worker_settings}
[planning]
measure_command = [{python!r}, {measure!r}]
[speculation]
mode = {speculation!r}
{settings}
[[devices]]
id = "cpu:0"
memory = "64MiB"
threads = 1
[[devices]]
id = "cpu:1"
memory = "64MiB"
threads = 1
"""


def wait_until(condition, what: str, timeout_seconds: float = START_SECONDS) -> None:
    """Poll until `condition()` holds; a failure says what never came."""
    deadline = time.monotonic() + timeout_seconds
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout_seconds:g} s: {what}")
        time.sleep(0.01)


class RunningDaemon:
    """Starts on construction, with a package named `bytes` in its store; `close` ends it and removes its files."""

    def __init__(
        self,
        *,
        worker_arguments: str = "",
        worker_settings: str = "",
        settings: str = "",
        environment: dict[str, str] | None = None,
        speculation: str = "off",
    ) -> None:
        # Without guesses, so that a test knows which step each token takes.
        self.environment = os.environ | (environment or {})
        # Socket paths must be short, and pytest's directories are not.
        self.directory = Path(tempfile.mkdtemp(prefix="te-"))
        self.runtime_dir = self.directory / "run"
        self.endpoint = f"ipc://{self.runtime_dir}/teengined.sock"
        self.order_file = self.directory / "order"
        self.log_file = self.directory / "log"
        self.config_file = self.directory / "teengined.toml"
        self.config_file.write_text(
            CONFIG.format(
                python=sys.executable,
                worker=str(FAKES / "fake_worker.py"),
                measure=str(FAKES / "fake_measure.py"),
                order=str(self.order_file),
                worker_arguments=worker_arguments,
                worker_settings=worker_settings,
                settings=settings,
                speculation=speculation,
            )
        )
        write_byte_package(self.directory / "store")
        self.process = self.start()
        try:
            wait_until(self.is_ready, "the daemon is ready")
        except BaseException:
            sys.stderr.write(self.log())
            self.close()
            raise

    def start(self, *more: str, log_file: Path | None = None) -> "subprocess.Popen[bytes]":
        """Start a daemon on this runtime directory; a second one is meant to fail."""
        command = [sys.executable, "-m", "teengined.daemon.main", "--config", str(self.config_file), *more]
        command += ["--runtime-dir", str(self.runtime_dir), "--state-dir", str(self.directory / "state")]
        command += ["--store", str(self.directory / "store"), "--die-with-parent"]
        with (log_file or self.log_file).open("ab") as log:
            return subprocess.Popen(command, stderr=log, stdout=log, stdin=subprocess.DEVNULL, env=self.environment)

    def is_ready(self) -> bool:
        """Whether the daemon said so."""
        assert self.process.poll() is None, self.log()
        return "ready: " in self.log()

    def log(self) -> str:
        """Return what daemon and workers wrote."""
        return self.log_file.read_text() if self.log_file.exists() else ""

    def client(self, timeout_seconds: float = 20.0) -> Client:
        """Return a new client; the caller closes it."""
        return Client(self.endpoint, timeout_seconds=timeout_seconds)

    def load(self, client: Client, name: str = "", **plan) -> Loaded:
        """Load the package."""
        return client.load(LoadModel(plan=PlanModel(model="bytes", **plan), name=name))

    def terminate(self) -> int:
        """End the daemon by SIGTERM and return its exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=START_SECONDS)

    def close(self) -> None:
        """End the daemon, whatever state it is in."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(timeout=START_SECONDS)
            except subprocess.TimeoutExpired:
                os.kill(self.process.pid, signal.SIGKILL)
                self.process.wait()
        shutil.rmtree(self.directory, ignore_errors=True)

    def __enter__(self) -> Self:
        """Use as a context."""
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End it; a failed test shows the log."""
        if exc is not None:
            sys.stderr.write(self.log())
        self.close()
