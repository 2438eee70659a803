"""The worker processes: one for each device, started when a deployment needs it, shared by all that use the device.

idle ──ensure──> (backoff) ──> starting ──WorkerHello──> ready ──exit──> idle
└──────── died, late ────────────────> failed ──ensure──> backoff …
"""

import asyncio
import contextlib
import hmac
import json
import logging
import os
import secrets
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import zmq
import zmq.asyncio

from teengined.core.device import DeviceSpec
from teengined.core.errors import ProtocolError, WorkerLost
from teengined.core.records import to_mapping
from teengined.protocol.codec import CodecLimits, Envelope, decode, encode
from teengined.protocol.worker_messages import WORKER_MESSAGES, Ping, Pong, Shutdown, WorkerHello
from teengined.service.process import Launch, Process, describe_exit
from teengined.service.settings import WorkerSettings

__all__ = ["WorkerListener", "WorkerPool", "restart_delay"]

logger = logging.getLogger(__name__)

_SEND_QUEUE = 1000


class WorkerListener(Protocol):
    """A deployment, as the pool sees it."""

    def on_message(self, device_id: str, message: Any) -> None:
        """Take a message of a worker about this deployment."""
        ...

    def on_worker_lost(self, device_id: str, error: WorkerLost) -> None:
        """Learn that a worker is gone, whether or not this deployment used it."""
        ...


@dataclass(slots=True, kw_only=True)
class _Worker:
    spec: DeviceSpec
    state: str = "idle"
    process: Process | None = None
    token: str = ""
    identity: bytes = b""
    hello: "asyncio.Future[None] | None" = None
    starting: "asyncio.Task[None] | None" = None
    stopping: bool = False
    failures: int = 0
    """In a row, without a finished step in between."""
    num_starts: int = 0
    num_losses: int = 0
    """How often it ended without having been asked to."""
    last_pong_seconds: float = 0.0
    problem: str = ""
    exited: asyncio.Event = field(default_factory=asyncio.Event)


def restart_delay(failures: int, settings: WorkerSettings) -> float:
    """Return the seconds to wait before the next start after this many failures in a row; 0 after none."""
    if failures == 0:
        return 0.0
    return min(settings.restart_delay * 2.0 ** min(failures - 1, 32), settings.restart_delay_max)


class WorkerPool:
    """Starts, reaches, watches and stops the workers of one daemon."""

    def __init__(
        self, specs: tuple[DeviceSpec, ...], settings: WorkerSettings, limits: CodecLimits, launch: Launch
    ) -> None:
        """Know the devices; nothing is started before `ensure`."""
        self._workers = {spec.id: _Worker(spec=spec) for spec in specs}
        self._settings = settings
        self._limits = limits
        self._launch = launch
        self._listeners: dict[str, WorkerListener] = {}
        self._socket: Any = None
        self._endpoint = ""
        self._tasks: set[asyncio.Task[None]] = set()

    def open(self, context: zmq.asyncio.Context, directory: Path) -> None:
        """Listen for workers on a socket in `directory`, which only this user may enter."""
        directory.mkdir(mode=0o700, exist_ok=True)
        directory.chmod(0o700)
        path = directory / "control.sock"
        path.unlink(missing_ok=True)
        self._endpoint = f"ipc://{path}"
        self._socket = context.socket(zmq.ROUTER)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        self._socket.setsockopt(zmq.SNDHWM, _SEND_QUEUE)
        self._socket.setsockopt(zmq.MAXMSGSIZE, self._limits.max_message_bytes)
        self._socket.bind(self._endpoint)
        self._spawn(self._receive())
        self._spawn(self._ping())

    async def close(self, *, now: bool = False) -> None:
        """Stop every worker, each within three deadlines (`now`: by SIGKILL at once), and stop listening."""
        await asyncio.gather(*(self._stop(worker, now=now) for worker in self._workers.values()))
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._socket is not None:
            self._socket.close()

    def subscribe(self, deployment_id: str, listener: WorkerListener) -> None:
        """Pass messages about `deployment_id`, and every loss of a worker, to `listener`."""
        self._listeners[deployment_id] = listener

    def unsubscribe(self, deployment_id: str) -> None:
        """Undo `subscribe`."""
        self._listeners.pop(deployment_id, None)

    def state_of(self, device_id: str) -> tuple[str, int | None, str]:
        """Return state, process id and problem of a device's worker."""
        worker = self._workers[device_id]
        return worker.state, worker.process.pid if worker.process else None, worker.problem

    def note_progress(self, device_id: str) -> None:
        """Forget earlier failures: the worker does useful work."""
        self._workers[device_id].failures = 0

    def num_failures(self, device_id: str) -> int:
        """Return how often the worker failed in a row."""
        return self._workers[device_id].failures

    def counts_of(self, device_id: str) -> tuple[int, int]:
        """Return how often a device's worker was started, and how often it was lost."""
        worker = self._workers[device_id]
        return worker.num_starts, worker.num_losses

    async def ensure(self, device_id: str) -> None:
        """Return when the device's worker is ready, starting it where needed, after the wait that failures earned.

        Raises:
            WorkerLost: it died or said nothing in time.
        """
        worker = self._workers[device_id]
        if worker.state == "ready":
            return
        if worker.starting is None or worker.starting.done():
            worker.starting = asyncio.create_task(self._start(worker))
            # Whoever waits gets the error; where everyone has left, nobody needs it.
            worker.starting.add_done_callback(lambda task: task.cancelled() or task.exception())
        await asyncio.shield(worker.starting)

    def send(self, device_id: str, message: Any) -> None:
        """Hand a message to a ready worker. One that is gone or does not read is dealt with by its watcher."""
        self.send_all((device_id,), message)

    def send_all(self, device_ids: Sequence[str], message: Any) -> None:
        """Hand the same message to several workers."""
        frames = encode(Envelope(correlation=0, message=message), WORKER_MESSAGES, self._limits)
        for device_id in device_ids:
            try:
                self._socket.send_multipart([self._workers[device_id].identity, *frames], flags=zmq.DONTWAIT).result()
            except zmq.Again:
                self.kill(device_id, f"left {_SEND_QUEUE} messages unread")
            except zmq.ZMQError as error:
                logger.warning("message %s to %s was not sent: %s", type(message).__name__, device_id, error)

    def kill(self, device_id: str, reason: str) -> None:
        """End a worker that hangs; its deployments learn of it like of any other death."""
        worker = self._workers[device_id]
        if worker.process is not None:
            logger.error("killing the worker of %s (pid %d): it %s", device_id, worker.process.pid, reason)
            worker.problem = f"it {reason}"
            worker.process.send_signal(signal.SIGKILL)

    async def _start(self, worker: _Worker) -> None:
        settings = self._settings
        if delay := restart_delay(worker.failures, settings):
            worker.state = "backoff"
            await asyncio.sleep(delay)
        worker.state, worker.problem, worker.token = "starting", "", secrets.token_hex(32)
        worker.hello = asyncio.get_running_loop().create_future()
        worker.exited = asyncio.Event()
        worker.process = self._launch_or_fail(worker)
        worker.num_starts += 1
        logger.info("started the worker of %s (pid %d)", worker.spec.id, worker.process.pid)
        self._spawn(self._watch(worker, worker.process))
        try:
            async with asyncio.timeout(settings.start_timeout):
                await worker.hello
        except TimeoutError as error:
            self.kill(worker.spec.id, f"said nothing within {settings.start_timeout:g} s")
            with contextlib.suppress(TimeoutError):  # One that hangs in the kernel outlives even SIGKILL.
                async with asyncio.timeout(settings.stop_timeout):
                    await worker.exited.wait()
            raise WorkerLost(f"the worker of {worker.spec.id}: {worker.problem}") from error

    def _launch_or_fail(self, worker: _Worker) -> Process:
        try:
            return self._launch(self._settings.command, self._environment(worker))
        except OSError as error:
            worker.failures += 1
            worker.problem = f"the worker of {worker.spec.id} cannot be started: {error}"
            worker.state = "failed"
            raise WorkerLost(worker.problem, hint="check worker.command and the limits of this host") from error

    def _environment(self, worker: _Worker) -> Mapping[str, str]:
        return {
            "TEENGINE_WORKER_ENDPOINT": self._endpoint,
            "TEENGINE_WORKER_TOKEN": worker.token,
            "TEENGINE_WORKER_SPEC": json.dumps(to_mapping(worker.spec)),
            "TEENGINE_WORKER_PARENT": str(os.getpid()),
        }

    async def _watch(self, worker: _Worker, process: Process) -> None:
        """Wait for the process to end, then tell everyone whom it concerns."""
        status = await process.wait()
        if worker.process is not process:
            return  # Given up long ago; another one has its place.
        was_starting = worker.state == "starting"
        how = worker.problem or describe_exit(status)
        error = WorkerLost(
            f"the worker of {worker.spec.id} (pid {process.pid}) died: {how}",
            hint="send the request again; `journalctl -u teengined` has the worker's last words",
        )
        worker.process, worker.identity, worker.token = None, b"", ""
        worker.exited.set()
        if worker.stopping:
            worker.state = "idle"
            return
        worker.failures += 1
        worker.num_losses += 1
        worker.state, worker.problem = ("failed" if was_starting else "idle"), error.message
        logger.error("%s", error.message)
        if worker.hello is not None and not worker.hello.done():
            worker.hello.set_exception(error)
        for listener in tuple(self._listeners.values()):
            listener.on_worker_lost(worker.spec.id, error)

    async def _stop(self, worker: _Worker, *, now: bool) -> None:
        worker.stopping = True
        if worker.starting is not None and not worker.starting.done():
            worker.starting.cancel()
            await asyncio.gather(worker.starting, return_exceptions=True)
        steps: tuple[Callable[[], None], ...] = (
            lambda: self.send(worker.spec.id, Shutdown()),
            lambda: self._signal(worker, signal.SIGTERM),
            lambda: self._signal(worker, signal.SIGKILL),
        )
        for ask in steps[2 if now else 0 if worker.identity else 1 :]:
            if worker.process is None:
                return
            ask()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._settings.stop_timeout):
                    await worker.exited.wait()

    @staticmethod
    def _signal(worker: _Worker, number: int) -> None:
        if worker.process is not None:
            worker.process.send_signal(number)

    async def _receive(self) -> None:
        while True:
            identity, *frames = await self._socket.recv_multipart()
            try:
                message = decode(frames, WORKER_MESSAGES, self._limits).message
                self._dispatch(identity, message)
            except ProtocolError as error:
                logger.error("a worker's message is unreadable: %s", error.message)  # noqa: TRY400 - no trace of ours
            except Exception:  # One message must never end the loop that hears all workers.
                logger.exception("a worker's message could not be handled")

    def _dispatch(self, identity: bytes, message: Any) -> None:
        if isinstance(message, WorkerHello):
            self._greet(identity, message)
            return
        worker = next((item for item in self._workers.values() if item.identity == identity), None)
        if worker is None:
            return  # Not introduced, or the last words of one that is gone.
        if isinstance(message, Pong):
            worker.last_pong_seconds = time.monotonic()
            return
        listener = self._listeners.get(getattr(message, "deployment_id", ""))
        if listener is not None:
            listener.on_message(worker.spec.id, message)

    def _greet(self, identity: bytes, hello: WorkerHello) -> None:
        worker = self._workers.get(hello.device_id)
        if worker is None or not worker.token or not hmac.compare_digest(worker.token, hello.token):
            logger.warning("someone without a valid token introduced itself as the worker of %.40r", hello.device_id)
            return
        worker.identity, worker.state = identity, "ready"
        worker.last_pong_seconds = time.monotonic()
        if worker.hello is not None and not worker.hello.done():
            worker.hello.set_result(None)

    async def _ping(self) -> None:
        nonce = 0
        while True:
            await asyncio.sleep(self._settings.ping_interval)
            nonce += 1
            for worker in self._workers.values():
                if worker.state != "ready" or worker.stopping:
                    continue
                self.send(worker.spec.id, Ping(nonce=nonce))
                if time.monotonic() - worker.last_pong_seconds > self._settings.ping_timeout:
                    self.kill(worker.spec.id, f"did not answer for {self._settings.ping_timeout:g} s")

    def _spawn(self, work: Any) -> None:
        task: asyncio.Task[None] = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
