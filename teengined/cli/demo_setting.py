"""The demo's two devices: budgets that together are smaller than the model, and the configuration that says so."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from teengined.core.device import HostProfile
from teengined.core.model import ModelManifest
from teengined.placement.costs import DTYPE_BYTES, workspace_bytes
from teengined.placement.inputs import PlanningInput

__all__ = ["CONTEXT_TOKENS", "DemoDevice", "configuration_text", "demo_devices"]

CONTEXT_TOKENS = 1024
# A short prompt needs no larger chunks, and the workspace grows with them.
STEP_TOKENS = 128
# One person asks; each row of logits would take two rows of the vocabulary from the weights.
LOGIT_ROWS = 4
NUM_DEVICES = 2
# Of the model's bytes, for the weights on one device: 70 % on both, the rest is streamed.
WEIGHTS_SHARE = 0.35
# Of the model's bytes, for all of one device: both together stay below the model whatever KV and workspace take.
BUDGET_SHARE = 0.475
# A staging ring of three layers, and one that stays: a model of few layers needs that much to stream at all.
MIN_GROUPS = 4
MAX_CORES = 8
_ROUND_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoDevice:
    """One device of the private daemon."""

    id: str
    memory_bytes: int
    cores: tuple[int, ...]


def demo_devices(manifest: ModelManifest, cores: Sequence[int]) -> tuple[DemoDevice, ...]:
    """Return two devices that share `cores` and together have less memory than the model has bytes."""
    memory_bytes = _budget_bytes(manifest)
    share = max(1, min(MAX_CORES, len(cores) // NUM_DEVICES))
    return tuple(
        DemoDevice(
            id=f"cpu:{index}",
            memory_bytes=memory_bytes,
            cores=tuple(cores[index * share : (index + 1) * share]) or tuple(cores[:1]),
        )
        for index in range(NUM_DEVICES)
    )


def _budget_bytes(manifest: ModelManifest) -> int:
    context_tokens = min(CONTEXT_TOKENS, manifest.max_context_tokens)
    kv_bytes = context_tokens * sum(manifest.kv_elements_per_token) * DTYPE_BYTES[manifest.compute_dtype]
    weights_bytes = max(WEIGHTS_SHARE * manifest.size_bytes, MIN_GROUPS * _largest_layer_bytes(manifest))
    wanted = weights_bytes + kv_bytes / NUM_DEVICES + _workspace_bytes(manifest, context_tokens)
    budget = int(min(wanted, BUDGET_SHARE * manifest.size_bytes))
    return max(budget - budget % _ROUND_BYTES, budget // 2)


def _largest_layer_bytes(manifest: ModelManifest) -> int:
    sizes = Counter[int]()
    for unit in manifest.units:
        if unit.layer is not None:
            sizes[unit.layer] += unit.size_bytes
    return max(sizes.values(), default=0)


def _workspace_bytes(manifest: ModelManifest, context_tokens: int) -> int:
    """Return what the planner sets aside on the device with the head. It looks at no device for that."""
    planning = PlanningInput(
        manifest=manifest,
        devices=(),
        profiles={},
        host=HostProfile(host="", disk_read_bytes_per_second=1.0, memory_read_bytes_per_second=1.0, memory_bytes=0),
        context_tokens=context_tokens,
        max_step_tokens=STEP_TOKENS,
        max_logit_rows=LOGIT_ROWS,
    )
    return workspace_bytes(planning, manifest.compute_dtype, has_head=True)


def configuration_text(devices: Sequence[DemoDevice], *, runtime_dir: Path, state_dir: Path, store: Path) -> str:
    """Return the private daemon's configuration file."""
    lines = [
        "[daemon]",
        f"runtime_dir = {_text(runtime_dir)}",
        f"state_dir = {_text(state_dir)}",
        'drain_timeout = "2s"',
        "",
        "[store]",
        f"dir = {_text(store)}",
        "",
        "[planning]",
        f"context = {CONTEXT_TOKENS}",
        "num_slots = 1",
        "",
        "[batching]",
        f"max_logit_rows = {LOGIT_ROWS}",
        "",
        "[streaming]",
        f"max_step_tokens = {STEP_TOKENS}",
        'direct_io = "always"',  # the page cache would be a third device, one that no plan knows of
    ]
    for device in devices:
        lines += ["", "[[devices]]", f"id = {_text(device.id)}", f"memory = {device.memory_bytes}"]
        lines += [f"threads = {len(device.cores)}", f"cores = {list(device.cores)}"]
    return "\n".join(lines) + "\n"


def _text(value: object) -> str:
    """Return a TOML basic string; JSON's escapes are a subset of TOML's."""
    return json.dumps(str(value), ensure_ascii=False)
