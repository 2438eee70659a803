"""The weights of one stage on one device: what stays, what streams, and rows of the embedding. The package's front door."""

from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from teengined.core.errors import InternalError
from teengined.core.model import ModelManifest
from teengined.core.plan import Stage
from teengined.interfaces.driver import Device
from teengined.weights.groups import UnitGroup, group_units
from teengined.weights.options import StreamOptions
from teengined.weights.statistics import StreamStatistics
from teengined.weights.unit_views import UnitTensors

__all__ = ["StageWeights"]


class StageWeights:
    """Owns every weight byte of a stage. `acquire`, `release`, `rewind` and `embedding_rows` are for one thread.

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

    def open(self, on_progress: Callable[[int, int], None] | None = None) -> None:
        """Read and verify the resident units, then start prefetching the streamed ones.

        Args:
            on_progress: called in this thread with (bytes done, bytes to do at load).

        Raises:
            PackageError: a file is missing, shorter than the manifest says, or cannot be read.
            PackageCorrupt: a unit's bytes differ from its digest; the message names it.
            OutOfDeviceMemory: the stage exceeds the device's budget.
        """
        raise InternalError("not open")

    def acquire(self, group_index: int) -> Mapping[str, UnitTensors]:
        """Return the tensors of a group by unit id, waiting until they are on the device.

        Groups are acquired in cyclic order 0 … n-1, 0 … and released in the same order. Tensors of a streamed group
        are valid until its `release`; resident groups return the same mapping every time.

        Raises:
            PackageError: the unit could not be read, or the package changed on disk since `open`.
            PackageCorrupt: a unit differs from its digest (first time it is read); the message names it.
            DeadlineExceeded: it did not arrive within `timeout_seconds`.
        """
        raise InternalError("not open")

    def release(self, group_index: int) -> None:
        """Give the group's ring buffer back; the next prefetch into it starts at once."""
        raise InternalError("not open")

    def rewind(self) -> None:
        """Make group 0 the next one, after a step that ended early. Releases what is held; drops prefetched groups."""
        raise InternalError("not open")

    def embedding_rows(self, parameter: str, ids: torch.Tensor) -> Mapping[str, torch.Tensor]:
        """Return rows `ids` of an embedding parameter by part, on the device, from memory or read from disk by rows."""
        raise InternalError("not open")

    @property
    def notes(self) -> tuple[str, ...]:
        """Return what people should know about how this stage reads (O_DIRECT refused, package removed while open)."""
        return ()

    @property
    def statistics(self) -> StreamStatistics:
        """Return the counters so far."""
        return StreamStatistics()

    def close(self) -> None:
        """End the threads and free the buffers; tensors handed out are gone. Safe to call twice."""
