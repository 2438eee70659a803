"""Reads what of a deployment's KV was kept before it began, and writes down what is to be kept after its end."""

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from teengined.kvcache.kept import KeptBlock, without_old
from teengined.scheduler.scheduler import Scheduler
from teengined.service.prefix_manifest import PrefixManifest
from teengined.service.prefix_store import KeptPrefixes, PrefixStore

__all__ = ["PrefixKeeper"]

logger = logging.getLogger(__name__)

# What is not on disk by then is computed again: a slow disk must not hold up an unload for long.
_SAVE_SECONDS = 30.0

_Content = tuple[int, tuple[bytes, ...]]
"""Slot and digests: as long as both stay the same, so do the bytes."""


@dataclass(slots=True, kw_only=True, eq=False)
class PrefixKeeper:
    """Lives on the deployment's event loop; the disk is used in threads."""

    kept: KeptPrefixes
    store: PrefixStore
    scheduler: Scheduler
    num_stages: int
    interval_seconds: float
    problem: str = ""
    """Why the last manifest could not be written."""
    _written_seconds: dict[_Content, float] = field(default_factory=dict[_Content, float])
    _version: tuple[int, int] = (0, 0)
    """Of what is written down, as `Keeping.version`."""
    _is_empty: bool = True
    _writing: asyncio.Lock = field(default_factory=asyncio.Lock)
    _calm: asyncio.Event = field(default_factory=asyncio.Event)
    _task: "asyncio.Task[None] | None" = None

    async def read(self) -> tuple[KeptBlock, ...]:
        """Return what an earlier deployment left, but for what is too old."""
        manifest = await asyncio.to_thread(self.kept.read)
        found = () if manifest is None else manifest.blocks
        blocks = without_old(found, self.store.now(), self.store.max_age_seconds)
        self._written_seconds = {_content(block): block.written_unix_seconds for block in blocks}
        self._is_empty = not blocks
        return blocks

    def begin(self) -> None:
        """Write down from now on what changes, every `interval_seconds`."""
        self._task = asyncio.create_task(self._keep_writing())

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
        """Write down what is on disk, if that has changed."""
        async with self._writing:
            keeping = self.scheduler.keeping
            if keeping.version == self._version:
                return
            self._version, blocks = keeping.version, self._dated(keeping.blocks())
            self._is_empty = not blocks
            self.problem = await asyncio.to_thread(self._write, blocks)

    async def stop(self) -> None:
        """Write down how things are at the end."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self.write()

    async def close(self) -> None:
        """Let others have the files, which no worker uses any more, and let those go that are too many."""
        if self._is_empty:
            await asyncio.to_thread(self.kept.clear)
        self.kept.close()
        await asyncio.to_thread(self.store.trim)

    async def _keep_writing(self) -> None:
        while True:
            await asyncio.sleep(self.interval_seconds)
            try:
                await self.write()
            except Exception:  # What runs must not notice; the next time may be better.
                logger.exception("kept KV could not be written down")

    def _dated(self, blocks: Sequence[KeptBlock]) -> tuple[KeptBlock, ...]:
        """Note when each was first seen, and leave out what is too old by now."""
        now = self.store.now()
        dated = [
            replace(block, written_unix_seconds=self._written_seconds.get(_content(block), now)) for block in blocks
        ]
        self._written_seconds = {_content(block): block.written_unix_seconds for block in dated}
        return without_old(dated, now, self.store.max_age_seconds)

    def _write(self, blocks: tuple[KeptBlock, ...]) -> str:
        return self.kept.write(
            PrefixManifest(
                fingerprint=self.kept.fingerprint,
                block_tokens=self.scheduler.limits.block_tokens,
                num_stages=self.num_stages,
                blocks=blocks,
            )
        )


def _content(block: KeptBlock) -> _Content:
    return block.slot, block.digests
