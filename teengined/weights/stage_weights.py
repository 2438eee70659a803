"""The front door: the weights of one stage on one device, what stays, what streams, and rows of the embedding."""

import contextlib
from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path

import torch

from teengined.core.errors import InternalError, PackageError, TeengineError
from teengined.core.model import ModelManifest, UnitKind, UnitSpec
from teengined.core.plan import Stage, Tier
from teengined.interfaces.driver import Device
from teengined.weights.arena import UnitArena
from teengined.weights.digests import DigestCheck
from teengined.weights.embedding_rows import RowsOnDevice, RowsOnDisk
from teengined.weights.eviction_policy import ExpertKey
from teengined.weights.expert_guesses import GuessCounts
from teengined.weights.expert_reads import ExpertReads
from teengined.weights.expert_store import ExpertStore
from teengined.weights.groups import UnitGroup, experts_of, group_units, tiers_of_units
from teengined.weights.host_arena import HostArena
from teengined.weights.loads import StreamedGroup, StreamedUnit
from teengined.weights.options import StreamOptions
from teengined.weights.package_files import PackageFiles
from teengined.weights.policy_choice import CacheReport
from teengined.weights.read_clock import ReadClock
from teengined.weights.read_pool import ReadPool
from teengined.weights.ring import StreamRing
from teengined.weights.statistics import StreamStatistics
from teengined.weights.unit_views import UnitTensors, unit_views

__all__ = ["StageWeights"]

Rows = RowsOnDevice | RowsOnDisk


class StageWeights:
    """Owns every weight byte of a stage. What hands out weights is for one thread.

    Life: construct -> `open` -> rounds of (`acquire` -> compute -> `release`) over the groups in order -> `close`.
    """

    groups: tuple[UnitGroup, ...]

    def __init__(
        self, *, package_dir: Path, manifest: ModelManifest, stage: Stage, device: Device, options: StreamOptions
    ) -> None:
        """Decide what streams. Opens nothing yet.

        Raises:
            PackageError: the plan was made for another package.
        """
        self.groups = group_units(manifest, stage)
        self._package_dir = package_dir
        self._device = device
        self._options = options
        self._tied = dict(manifest.tied_parameters)
        self._experts = experts_of(manifest, stage)
        self._expert_plan = stage.experts
        self._units = _units_of_stage(manifest, stage, self.groups)
        self._tiers = tiers_of_units(stage, self._units)
        self._has_embedding = stage.has_embedding
        self._digests = DigestCheck(enabled=options.verify)
        self._files: PackageFiles | None = None
        self._pool: ReadPool | None = None
        self._arenas: list[UnitArena | HostArena] = []
        self._ring: StreamRing | None = None
        self._clock = ReadClock()
        self._reads: ExpertReads | None = None
        self._store: ExpertStore | None = None
        self._rows: dict[str, Rows] = {}
        self._resident: dict[int, Mapping[str, UnitTensors]] = {}
        self._streamed: dict[int, StreamedGroup] = {}
        self._next_group = 0
        self._expert_error: PackageError | None = None
        self._lost_expert: ExpertKey | None = None

    def open(self, on_progress: Callable[[int, int], None] | None = None) -> None:
        """Read and verify the resident units, then start prefetching the streamed ones.

        Args:
            on_progress: called in this thread with (bytes done, bytes to do at load).

        Raises:
            PackageError: a file is missing, shorter than the manifest says, or cannot be read.
            PackageCorrupt: a unit's bytes differ from its digest; the message names it.
            OutOfDeviceMemory: the stage exceeds the device's budget.
            DeadlineExceeded: the disk gave nothing for `timeout_seconds`.
        """
        try:
            self._open(on_progress or (lambda done, total: None))
        except BaseException:
            self.close()
            raise

    def acquire(self, group_index: int) -> Mapping[str, UnitTensors]:
        """Return the tensors of a group by unit id, waiting until they are on the device.

        Groups are acquired in cyclic order 0 … n-1, 0 … and released in the same order. Tensors of a streamed group
        are valid until its `release`; resident groups return the same mapping every time.

        Raises:
            PackageError: the unit could not be read, or the package changed on disk since `open`.
            PackageCorrupt: a unit differs from its digest (first time it is read); the message names it.
            DeadlineExceeded: it did not arrive within `timeout_seconds`.
        """
        if group_index != self._next_group:
            raise InternalError(f"group {group_index} acquired out of order: group {self._next_group} is next")
        if group_index not in self._resident:
            raise InternalError("the weights are not open")
        tensors = self._resident[group_index]
        if group_index in self._streamed:
            buffer = self._open_ring().acquire(group_index)
            streamed = self._streamed[group_index].units
            tensors = dict(tensors) | {s.unit.id: unit_views(buffer, s.offset_bytes, s.unit) for s in streamed}
        self._next_group = (group_index + 1) % len(self.groups)
        return tensors

    def release(self, group_index: int) -> None:
        """Give the group's ring buffer back; the next prefetch into it starts at once."""
        if group_index in self._streamed:
            self._open_ring().release(group_index)

    def rewind(self) -> None:
        """Make group 0 the next one, after a step that ended early. Releases what is held; drops prefetched groups."""
        if self._ring is not None:
            self._ring.rewind()
        self._next_group = 0

    def embedding_rows(self, parameter: str, ids: torch.Tensor) -> Mapping[str, torch.Tensor]:
        """Return rows `ids` of an embedding parameter by part, on the device, from memory or read from disk by rows.

        Args:
            parameter: as in the model; one that is tied to a stored one stands for it.
            ids: ids_T, integers within the vocabulary, on any device.

        Raises:
            PackageError: the rows could not be read, or the package changed on disk since `open`.
        """
        stored = self._tied.get(parameter, parameter)
        if stored not in self._rows:
            raise InternalError(f"{parameter} is no embedding parameter of this stage")
        return self._rows[stored].rows(stored, ids)

    def fetch_experts(
        self, layer: int, experts: Sequence[int], *, in_order: bool
    ) -> Generator[tuple[int, UnitTensors]]:
        """Yield routed experts of a layer one by one with their tensors, as `ExpertStore.fetch`."""
        if self._store is None:
            raise InternalError("the weights are not open, or hold every expert")
        return self._noting_errors(self._store.fetch(layer, experts, in_order=in_order))

    def lost_expert(self, error: TeengineError) -> ExpertKey | None:
        """Return (layer, expert) of the one that could not be had, if that is what this error says, and all it says.

        The next step may do without it. A group of the ring that cannot be had is one that every step needs.
        """
        return self._lost_expert if error is self._expert_error else None

    def is_guessing_experts(self, num_rows: int) -> bool:
        """Say whether a step of so many rows wants guesses of experts, as `ExpertStore.is_guessing`."""
        return self._store is not None and self._store.is_guessing(num_rows)

    def guess_experts(self, layer: int, experts: Sequence[int]) -> None:
        """Begin to read what a layer will probably ask for, as `ExpertStore.guess`."""
        if self._store is not None:
            self._store.guess(layer, experts)

    def learn_step(self, num_rows: int, seconds: float) -> None:
        """Take in how long a step took, as `ExpertStore.learn_step`."""
        if self._store is not None:
            self._store.learn_step(num_rows, seconds)

    @property
    def expert_guesses(self) -> GuessCounts:
        """Return what became of guesses of experts."""
        return self._store.guesses if self._store is not None else GuessCounts()

    @property
    def expert_reports(self) -> tuple[CacheReport, ...]:
        """Return how each expert cache does; none where every expert is resident."""
        return self._store.reports if self._store is not None else ()

    @property
    def notes(self) -> tuple[str, ...]:
        """Return what people should know about how this stage reads (O_DIRECT refused, package removed while open)."""
        pooled = (note for arena in self._arenas if isinstance(arena, HostArena) for note in arena.notes)
        return (*(self._files.notes if self._files is not None else ()), *pooled)

    @property
    def statistics(self) -> StreamStatistics:
        """Return the counters so far."""
        ring = self._ring.statistics if self._ring is not None else StreamStatistics()
        experts = self._reads.statistics if self._reads is not None else StreamStatistics()
        rows = set(self._rows.values())
        return StreamStatistics(
            streamed_bytes=ring.streamed_bytes + experts.streamed_bytes + sum(row.read_bytes for row in rows),
            stall_seconds=ring.stall_seconds + experts.stall_seconds,
            reads=ring.reads + experts.reads + sum(row.num_reads for row in rows),
            read_seconds=self._clock.seconds,
            expert_bytes=experts.expert_bytes,
            wrong_guess_bytes=experts.wrong_guess_bytes,
        )

    def close(self) -> None:
        """End the threads and free the buffers; tensors handed out are gone. Safe to call twice."""
        self._rows, self._resident = {}, {}
        ring, pool, files = self._ring, self._pool, self._files
        arenas, self._arenas = self._arenas, []
        reads, store = self._reads, self._store
        self._ring, self._pool, self._files = None, None, None
        self._reads, self._store = None, None
        for waited_for in (ring, reads):
            if waited_for is not None:
                waited_for.stop()
        if pool is not None and not pool.close(self._options.timeout_seconds):
            # A read hangs in the kernel and may still write: its memory and file stay until the process ends.
            return
        for buffers in (ring, store):
            if buffers is not None:
                buffers.free()
        for arena in arenas:
            arena.close()
        if files is not None:
            files.close()

    def _noting_errors(self, fetched: Generator[tuple[int, UnitTensors]]) -> Generator[tuple[int, UnitTensors]]:
        try:
            with contextlib.closing(fetched):
                yield from fetched
        except PackageError as error:
            assert self._store is not None, "a store fetches"
            self._expert_error, self._lost_expert = error, self._store.latest
            raise

    def _open(self, on_progress: Callable[[int, int], None]) -> None:
        options = self._options
        units = list(self._units.values())
        self._files = PackageFiles(self._package_dir, units, direct_io=options.direct_io)
        self._pool = ReadPool(
            self._files, num_threads=options.read_threads, chunk_bytes=options.read_chunk_bytes, digests=self._digests
        )
        resident = self._add_arena([u for u in units if self._tiers[u.id] is Tier.DEVICE], on_host=False)
        host = self._add_host_arena([u for u in units if self._rests_in_arena_on_host(u)])
        self._streamed = self._lay_out_streamed(host)
        if self._streamed:
            groups = list(self._streamed.values())
            self._ring = StreamRing(
                groups=groups, device=self._device, pool=self._pool, options=options, clock=self._clock
            )
        self._open_store(self._pool)
        self._load((resident, host), on_progress)
        self._resident = {group.index: self._resident_views(group, resident) for group in self.groups}
        self._open_rows(resident)
        if self._ring is not None:
            self._ring.start()

    def _open_store(self, pool: ReadPool) -> None:
        """Allocate the expert caches, where the plan has any. Nothing is read before it is asked for."""
        if self._expert_plan is None:
            return
        timeout_seconds = self._options.timeout_seconds
        self._reads = ExpertReads(pool, self._clock, timeout_seconds=timeout_seconds)
        self._store = ExpertStore(self._experts, self._expert_plan, self._device, self._reads, self._options)

    def _load(self, arenas: Sequence[UnitArena | HostArena], on_progress: Callable[[int, int], None]) -> None:
        assert self._pool is not None, "opened before"
        total = sum(arena.size_bytes for arena in arenas)
        done = 0

        def on_unit(unit: UnitSpec) -> None:
            nonlocal done
            done += unit.size_bytes
            on_progress(done, total)

        for arena in arenas:
            arena.load(self._pool, timeout_seconds=self._options.timeout_seconds, on_unit=on_unit)

    def _add_arena(self, units: Sequence[UnitSpec], *, on_host: bool) -> UnitArena:
        arena = UnitArena(device=self._device, units=units, on_host=on_host)
        self._arenas.append(arena)
        return arena

    def _add_host_arena(self, units: Sequence[UnitSpec]) -> UnitArena | HostArena:
        """Return where units wait in host memory: shared with other workers where there is a pool."""
        if self._options.host_pool is None:
            return self._add_arena(units, on_host=True)
        arena = HostArena(device=self._device, units=units, options=self._options)
        self._arenas.append(arena)
        return arena

    def _rests_in_arena_on_host(self, unit: UnitSpec) -> bool:
        """Say whether we hold the unit in host memory. Where that is the device's own, the page cache holds it."""
        return self._tiers[unit.id] is Tier.HOST and not self._device.shares_host_memory

    def _lay_out_streamed(self, host: UnitArena | HostArena) -> dict[int, StreamedGroup]:
        groups: dict[int, StreamedGroup] = {}
        for group in self.groups:
            streamed: list[StreamedUnit] = []
            offset = 0
            for unit_id in group.unit_ids:
                if self._tiers[unit_id] is not Tier.DEVICE:
                    unit = self._units[unit_id]
                    streamed.append(self._streamed_unit(unit, offset, host))
                    offset += unit.size_bytes
            if streamed:
                groups[group.index] = StreamedGroup(index=group.index, units=tuple(streamed))
        return groups

    def _streamed_unit(self, unit: UnitSpec, offset_bytes: int, host: UnitArena | HostArena) -> StreamedUnit:
        if unit.id not in host:
            cached = self._tiers[unit.id] is Tier.HOST
            return StreamedUnit(unit=unit, offset_bytes=offset_bytes, cached=cached)

        def host_copy() -> torch.Tensor:
            buffer, start = host.locate(unit.id)
            return buffer[start : start + unit.size_bytes]

        return StreamedUnit(unit=unit, offset_bytes=offset_bytes, host_copy=host_copy)

    def _resident_views(self, group: UnitGroup, resident: UnitArena) -> Mapping[str, UnitTensors]:
        return {
            unit_id: unit_views(*resident.locate(unit_id), self._units[unit_id])
            for unit_id in group.unit_ids
            if unit_id in resident
        }

    def _open_rows(self, resident: UnitArena) -> None:
        assert self._files is not None, "opened before"
        streamed = {s.unit.id for group in self._streamed.values() for s in group.units}
        for unit in self._units.values():
            if not self._has_embedding or unit.kind is not UnitKind.EMBEDDING:
                continue
            rows: Rows
            if unit.id in resident:
                rows = RowsOnDevice(resident, unit)
            else:
                rows = RowsOnDisk(self._files.of(unit), unit, self._device.torch_device)
                if unit.id not in streamed:
                    rows.verify(self._digests)
            self._rows.update(dict.fromkeys((tensor.parameter for tensor in unit.tensors), rows))

    def _open_ring(self) -> StreamRing:
        if self._ring is None:
            raise InternalError("the weights are not open")
        return self._ring


def _units_of_stage(manifest: ModelManifest, stage: Stage, groups: Sequence[UnitGroup]) -> dict[str, UnitSpec]:
    """Return every unit that the stage touches, in the manifest's order."""
    wanted = {unit_id for group in groups for unit_id in group.unit_ids}
    wanted |= {unit.id for unit in experts_of(manifest, stage).values()}
    return {
        unit.id: unit
        for unit in manifest.units
        if unit.id in wanted or (stage.has_embedding and unit.kind is UnitKind.EMBEDDING)
    }
