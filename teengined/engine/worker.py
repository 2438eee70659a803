"""The worker process: owns one device, obeys its own daemon only, and dies with it.

Started as `python -m teengined.engine.worker` with environment variables: `TEENGINE_WORKER_ENDPOINT` (the daemon's
private socket), `TEENGINE_WORKER_TOKEN` (proves to the daemon who connects), `TEENGINE_WORKER_SPEC` (the device, as
JSON) and `TEENGINE_WORKER_PARENT` (the daemon's process id; may be absent).
"""

import ctypes
import json
import logging
import os
import signal
import sys
from collections.abc import Mapping
from typing import Any

import psutil

from teengined.core.device import DeviceSpec
from teengined.core.errors import TeengineError, UnknownRequest
from teengined.core.records import from_mapping
from teengined.engine.control_link import ControlLink
from teengined.engine.stage_thread import StageThread
from teengined.interfaces.driver import Device, Driver
from teengined.interfaces.registry import PluginRegistry
from teengined.protocol.worker_messages import (
    WORKER_LIMITS,
    CloseStage,
    OpenStage,
    Ping,
    Pong,
    RunStep,
    Shutdown,
    WorkerError,
    WorkerHello,
)

__all__ = ["Worker", "main"]

logger = logging.getLogger(__name__)

_PR_SET_PDEATHSIG = 1
_CLOSE_SECONDS = 5.0


class Worker:
    """Routes the daemon's orders to the threads of their stages."""

    def __init__(self, device: Device, registry: PluginRegistry, link: ControlLink) -> None:
        """Own the stages that `link` will order; the caller closes device and link."""
        self._device = device
        self._registry = registry
        self._link = link
        self._stages: dict[str, StageThread] = {}

    def handle(self, message: Any) -> None:
        """Obey one message; work goes to its stage's thread, so this returns at once."""
        match message:
            case Ping():
                self._link.send(self._pong(message.nonce))
            case OpenStage():
                self._stages[message.deployment_id] = StageThread(
                    message, self._device, self._registry, self._link.send
                )
            case RunStep() | CloseStage():
                self._submit(message)
            case Shutdown():
                self.close()
                self._link.stop()
            case _:
                logger.error("unexpected message %s", type(message).__name__)

    def close(self) -> None:
        """Close every stage; one that hangs is left to the process's end."""
        for deployment_id, stage in self._stages.items():
            stage.submit(CloseStage(deployment_id=deployment_id))
        for stage in self._stages.values():
            stage.join(_CLOSE_SECONDS)
        self._stages.clear()

    def _submit(self, order: RunStep | CloseStage) -> None:
        stage = self._stages.get(order.deployment_id)
        if stage is None:
            error = UnknownRequest(f"deployment {order.deployment_id} is not open on {self._device.spec.id}")
            step = order.step if isinstance(order, RunStep) else None
            self._link.send(
                WorkerError(
                    deployment_id=order.deployment_id, step=step, code=error.code, message=error.message, hint=""
                )
            )
            return
        stage.submit(order)
        if isinstance(order, CloseStage):
            del self._stages[order.deployment_id]

    def _pong(self, nonce: int) -> Pong:
        return Pong(
            nonce=nonce,
            rss_bytes=psutil.Process().memory_info().rss,
            allocated_bytes=self._device.memory_info().allocated_bytes,
        )


def main(environment: Mapping[str, str] = os.environ) -> int:
    """Run until the daemon says `Shutdown` or dies. Return the exit status."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    _die_with_parent(environment)
    spec = from_mapping(DeviceSpec, json.loads(environment["TEENGINE_WORKER_SPEC"]))
    try:
        registry = PluginRegistry.load()
        driver = registry.driver(spec.driver)
        device = driver.open(spec)
    except TeengineError as error:
        logger.error("%s: %s %s", error.code, error.message, error.hint)  # noqa: TRY400 - for people, without a trace
        return error.exit_code
    with device:
        _serve(device, driver, registry, environment)
    return 0


def _serve(device: Device, driver: Driver, registry: PluginRegistry, environment: Mapping[str, str]) -> None:
    link = ControlLink(environment["TEENGINE_WORKER_ENDPOINT"], WORKER_LIMITS)
    worker = Worker(device, registry, link)
    descriptions = {description.id: description for description in driver.discover()}
    described = descriptions.get(device.spec.id)
    link.send(
        WorkerHello(
            token=environment["TEENGINE_WORKER_TOKEN"],
            device_id=device.spec.id,
            pid=os.getpid(),
            library_versions=described.library_versions if described else (),
        )
    )
    try:
        link.serve(worker.handle)
    finally:
        worker.close()
        link.close()


def _die_with_parent(environment: Mapping[str, str]) -> None:
    """Ask the kernel to kill this process when the daemon's process ends, however it ends.

    The daemon's id comes along, since it may have ended before the kernel was asked.
    """
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if str(os.getppid()) != environment.get("TEENGINE_WORKER_PARENT", str(os.getppid())):
        sys.exit("the daemon that started this worker is gone")


if __name__ == "__main__":
    sys.exit(main())
