"""Parity of SmolLM2 through a private daemon: real processes, real sockets, five placements."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.parity_row import ParityRow, compare
from benchmarks.private_daemon import PrivateDaemon
from benchmarks.smollm2 import PROMPTS, reference_tokens, smollm2_package
from teengined.client import Client
from teengined.core.request import SamplingParams
from teengined.protocol.messages import Generate, LoadModel, PlanModel, TokenChunk

__all__ = ["smollm2_rows"]

_NUM_TOKENS = 64
_CONTEXT_TOKENS = 256


@dataclass(frozen=True, slots=True)
class Placement:
    """A name for the table and the plan that is asked for: share resident, layers per device (0: the rest)."""

    name: str
    resident: float
    layers: tuple[int, ...]


_PLACEMENTS = (
    Placement("all resident", 1.0, (0,)),
    Placement("half streamed", 0.5, (0,)),
    Placement("all streamed", 0.0, (0,)),
    Placement("two stages", 1.0, (15, 0)),
    Placement("three stages, one layer on each of the last two", 1.0, (0, 1, 1)),
)


def smollm2_rows(scratch: Path) -> Iterator[ParityRow]:
    """Yield one row for each placement."""
    store = Path(os.environ.get("TEENGINE_PARITY_STORE") or scratch / "store")
    package_dir, gguf_file = smollm2_package(store, "fp32")
    prompts, reference = reference_tokens(gguf_file, PROMPTS, _NUM_TOKENS)
    with PrivateDaemon(scratch, store, num_devices=3, num_slots=len(prompts)) as daemon:
        for placement in _PLACEMENTS:
            ours = _answers(daemon.client, package_dir.name, placement, prompts)
            yield compare("SmolLM2-135M", placement.name, ours, reference)
