"""What one forward pass runs: parts of several sequences, concatenated along the token axis.

All sequences share one row block in every product, so that a step's weight bytes serve every stream; only attention
looks at them by their own contexts. Where those lie in the pool is worked out here, once for a step and not for every
layer. Shape suffixes: T tokens of the batch, R rows of a chunk, B sequences, M blocks, C context, K key-value heads.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from teengined.models.kv import KVPool

__all__ = ["BatchEntry", "ChunkRows", "DecodeRows", "RowContexts", "StepBatch"]

# Contexts gathered at a time, in tokens: with 8 heads of 128 numbers in bf16 that is 32 MiB of keys and values, which
# stay in a large cache between their copy and their use.
_MAX_GATHERED_TOKENS = 8192
# Sequences are attended together while the longest has at most this many times the blocks of the shortest.
_MAX_PADDING = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchEntry:
    """One sequence's part: its new tokens take positions `[start_position, start_position + num_tokens)`."""

    table: Sequence[int]
    """The sequence's blocks; covers at least the new tokens' positions."""
    num_tokens: int
    start_position: int

    @property
    def end_position(self) -> int:
        """Position after the last new token: the length of the context that the last new token sees."""
        return self.start_position + self.num_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeRows:
    """Sequences with one new token each, attended together."""

    rows: tuple[int, ...]
    """Of the batch."""
    rows_B: torch.Tensor
    tables_BM: torch.Tensor
    """int32. Only blocks that the rows look at; padded with a sequence's own block, never another's."""
    num_context: int
    """Where the longest context ends, counted from the table's first token: what is gathered beyond it nobody sees."""
    mask_BC: torch.Tensor | None
    """True where a row may look; None where every row sees all `num_context` tokens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkRows:
    """Consecutive rows of one sequence, attended by themselves."""

    first_row: int
    num_tokens: int
    start_position: int
    table_1M: torch.Tensor
    """int32. Only blocks that the rows look at."""
    base_position: int
    """Position of the table's first token."""
    mask_RC: torch.Tensor | None
    """True where a row may look, over the context from the base to the last row; None: the rows are the context, and
    each sees itself and those before."""

    @property
    def num_context(self) -> int:
        """Tokens from the base to the last row."""
        return self.start_position + self.num_tokens - self.base_position

    @property
    def rows(self) -> slice:
        """Of the batch."""
        return slice(self.first_row, self.first_row + self.num_tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class RowContexts:
    """What rows see, each by itself."""

    rows: torch.Tensor | None
    """Of the batch; None: all of it."""
    tables_RM: torch.Tensor
    """int32: each row's blocks from its sequence's first on; padded with one of them."""
    lengths_R: torch.Tensor
    """int32: tokens that a row sees, its own included."""


class StepBatch:
    """The sequences of a forward pass, in the order of their tokens."""

    def __init__(self, entries: Sequence[BatchEntry], pool: KVPool) -> None:
        """Work out where the new tokens go: at least one of at least one sequence, in blocks that the pool has."""
        self.entries = tuple(entries)
        self.pool = pool
        self._block_tokens = pool.shape.block_tokens
        self._device = pool.torch_device
        positions = [np.arange(entry.start_position, entry.end_position) for entry in self.entries]
        blocks = [
            np.asarray(entry.table)[places // self._block_tokens]
            for entry, places in zip(self.entries, positions, strict=True)
        ]
        self.positions_T = torch.from_numpy(np.concatenate(positions)).to(self._device)
        self._blocks_T = torch.from_numpy(np.concatenate(blocks).astype(np.int64)).to(self._device)
        ends = np.cumsum([entry.num_tokens for entry in self.entries]).tolist()
        self.first_rows = [end - entry.num_tokens for end, entry in zip(ends, self.entries, strict=True)]
        self._write_rows: dict[int, torch.Tensor] = {}
        self._decode_rows: dict[int | None, tuple[DecodeRows, ...]] = {}
        self._chunks: dict[int | None, tuple[ChunkRows, ...]] = {}
        self._contexts: dict[bool, RowContexts] = {}

    @property
    def num_tokens(self) -> int:
        """Rows of every product in this pass."""
        return self.positions_T.numel()

    def write_rows(self, num_heads: int) -> torch.Tensor:
        """Return (T, K): where each new token's heads are stored, counted over blocks, heads and tokens."""
        if num_heads not in self._write_rows:
            heads_K = torch.arange(num_heads, device=self._device)
            runs_TK = self._blocks_T[:, None] * num_heads + heads_K
            places_T1 = (self.positions_T % self._block_tokens)[:, None]
            self._write_rows[num_heads] = runs_TK * self._block_tokens + places_T1
        return self._write_rows[num_heads]

    def decode_rows(self, window: int | None) -> tuple[DecodeRows, ...]:
        """Return the sequences with one new token, grouped by similar length.

        Args:
            window: Tokens that a row sees, itself included; None: all.
        """
        if window not in self._decode_rows:
            indices = [index for index, entry in enumerate(self.entries) if entry.num_tokens == 1]
            spans = {index: self._span(self.entries[index], window) for index in indices}
            groups = _groups(indices, {i: last - first for i, (first, last) in spans.items()}, self._block_tokens)
            self._decode_rows[window] = tuple(self._decode_group(group, spans, window) for group in groups)
        return self._decode_rows[window]

    def chunks(self, window: int | None) -> tuple[ChunkRows, ...]:
        """Return the sequences with several new tokens, one by one; `window` as above."""
        if window not in self._chunks:
            indices = [index for index, entry in enumerate(self.entries) if entry.num_tokens > 1]
            self._chunks[window] = tuple(self._chunk(index, window) for index in indices)
        return self._chunks[window]

    def contexts(self, *, decode_only: bool) -> RowContexts:
        """Return what every row sees, or what the rows of sequences with one new token see."""
        if decode_only not in self._contexts:
            entries = [entry for entry in self.entries if entry.num_tokens == 1 or not decode_only]
            counts = np.array([entry.num_tokens for entry in entries])
            tables_BM = self._tables([(entry, *self._span(entry, None)) for entry in entries])
            lengths = np.concatenate([np.arange(entry.start_position, entry.end_position) + 1 for entry in entries])
            firsts = [
                first for first, entry in zip(self.first_rows, self.entries, strict=True) if entry.num_tokens == 1
            ]
            is_whole = len(entries) == len(self.entries)
            self._contexts[decode_only] = RowContexts(
                rows=None if is_whole else torch.tensor(firsts, device=self._device),
                tables_RM=tables_BM
                if (counts == 1).all()
                else tables_BM.repeat_interleave(torch.from_numpy(counts), 0),
                lengths_R=torch.from_numpy(lengths.astype(np.int32)).to(self._device),
            )
        return self._contexts[decode_only]

    def table(self, index: int) -> torch.Tensor:
        """Return the blocks (1, M) that hold one sequence's context, the new tokens included."""
        entry = self.entries[index]
        return self._tables([(entry, *self._span(entry, None))])

    def _span(self, entry: BatchEntry, window: int | None) -> tuple[int, int]:
        """Return the first and the end of the blocks that a part's rows look at."""
        first_seen = 0 if window is None else max(0, entry.start_position - window + 1)
        return first_seen // self._block_tokens, -(-entry.end_position // self._block_tokens)

    def _tables(self, spans: Sequence[tuple[BatchEntry, int, int]]) -> torch.Tensor:
        width = max(last - first for _, first, last in spans)
        tables = np.empty((len(spans), width), dtype=np.int32)
        for row, (entry, first, last) in zip(tables, spans, strict=True):
            row[: last - first] = entry.table[first:last]
            row[last - first :] = row[last - first - 1]
        return torch.from_numpy(tables).to(self._device)

    def _decode_group(self, group: Sequence[int], spans: dict[int, tuple[int, int]], window: int | None) -> DecodeRows:
        entries = [self.entries[index] for index in group]
        bases = np.array([spans[index][0] * self._block_tokens for index in group])
        ends = np.array([entry.end_position for entry in entries])
        starts = np.zeros_like(ends) if window is None else np.maximum(0, ends - window)
        lengths, starts = ends - bases, starts - bases
        num_context, mask_BC = int(lengths.max()), None
        if lengths.min() < num_context or starts.any():
            places = np.arange(num_context)
            mask = (places < lengths[:, None]) & (places >= starts[:, None])
            mask_BC = torch.from_numpy(mask).to(self._device)
        rows = tuple(self.first_rows[index] for index in group)
        return DecodeRows(
            rows=rows,
            rows_B=torch.tensor(rows, device=self._device),
            tables_BM=self._tables([(self.entries[index], *spans[index]) for index in group]),
            num_context=num_context,
            mask_BC=mask_BC,
        )

    def _chunk(self, index: int, window: int | None) -> ChunkRows:
        entry = self.entries[index]
        first, last = self._span(entry, window)
        base = first * self._block_tokens
        mask_RC = None
        is_cut = window is not None and window < entry.end_position
        if entry.start_position > 0 or is_cut:
            places_C = torch.arange(base, entry.end_position, device=self._device)
            places_R1 = places_C[entry.start_position - base :, None]
            mask_RC = places_C <= places_R1
            mask_RC = mask_RC & (places_C > places_R1 - window) if window is not None else mask_RC
        return ChunkRows(
            first_row=self.first_rows[index],
            num_tokens=entry.num_tokens,
            start_position=entry.start_position,
            table_1M=self._tables([(entry, first, last)]),
            base_position=base,
            mask_RC=mask_RC,
        )


def _groups(indices: Sequence[int], num_blocks: dict[int, int], block_tokens: int) -> list[list[int]]:
    """Return the sequences to attend together: in order if they are of similar length, else sorted by length."""
    counts = [num_blocks[index] for index in indices]
    if not counts:
        return []
    if max(counts) <= _MAX_PADDING * min(counts) and max(counts) * len(counts) * block_tokens <= _MAX_GATHERED_TOKENS:
        return [list(indices)]
    groups: list[list[int]] = []
    for index in sorted(indices, key=lambda index: num_blocks[index]):
        longest = num_blocks[index]
        group = groups[-1] if groups else []
        fits = (len(group) + 1) * longest * block_tokens <= _MAX_GATHERED_TOKENS
        if group and fits and longest <= _MAX_PADDING * num_blocks[group[0]]:
            group.append(index)
        else:
            groups.append([index])
    return groups
