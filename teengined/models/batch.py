"""What one forward pass runs: parts of several sequences, concatenated along the token axis.

All sequences share one row block in every product, so that a step's weight bytes serve every stream; only attention
looks at them one by one.
"""

from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import dataclass

from teengined.models.kv import SequenceKV

__all__ = ["BatchEntry", "StepBatch", "current_batch"]


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchEntry:
    """One sequence's part: its new tokens take positions `[start_position, start_position + num_tokens)`."""

    kv: SequenceKV
    num_tokens: int
    start_position: int

    @property
    def end_position(self) -> int:
        """Position after the last new token: the length of the context that the last new token sees."""
        return self.start_position + self.num_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class StepBatch:
    """The sequences of a forward pass, in the order of their tokens."""

    entries: tuple[BatchEntry, ...]

    @property
    def num_tokens(self) -> int:
        """Rows of every product in this pass."""
        return sum(entry.num_tokens for entry in self.entries)

    def positions(self) -> list[int]:
        """Return the position of each token in its own sequence."""
        return [position for entry in self.entries for position in range(entry.start_position, entry.end_position)]

    def last_rows(self, wanted: Sequence[bool]) -> list[int]:
        """Return the row of the last token of each sequence whose logits are wanted."""
        rows: list[int] = []
        end = 0
        for entry, is_wanted in zip(self.entries, wanted, strict=True):
            end += entry.num_tokens
            if is_wanted:
                rows.append(end - 1)
        return rows


# Attention is called by transformers with tensors only; this is how it learns where the sequences' borders are.
current_batch: ContextVar[StepBatch] = ContextVar("current_batch")
