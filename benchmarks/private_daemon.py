"""A daemon of the benchmark's own: fresh runtime directory, given devices, gone at the end whatever happens."""

import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from teengined.client import Client
from teengined.core.device import DeviceSpec
from teengined.core.errors import DaemonUnreachable

__all__ = ["PrivateDaemon"]

_READY_SECONDS = 20.0
_STOP_SECONDS = 20.0


class PrivateDaemon:
    """Starts `teengined` with its own directories; `client` talks to it. Use as a context."""

    client: Client

    def __init__(self, state_dir: Path, store: Path, devices: Sequence[DeviceSpec], settings: str = "") -> None:
        """Write the configuration; `settings` is TOML that goes before the devices."""
        # Socket paths are limited to 107 bytes, so the runtime directory does not go below the caller's.
        self._runtime_dir = Path(tempfile.mkdtemp(prefix="te-"))
        config_file = self._runtime_dir / "teengined.toml"
        config_file.write_text(settings + "\n" + "\n".join(map(_device_table, devices)), "utf-8")
        self.endpoint = f"ipc://{self._runtime_dir}/teengined.sock"
        self.log_file = self._runtime_dir / "log"
        self._command = [
            *(sys.executable, "-m", "teengined.daemon.main", "--die-with-parent"),
            *("--config", str(config_file), "--runtime-dir", str(self._runtime_dir)),
            *("--state-dir", str(state_dir), "--store", str(store)),
        ]

    def __enter__(self) -> Self:
        """Start and wait until it answers."""
        with self.log_file.open("wb") as log:
            self._process = subprocess.Popen(self._command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        self.client = Client(self.endpoint)
        deadline = time.monotonic() + _READY_SECONDS
        while True:
            try:
                self.client.status()
            except DaemonUnreachable:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    raise DaemonUnreachable(f"the daemon did not start:\n{self.log_file.read_text()}") from None
                time.sleep(0.05)
            else:
                return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop it and remove its runtime directory."""
        self.client.close()
        self._process.terminate()
        try:
            self._process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        shutil.rmtree(self._runtime_dir, ignore_errors=True)


def _device_table(spec: DeviceSpec) -> str:
    cores = ", ".join(map(str, spec.cores))
    return (
        f'[[devices]]\nid = "{spec.id}"\nmemory = "{spec.memory_bytes}"\nthreads = {spec.threads}\ncores = [{cores}]\n'
    )
