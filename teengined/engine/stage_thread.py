"""A thread for each opened stage, so that stages of different deployments on one device never wait for each other.

Two deployments may run in opposite directions over the same two devices; on one shared thread each device could wait
for the other's activation for ever.
"""

import logging
import queue
import threading
from collections.abc import Callable
from typing import Any

from teengined.core.errors import InternalError, QueueFull, TeengineError
from teengined.engine.stage import OpenedStage
from teengined.interfaces.driver import Device
from teengined.interfaces.registry import PluginRegistry
from teengined.protocol.worker_messages import (
    CloseStage,
    OpenStage,
    RunStep,
    StageClosed,
    StageOpened,
    StageProgress,
    WorkerError,
)

__all__ = ["StageThread"]

logger = logging.getLogger(__name__)

# The daemon keeps about as many steps in flight as there are stages; this many waiting means that it has lost count.
_MAX_WAITING_ORDERS = 256
# Progress is for people: more often than this a message costs more than it tells.
_PROGRESS_STEP_BYTES = 16 << 20


class StageThread:
    """Obeys the orders for one stage one after another and replies through `reply`, which may be called anywhere."""

    def __init__(
        self, order: OpenStage, device: Device, registry: PluginRegistry, reply: Callable[[Any], None]
    ) -> None:
        """Start the thread; its first act is to open the stage."""
        self._order = order
        self._device = device
        self._reply = reply
        self._stage = OpenedStage(order, device, registry, reply)
        self._waiting: queue.Queue[Any] = queue.Queue(maxsize=_MAX_WAITING_ORDERS)
        self._reported_bytes = 0
        self._thread = threading.Thread(target=self._serve, name=f"stage-{order.deployment_id}", daemon=True)
        self._thread.start()

    def submit(self, order: RunStep | CloseStage) -> None:
        """Queue an order behind those already given."""
        try:
            self._waiting.put_nowait(order)
        except queue.Full:
            step = order.step if isinstance(order, RunStep) else None
            self._fail(QueueFull(f"more than {_MAX_WAITING_ORDERS} orders wait for a stage"), step)

    def join(self, timeout_seconds: float) -> None:
        """Wait for the thread to end after `CloseStage`."""
        self._thread.join(timeout_seconds)

    def _serve(self) -> None:
        self._open()
        while True:
            order = self._waiting.get()
            if isinstance(order, CloseStage):
                self._stage.close()
                self._reply(StageClosed(deployment_id=self._order.deployment_id))
                return
            self._obey(order)

    def _open(self) -> None:
        try:
            self._stage.open(self._progress)
        except Exception as error:  # noqa: BLE001 - the edge: every failure becomes one wire error
            self._fail(error, None)
            return
        self._reply(
            StageOpened(
                deployment_id=self._order.deployment_id,
                stage_index=self._order.stage.index,
                allocated_bytes=self._device.memory_info().allocated_bytes,
                kernels=self._stage.kernels,
            )
        )

    def _obey(self, order: RunStep) -> None:
        try:
            self._reply(self._stage.run(order))
        except Exception as error:  # noqa: BLE001 - the edge: every failure becomes one wire error
            blamed = self._stage.sequences_to_blame(order, error) if isinstance(error, TeengineError) else ()
            self._fail(error, order.step, blamed)

    def _progress(self, done_bytes: int, total_bytes: int) -> None:
        if done_bytes < total_bytes and done_bytes - self._reported_bytes < _PROGRESS_STEP_BYTES:
            return
        self._reported_bytes = done_bytes
        self._reply(
            StageProgress(
                deployment_id=self._order.deployment_id,
                stage_index=self._order.stage.index,
                done_bytes=done_bytes,
                total_bytes=total_bytes,
            )
        )

    def _fail(self, error: Exception, step: int | None, blamed: tuple[int, ...] = ()) -> None:
        if not isinstance(error, TeengineError):
            logger.error("stage %s of %s", self._order.stage.index, self._order.deployment_id, exc_info=error)
            error = InternalError(f"{type(error).__name__} in stage {self._order.stage.index}: {error}")
        self._reply(
            WorkerError(
                deployment_id=self._order.deployment_id,
                step=step,
                code=error.code,
                message=error.message,
                hint=error.hint,
                blamed_ids=blamed,
            )
        )
