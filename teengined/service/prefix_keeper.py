"""Reads what of a deployment's KV was kept before it began, and writes down what is to be kept after its end."""

import asyncio
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from teengined.kvcache.kept import KeptBlock, Snapshot, without_old
from teengined.scheduler.scheduler import Scheduler
from teengined.service.prefix_manifest import PrefixManifest
from teengined.service.prefix_store import KeptPrefixes, PrefixStore

__all__ = ["PrefixKeeper"]

logger = logging.getLogger(__name__)

# What is not on disk by then is computed again: a slow disk must not hold up an unload for long.
_SAVE_SECONDS = 30.0
# A manifest is some megabytes: a disk that takes longer hangs, and the daemon has to stop within systemd's time.
_STOP_SECONDS = 10.0

_Content = tuple[int, tuple[bytes, ...]]
"""Slot and digests: as long as both stay the same, so do the bytes."""


@dataclass(slots=True, kw_only=True, eq=False)
class PrefixKeeper:
    """Lives on the deployment's event loop; the disk is used in threads, and so is the time that much of it takes."""

    kept: KeptPrefixes
    store: PrefixStore
    scheduler: Scheduler
    num_stages: int
    interval_seconds: float
    kernels: tuple[str, ...] = ()
    """What the stages compute with, as they said when they were opened last."""
    problem: str = ""
    """Why the last manifest could not be written."""
    _found: PrefixManifest | None = None
    _written_seconds: dict[_Content, float] = field(default_factory=dict[_Content, float])
    _version: tuple[int, int] | None = (0, 0)
    """Of what is written down, as `Keeping.version`; None: of something else."""
    _stale_seconds: float = math.inf
    """When the first of what is written down will be too old."""
    _is_empty: bool = False
    """Nothing in the files is of use."""
    _writing: asyncio.Lock = field(default_factory=asyncio.Lock)
    _calm: asyncio.Event = field(default_factory=asyncio.Event)
    _task: "asyncio.Task[None] | None" = None

    async def read(self) -> None:
        """Read what an earlier deployment left, and remove what is of no use, before any stage opens its file."""
        self._found = await asyncio.to_thread(self.kept.read)
        self._is_empty = self._found is None

    def begin(self, kernels: tuple[str, ...]) -> tuple[KeptBlock, ...]:
        """Return what was read, but for what is too old or was computed otherwise than the stages, now open, compute.

        What changes from now on is written down every `interval_seconds`.
        """
        found, self._found, self.kernels = self._found, None, kernels
        blocks: tuple[KeptBlock, ...] = ()
        if found is not None and found.kernels != kernels:
            logger.warning("kept KV in %s is not used: it was computed with other kernels", self.kept.path)
            self._version = None
        elif found is not None:
            blocks = without_old(found.blocks, self.store.now(), self.store.max_age_seconds)
            self._note_times(blocks)
            self._note_oldest(blocks)
            self._version = (0, 0) if len(blocks) == len(found.blocks) else None
        self._is_empty = not blocks
        self._task = asyncio.create_task(self._keep_writing())
        return blocks

    def note(self) -> None:
        """Look whether anything is still on its way: something just happened."""
        if self.scheduler.keeping.is_busy:
            self._calm.clear()
        else:
            self._calm.set()

    async def wait_calm(self) -> None:
        """Return when all that can be saved is on disk, or it takes too long."""
        self.note()
        try:
            async with asyncio.timeout(_SAVE_SECONDS):
                await self._calm.wait()
        except TimeoutError:
            logger.warning("KV was not written within %g s; the rest is computed again", _SAVE_SECONDS)

    async def write(self) -> None:
        """Write down what is on disk, if that has changed, or some of it has become too old."""
        async with self._writing:
            keeping, now = self.scheduler.keeping, self.store.now()
            version = keeping.version
            if version == self._version and now <= self._stale_seconds:
                return
            before, self.problem = (
                self.problem,
                await asyncio.to_thread(self._write, keeping.snapshot(), self.kernels, now),
            )
            self._version = None if self.problem else version
            if self.problem not in ("", before):
                logger.warning("%s", self.problem)

    async def stop(self) -> None:
        """Write down how things are at the end. What goes wrong costs computing again, and nothing else."""
        try:
            async with asyncio.timeout(_STOP_SECONDS):
                await self._end_writing()
                await self.write()
        except TimeoutError:
            logger.warning("the manifest of kept KV was not written within %g s", _STOP_SECONDS)
        except Exception:  # The deployment must end all the same.
            logger.exception("kept KV could not be written down")

    async def close(self) -> None:
        """Let others have the files, which no worker uses any more, and let those go that are too many."""
        try:
            async with asyncio.timeout(_STOP_SECONDS):
                await asyncio.to_thread(self._close)
        except TimeoutError:
            logger.warning("kept KV in %s was not given back within %g s", self.kept.path, _STOP_SECONDS)

    async def _end_writing(self) -> None:
        if self._task is not None:
            async with self._writing:  # A write is not cut off: its thread would go on beside the next one.
                self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    async def _keep_writing(self) -> None:
        while True:
            await asyncio.sleep(self.interval_seconds)
            try:
                await self.write()
            except Exception:  # What runs must not notice; the next time may be better.
                logger.exception("kept KV could not be written down")

    def _write(self, found: Snapshot, kernels: tuple[str, ...], now_seconds: float) -> str:
        """Write down what was noted, each with the time when it was first seen, but for what is too old by now."""
        blocks = [
            replace(block, written_unix_seconds=self._written_seconds.get(_content(block), now_seconds))
            for block in found.blocks()
        ]
        self._note_times(blocks)
        recent = without_old(blocks, now_seconds, self.store.max_age_seconds)
        self._note_oldest(recent)
        self._is_empty = not recent
        return self.kept.write(
            PrefixManifest(
                fingerprint=self.kept.fingerprint,
                block_tokens=self.scheduler.limits.block_tokens,
                num_stages=self.num_stages,
                kernels=kernels,
                blocks=recent,
            )
        )

    def _note_times(self, blocks: Sequence[KeptBlock]) -> None:
        self._written_seconds = {_content(block): block.written_unix_seconds for block in blocks}

    def _note_oldest(self, blocks: Sequence[KeptBlock]) -> None:
        oldest = min((block.written_unix_seconds for block in blocks), default=math.inf)
        self._stale_seconds = oldest + self.store.max_age_seconds

    def _close(self) -> None:
        if self._is_empty:
            self.kept.clear()
        self.kept.close()
        self.store.trim()


def _content(block: KeptBlock) -> _Content:
    return block.slot, block.digests
