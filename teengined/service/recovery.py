"""Bringing the stages of a deployment back after some were lost."""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass

from teengined.core.errors import TeengineError
from teengined.service.settings import WorkerSettings
from teengined.service.stages import StageSet
from teengined.service.workers import WorkerPool

__all__ = ["Recovery"]

logger = logging.getLogger(__name__)


@dataclass(slots=True, kw_only=True, eq=False)
class Recovery:
    """Opens the stages again until it works, an error is final, or the workers failed too often."""

    name: str
    stages: StageSet
    pool: WorkerPool
    settings: WorkerSettings
    on_ready: Callable[[], None]
    on_problem: Callable[[str], None]
    """Called with what kept the stages from opening, each time."""
    on_failed: Callable[[], None]
    """Called when they stay closed."""
    _task: "asyncio.Task[None] | None" = None

    def begin(self) -> None:
        """Start, unless it is under way."""
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run())
            self._task.add_done_callback(lambda task: task.cancelled() or task.exception())

    async def cancel(self) -> None:
        """Stop and wait for the end."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        for _ in range(self.settings.max_failures):
            await self.stages.close(self.settings.stop_timeout)
            try:
                await self.stages.open(lambda _: None)
            except TeengineError as error:
                self.on_problem(error.message)
                logger.error("%s cannot be opened again: %s", self.name, error.message)  # noqa: TRY400 - no trace of ours
                failures = max(self.pool.num_failures(device_id) for device_id in self.stages.device_ids)
                if not error.retryable or failures >= self.settings.max_failures:
                    break
            except Exception as error:  # The edge: whoever waits must not wait for a task that died.
                self.on_problem(f"opening its stages failed: {error!r:.200}")
                logger.exception("%s cannot be opened again", self.name)
                break
            else:
                self.on_ready()
                return
        self.on_failed()
