"""The daemon's side of a real worker process, for tests: starts it, sends it messages, waits for its answers."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import zmq

from teengined.core.device import DeviceSpec
from teengined.core.records import to_mapping
from teengined.protocol.codec import Envelope, decode, encode
from teengined.protocol.worker_messages import WORKER_LIMITS, WORKER_MESSAGES, WorkerError, WorkerHello

__all__ = ["WorkerProcess"]

_WAIT_SECONDS = 60


class WorkerProcess:
    """One worker on its own socket. Killed at the end of the context, if it has not ended by itself."""

    def __init__(self, directory: Path, spec: DeviceSpec) -> None:
        """Start the worker; `hello` is its first message."""
        endpoint = f"ipc://{directory}/{spec.id.replace(':', '')}.sock"
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.bind(endpoint)
        environment = os.environ | {
            "TEENGINE_WORKER_ENDPOINT": endpoint,
            "TEENGINE_WORKER_TOKEN": "a-token",
            "TEENGINE_WORKER_SPEC": json.dumps(to_mapping(spec)),
            "TEENGINE_WORKER_PARENT": str(os.getpid()),
        }
        command = [sys.executable, "-m", "teengined.engine.worker"]
        self.process = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL)
        self._identity = b""
        self.hello: WorkerHello = self.receive(WorkerHello)

    def send(self, message: Any) -> None:
        """Send it an order."""
        frames = encode(Envelope(correlation=0, message=message), WORKER_MESSAGES, WORKER_LIMITS)
        self._socket.send_multipart([self._identity, *frames])

    def receive(self, kind: type[Any]) -> Any:
        """Return its next message of `kind`, or its error; others are passed over."""
        while self._socket.poll(_WAIT_SECONDS * 1000):
            self._identity, *frames = self._socket.recv_multipart()
            message = decode(frames, WORKER_MESSAGES, WORKER_LIMITS).message
            if isinstance(message, kind | WorkerError):
                return message
        raise TimeoutError(f"no {kind.__name__} within {_WAIT_SECONDS} s; the worker's status: {self.process.poll()}")

    def __enter__(self) -> Self:
        """Use as a context."""
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave no process behind."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self._socket.close(linger=0)
        self._context.term()
