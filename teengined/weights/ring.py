"""The streaming ring: a few buffers through which streamed groups pass in circles, read ahead of their use.

    load   STARTED ──reads end──► READ ──copied──► READY ──acquire, compute, release──► gone, its buffers free
                 └──────────── error ───────────► FAILED  (sticky: nothing more is started)

Where host memory is device memory, a READ load is READY and its host buffer is what computes. Elsewhere an uploading
thread copies it to a device buffer first, and the host buffer is free as soon as that copy is done. Every transition
wakes whoever waits for it and starts what it made possible; nobody polls.
"""

import threading
import time
from collections import deque
from collections.abc import Sequence

import torch

from teengined.core.errors import DeadlineExceeded, InternalError, TeengineError
from teengined.interfaces.driver import CopyEvent, Device
from teengined.weights.loads import Load, LoadState, StreamedGroup
from teengined.weights.options import StreamOptions
from teengined.weights.read_clock import ReadClock
from teengined.weights.read_pool import GroupRead, ReadPool, UnitTarget
from teengined.weights.statistics import StreamStatistics

__all__ = ["StreamRing"]


class StreamRing:
    """Reads groups ahead in cyclic order. `acquire`, `release` and `rewind` are for one thread."""

    def __init__(
        self,
        *,
        groups: Sequence[StreamedGroup],
        device: Device,
        pool: ReadPool,
        options: StreamOptions,
        clock: ReadClock,
    ) -> None:
        """Allocate the buffers, each as large as the largest of `groups` (of which there is at least one).

        Raises:
            OutOfDeviceMemory: the budget has no room for them.
        """
        self._groups = tuple(groups)
        self._device = device
        self._pool = pool
        self._timeout_seconds = options.timeout_seconds
        self._num_slots = min(options.ring_slots, len(self._groups))
        self._changed = threading.Condition()
        self._loads: deque[Load] = deque()  # started and not yet released, in order
        self._num_held = 0  # of these, from the left: acquired
        self._next_start = 0
        self._next_acquire = 0
        self._failure: TeengineError | None = None
        self._closed = False
        self._streamed_bytes, self._num_reads, self._stall_seconds = 0, 0, 0.0
        self._clock = clock
        self._host_buffers: list[torch.Tensor] = []
        self._device_buffers: list[torch.Tensor] = []
        self._allocate(max(group.size_bytes for group in self._groups))
        self._host_memory = [buffer.numpy().data for buffer in self._host_buffers]
        self._free_host = deque(range(self._num_slots))
        self._free_device: deque[tuple[int, CopyEvent | None]] = deque((i, None) for i in range(self._num_slots))
        self._uploader: threading.Thread | None = None

    def start(self) -> None:
        """Start prefetching from the first group on."""
        if not self._device.shares_host_memory:
            self._uploader = threading.Thread(target=self._upload_all, name="weights-upload", daemon=True)
            self._uploader.start()
        with self._changed:
            self._pump()

    def acquire(self, group_index: int) -> torch.Tensor:
        """Return the buffer that holds the group, which must be the next in order. Raises as `StageWeights.acquire`."""
        with self._changed:
            group = self._groups[self._next_acquire % len(self._groups)]
            if group.index != group_index:
                raise InternalError(f"group {group_index} acquired out of order: group {group.index} is next")
            load = self._settled_load(group)
            self._num_held += 1
            self._next_acquire += 1
            buffer = self._device_buffers[load.device_slot]
        if load.copied is not None:
            load.copied.wait()
        return buffer

    def release(self, group_index: int) -> None:
        """Free the buffer of the group that was acquired first, and start what fits in it."""
        computed = self._record_compute()
        with self._changed:
            if not self._num_held or self._loads[0].group.index != group_index:
                raise InternalError(f"group {group_index} released out of order")
            self._num_held -= 1
            self._drop_first(computed)

    def rewind(self) -> None:
        """Make the first group the next to be acquired; waits for reads under way, and starts no needless ones."""
        computed = self._record_compute()
        with self._changed:
            target = -(-self._next_acquire // len(self._groups)) * len(self._groups)
            self._next_start = max(self._next_start, target)
            while self._loads and self._loads[0].sequence < target:
                if not self._num_held:
                    self._settled_load(self._loads[0].group)
                self._num_held = max(0, self._num_held - 1)
                self._drop_first(computed)
            self._next_acquire = target

    @property
    def statistics(self) -> StreamStatistics:
        """Return the counters so far."""
        with self._changed:
            return StreamStatistics(
                streamed_bytes=self._streamed_bytes,
                stall_seconds=self._stall_seconds,
                reads=self._num_reads,
                read_seconds=self._clock.seconds,
            )

    def stop(self) -> None:
        """Start no more reads and wake whoever waits. The buffers live until `free`."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if self._uploader is not None:
            self._uploader.join(self._timeout_seconds)

    def free(self) -> None:
        """Give the buffers back, after `stop` and after the pool has ended. Safe to call twice."""
        self._host_memory.clear()
        self._loads.clear()
        copies = [] if self._device.shares_host_memory else self._device_buffers
        for buffer in (*copies, *self._host_buffers):
            self._device.free(buffer)
        self._host_buffers, self._device_buffers = [], []

    def _allocate(self, size_bytes: int) -> None:
        try:
            for _ in range(self._num_slots):
                self._host_buffers.append(self._device.allocate_staging(size_bytes))
                if not self._device.shares_host_memory:
                    self._device_buffers.append(self._device.allocate(size_bytes))
        except TeengineError:
            self.free()
            raise
        if self._device.shares_host_memory:
            self._device_buffers = self._host_buffers

    def _settled_load(self, group: StreamedGroup) -> Load:
        """Wait until the next load to acquire is READY and return it; raise what went wrong instead."""
        started = time.perf_counter()
        arrived = self._changed.wait_for(self._is_settled, self._timeout_seconds)
        self._stall_seconds += time.perf_counter() - started
        names = ", ".join(streamed.unit.id for streamed in group.units[:3])
        if self._closed:
            raise InternalError(f"the weights were closed while waiting for {names}")
        if not arrived:
            raise DeadlineExceeded(
                f"{names} did not arrive within {self._timeout_seconds:g} s", hint="check the disk (`dmesg`)"
            )
        load = self._loads[self._num_held] if len(self._loads) > self._num_held else None
        error = self._failure if load is None else load.error
        if load is None or error is not None:
            assert error is not None, "nothing started and nothing failed"
            raise type(error)(error.message, hint=error.hint) from error
        return load

    def _is_settled(self) -> bool:
        if self._closed:
            return True
        if len(self._loads) > self._num_held:
            return self._loads[self._num_held].state in {LoadState.READY, LoadState.FAILED}
        return self._failure is not None

    def _record_compute(self) -> CopyEvent | None:
        """Return when what is released may be overwritten; None: now. Outside the lock, for it may take its time."""
        return None if self._device.shares_host_memory else self._device.record_compute()

    def _drop_first(self, computed: CopyEvent | None) -> None:
        load = self._loads.popleft()
        if self._device.shares_host_memory:
            self._free_host.append(load.host_slot)
            self._pump()
        else:
            self._free_device.append((load.device_slot, computed))
            self._changed.notify_all()

    def _pump(self) -> None:
        """Start reading into every free host buffer. The caller holds the lock."""
        while self._free_host and self._failure is None and not self._closed:
            group = self._groups[self._next_start % len(self._groups)]
            load = Load(self._next_start, group, self._free_host.popleft())
            self._next_start += 1
            self._loads.append(load)
            memory = self._host_memory[load.host_slot]
            targets = [
                UnitTarget(
                    unit=streamed.unit,
                    memory=memory[streamed.offset_bytes : streamed.offset_bytes + streamed.unit.size_bytes],
                    cached=streamed.cached,
                )
                for streamed in group.units
                if streamed.host_copy is None
            ]
            self._clock.start()
            self._pool.submit(GroupRead(targets, lambda read, load=load: self._on_read(load, read)))

    def _on_read(self, load: Load, read: GroupRead) -> None:
        with self._changed:
            self._num_reads += read.num_reads
            self._clock.stop()
            if read.error is not None:
                self._fail(load, read.error)
            elif self._device.shares_host_memory:
                self._make_ready(load)
            else:
                load.state = LoadState.READ
            self._changed.notify_all()

    def _make_ready(self, load: Load) -> None:
        load.state = LoadState.READY
        self._streamed_bytes += load.group.size_bytes

    def _fail(self, load: Load, error: TeengineError) -> None:
        load.error = error
        load.state = LoadState.FAILED
        self._failure = self._failure or error

    def _upload_all(self) -> None:
        """Copy loads to the device in order, until the ring closes or one failed."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closed or self._next_upload() is not None)
                load = self._next_upload()
                if self._closed or load is None or load.state is LoadState.FAILED:
                    return
                load.device_slot, computed = self._free_device.popleft()
            if not self._upload(load, computed):
                return

    def _next_upload(self) -> Load | None:
        """Return the first load not yet copied, once it is read (or failed) and a device buffer is free."""
        load = next((load for load in self._loads if load.state is not LoadState.READY), None)
        if load is None or load.state is LoadState.STARTED:
            return None
        return load if self._free_device or load.state is LoadState.FAILED else None

    def _upload(self, load: Load, computed: CopyEvent | None) -> bool:
        try:
            if computed is not None:
                computed.synchronize()
            copied = self._copy_units(load)
            with self._changed:
                load.copied = copied
                self._make_ready(load)
                self._changed.notify_all()
            copied.synchronize()
        except Exception as error:  # noqa: BLE001 - a thread that died silently would be a hang for its reader
            known = error if isinstance(error, TeengineError) else InternalError(f"copying weights failed: {error!r}")
            with self._changed:
                self._fail(load, known)
                self._changed.notify_all()
            return False
        with self._changed:
            self._free_host.append(load.host_slot)
            self._pump()
        return True

    def _copy_units(self, load: Load) -> CopyEvent:
        """Queue the copies of a load and return the last one's event, which stands for all: they run in order."""
        target = self._device_buffers[load.device_slot]
        staging = self._host_buffers[load.host_slot]
        event: CopyEvent | None = None
        for streamed in load.group.units:
            start, end = streamed.offset_bytes, streamed.offset_bytes + streamed.unit.size_bytes
            source = staging[start:end] if streamed.host_copy is None else streamed.host_copy()
            event = self._device.copy(source, target[start:end])
        assert event is not None, "a streamed group has a unit"
        return event
