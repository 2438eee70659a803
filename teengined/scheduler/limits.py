"""The bounds of one deployment's scheduler."""

import math
from dataclasses import dataclass, field, fields

from teengined.scheduler.restore_costs import Speeds

__all__ = ["SchedulerLimits", "SpoolLimits"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SpoolLimits:
    """Room below the device, and how fast it is thought to be."""

    num_host_slots: int = 0
    """Contents of blocks in host memory."""
    num_disk_slots: int = 0
    """And on disk, by way of host memory."""
    max_restored_blocks: int = 64
    """Copied back in one step: how much longer the step may take for it."""
    checkpoint_tokens: int = 0
    """A running sequence's full blocks are copied below every so many tokens; 0: only what must leave the device."""
    checkpoint_seconds: float = 0.0
    """And every so many seconds, whichever comes first; 0: by tokens only."""
    outlives: bool = False
    """What is on disk is there for the next deployment: full blocks are brought there while nothing runs."""
    speeds: Speeds = field(default_factory=Speeds)
    """As predicted."""

    @property
    def has_checkpoints(self) -> bool:
        """Whether running sequences are copied below before anybody wants their blocks."""
        return self.checkpoint_tokens > 0 or self.checkpoint_seconds > 0


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerLimits:
    """What a scheduler keeps within. Sequences are counted, so that each choice of a request counts."""

    max_running: int
    """Sequences that hold blocks at a time. The stages' buffers are made for as many."""
    max_waiting: int
    """Sequences that wait beyond those that a free place could take: what a client waits for stays foreseeable."""
    max_waiting_tokens: int
    """Tokens to prefill that wait: what the time to a first token is made of. One request alone may always wait."""
    max_owner_waiting: int
    """As `max_waiting`, of one owner: one client's flood leaves room for the others."""
    max_owner_waiting_tokens: int
    """As `max_waiting_tokens`, of one owner."""
    max_step_tokens: int
    """Tokens in a step: how long a step can take, and so the longest pause in an answer beside a long prompt. With
    `max_running` or fewer, prompts may have to wait until some answers end."""
    max_logit_rows: int
    """Rows of a step for which the head gives logits: a vocabulary's worth of memory each. A sampled part takes one,
    scoring one for each scored token of the chunk. With fewer than `max_running`, sequences that decode take turns;
    an eighth of the rows is kept for scoring where some waits."""
    num_blocks: int
    """Of the KV pool."""
    block_tokens: int
    """Tokens in a block. Small ones waste little at a sequence's end, large ones make short tables."""
    num_microbatches: int = 1
    """Steps in flight at most: as many as there are stages keep all of them at work."""
    prefix_cache: bool = True
    """Keep full blocks when their sequences are gone, for others that begin alike."""
    prompt_stretch: float = 0.0
    """How many times longer than without prompts a step may take in which others decode: what a long prompt may do to
    answers that are being read. 0: prompts fill the step."""
    max_drafted: int = 0
    """Tokens guessed ahead of one sequence in one step, which the model verifies all at once; 0: none."""
    lookup_tokens: int = 16384
    """How far back in a sequence a guess is looked up; 0: not at all. Its index takes up to 64 bytes a token."""
    draft_wait_seconds: float = 5.0
    """Longest that a step waits for a draft model's guesses."""
    max_promised_blocks: int = 0
    """KV blocks that all sequences taken in may come to need in the end, counted for each alone; 0: any number. One
    request alone is always taken."""
    spool: SpoolLimits = field(default_factory=SpoolLimits)
    max_idle_owners: int = 1024
    """Owners without requests whose share is remembered; one that is forgotten begins like a new one."""

    def __post_init__(self) -> None:
        """Refuse bounds under which nothing could run."""
        may_be_zero = (
            "max_waiting",
            "max_owner_waiting",
            "max_idle_owners",
            "prefix_cache",
            "prompt_stretch",
            "max_drafted",
            "lookup_tokens",
            "draft_wait_seconds",
        )
        other = (*may_be_zero, "max_promised_blocks", "spool")
        for name in (each.name for each in fields(self) if each.name not in other):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if min(self.max_waiting, self.max_owner_waiting, self.max_idle_owners, self.max_drafted) < 0:
            raise ValueError("max_waiting, max_owner_waiting, max_idle_owners and max_drafted must not be negative")
        if min(self.max_promised_blocks, self.spool.num_host_slots, self.spool.num_disk_slots) < 0:
            raise ValueError("max_promised_blocks and the slots of the spool must not be negative")
        if self.spool.checkpoint_tokens < 0 or not 0 <= self.spool.checkpoint_seconds < math.inf:
            raise ValueError("checkpoint_tokens and checkpoint_seconds must not be negative, nor for ever")
        if not (self.prompt_stretch == 0 or 1 < self.prompt_stretch < math.inf):
            raise ValueError(f"prompt_stretch must be 0 or above 1, got {self.prompt_stretch}")
