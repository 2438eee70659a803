"""Room for KV below the devices: how many slots a deployment gets, how fast they should be, and where its files lie."""

import hashlib
import logging
import shutil
from dataclasses import dataclass
from pathlib import Path

from teengined.core.model import ALIGNMENT_BYTES
from teengined.core.plan import Plan
from teengined.scheduler.limits import SpoolLimits
from teengined.scheduler.restore_costs import Speeds
from teengined.service.planning import Planned
from teengined.service.prefix_manifest import most_blocks
from teengined.service.settings import KvSettings

__all__ = ["SpoolDirectory", "spool_limits"]

logger = logging.getLogger(__name__)

_PRIVATE = 0o700
# Of the host's memory that is free when a model is loaded, its slots may take so much at most.
_HOST_SHARE = 8
# Prompts for which plans predict the time to a first token.
_PREDICTED_TOKENS = 512
# A block is gathered, copied and scattered: each reads and writes its bytes.
_COPIES = 4


def spool_limits(settings: KvSettings, planned: Planned, available_bytes: int) -> SpoolLimits:
    """Return the slots of one deployment on this host, and what is predicted of them."""
    plan = planned.plan
    block_bytes = sum(stage.kv_bytes for stage in plan.stages) // planned.planning.num_blocks
    if block_bytes == 0:
        return SpoolLimits()
    host_bytes = min(settings.host_spool, available_bytes // _HOST_SHARE)
    num_host_slots = host_bytes // block_bytes
    num_disk_slots = settings.disk_spool // block_bytes if num_host_slots else 0
    num_kept = _num_kept(settings, planned)
    if num_kept:  # More than may be kept is not written in the first place.
        num_disk_slots = min(num_disk_slots, num_kept)
    return SpoolLimits(
        num_host_slots=num_host_slots,
        num_disk_slots=num_disk_slots,
        outlives=min(num_kept, num_disk_slots) > 0,
        checkpoint_tokens=settings.checkpoint_tokens if settings.disk_spool else 0,
        checkpoint_seconds=settings.checkpoint_seconds if settings.disk_spool else 0.0,
        max_restored_blocks=max(1, settings.max_restore // block_bytes),
        speeds=_predicted(planned, plan, block_bytes),
    )


def _num_kept(settings: KvSettings, planned: Planned) -> int:
    num_stages, block_tokens = len(planned.plan.stages), planned.planning.block_tokens
    return most_blocks(settings.kept_spool, _slot_bytes(planned), block_tokens, num_stages)


def _slot_bytes(planned: Planned) -> int:
    """Return what a block takes in the files of all stages: whole pages in each."""
    sizes = [stage.kv_bytes // planned.planning.num_blocks for stage in planned.plan.stages]
    return sum(-(-size // ALIGNMENT_BYTES) * ALIGNMENT_BYTES for size in sizes)


def _predicted(planned: Planned, plan: Plan, block_bytes: int) -> Speeds:
    profiles = {profile.device_id: profile for profile in planned.profiles.devices}
    host = planned.profiles.host
    seconds = 0.0
    for stage in plan.stages:
        profile = profiles.get(stage.device_id)
        link = None if profile is None else profile.host_to_device_bytes_per_second
        rate = link or host.memory_read_bytes_per_second / _COPIES
        seconds = max(seconds, stage.kv_bytes / planned.planning.num_blocks / rate)
    return Speeds(
        token_seconds=plan.prefill_seconds / min(_PREDICTED_TOKENS, plan.context_tokens),
        host_block_seconds=seconds,
        disk_block_seconds=block_bytes / host.disk_read_bytes_per_second,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class SpoolDirectory:
    """Where one daemon's spool files lie. Several may share the directory above; a runtime directory has one daemon."""

    root: Path
    runtime_dir: Path

    @property
    def path(self) -> Path:
        """This daemon's own part."""
        return self.root / hashlib.blake2b(str(self.runtime_dir).encode(), digest_size=8).hexdigest()

    def clear(self) -> None:
        """Remove what an earlier daemon of the same runtime directory left behind."""
        shutil.rmtree(self.path, ignore_errors=True)

    def make(self, deployment_id: str) -> Path:
        """Return a deployment's directory, made for its owner only; where that fails, its spool has no disk."""
        path = self.path / deployment_id
        try:
            self.path.mkdir(mode=_PRIVATE, parents=True, exist_ok=True)
            path.mkdir(mode=_PRIVATE, exist_ok=True)
        except OSError as error:
            logger.warning("no directory for spooled KV: %s", error)
        return path

    def remove(self, deployment_id: str) -> None:
        """Remove a deployment's files."""
        shutil.rmtree(self.path / deployment_id, ignore_errors=True)
