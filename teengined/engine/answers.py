"""What the last stage answers for a step: drawn tokens, log-probabilities of prompts, pooled vectors.

A sequence whose numbers are none, whatever was wanted of it, gets a fault for a token and nothing else.

Shape suffixes: W wanted rows, V vocabulary, T tokens, D model width.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch

from teengined.core.errors import InternalError, NumericalFault
from teengined.core.request import Goal
from teengined.engine.sampler import Sampler, SampleRow, fault_of
from teengined.models.stage_model import Head
from teengined.protocol.worker_messages import (
    PooledVector,
    PromptLogprobs,
    RunStep,
    SampledToken,
    SequenceOpen,
    SequencePart,
)

__all__ = ["Answerer", "Answers"]

# Logits held at a time: 64 rows of a vocabulary of 128k are 32 MiB in fp32, whatever a prompt's length.
_MAX_LOGITS_ROWS = 64

_Drawn = list[tuple[int, SampleRow]]
"""Rows of the step with what is drawn from them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """As `StepDone` tells them."""

    tokens: tuple[SampledToken, ...] = ()
    prompt_logprobs: tuple[PromptLogprobs, ...] = ()
    vectors: tuple[PooledVector, ...] = ()


@dataclass(slots=True, kw_only=True)
class _State:
    """What is kept of a sequence between its parts."""

    opened: SequenceOpen
    pending_logits_1V: torch.Tensor | None = None
    """Of the last token of a part whose successor the next part brings; on the CPU."""
    pending_position: int = -1
    """The successor's position."""
    sum_D: torch.Tensor | None = None
    """fp32; of the hidden states so far."""
    num_summed: int = 0


class Answerer:
    """Reads the head for the sequences that want something of it, and remembers what spans several parts."""

    def __init__(self, sampler: Sampler) -> None:
        """Draw with `sampler`, which from now on is told of every sequence here."""
        self._sampler = sampler
        self._states: dict[int, _State] = {}

    def apply(self, step: RunStep) -> None:
        """Forget the closed sequences and get to know the opened ones."""
        for sequence_id in step.closed:
            if self._states.pop(sequence_id, None) is not None:
                self._sampler.close(sequence_id)
        for opened in step.opened:
            self._states[opened.sequence_id] = _State(opened=opened)
            self._sampler.open(opened)

    def answer(self, step: RunStep, head: Head) -> Answers:
        """Return what the step's parts want. Logits are computed for rows that somebody wants, and no others."""
        first_rows = _first_rows(step.parts)
        parts = list(zip(step.parts, first_rows, strict=True))
        drawn = tuple(self._draw(parts, head))
        told, faults = list[PromptLogprobs | PooledVector](), dict[int, SampledToken]()
        for part, row in parts:
            try:
                told += (*self._score(part, row, head), *self._pool(part, row, head))
            except NumericalFault as error:
                faults[part.sequence_id] = fault_of(part.sequence_id, error)
        return Answers(
            tokens=(*(token for token in drawn if token.sequence_id not in faults), *faults.values()),
            prompt_logprobs=tuple(each for each in told if isinstance(each, PromptLogprobs)),
            vectors=tuple(each for each in told if isinstance(each, PooledVector)),
        )

    def shutdown(self) -> None:
        """End the sampler's threads."""
        self._sampler.shutdown()

    def _draw(self, parts: Sequence[tuple[SequencePart, int]], head: Head) -> Iterable[SampledToken]:
        for block in _blocks([_drawn_rows(part, row) for part, row in parts if part.sample]):
            logits_WV = head.logits([row for row, _ in block]).cpu()
            yield from self._sampler.sample([wanted for _, wanted in block], logits_WV)

    def _score(self, part: SequencePart, first_row: int, head: Head) -> Iterable[PromptLogprobs]:
        """Tell of the prompt tokens whose logits are there: the row at position p is about the token at p + 1.

        The last row of a part is kept for the part that brings the token it is about.

        Raises:
            NumericalFault: a row has no log-probabilities.
        """
        state = self._states[part.sequence_id]
        opened, end = state.opened, part.start_position + len(part.token_ids)
        if opened.goal is not Goal.SCORE and opened.sampling.prompt_logprobs is None:
            return
        told: list[PromptLogprobs] = []
        pending, state.pending_logits_1V = state.pending_logits_1V, None
        if pending is not None and state.pending_position == part.start_position:
            told.append(self._tell(part.sequence_id, part.start_position, part.token_ids[:1], pending))
        start = max(part.start_position, max(1, opened.score_start) - 1)
        last = min(end, opened.num_prompt_tokens - 1)
        for first in range(start, last, _MAX_LOGITS_ROWS):
            positions = range(first, min(first + _MAX_LOGITS_ROWS, last))
            logits_WV = head.logits([first_row + p - part.start_position for p in positions]).cpu()
            if positions[-1] + 1 == end:
                state.pending_logits_1V, state.pending_position = logits_WV[-1:].clone(), end
                logits_WV = logits_WV[:-1]
            ids = part.token_ids[first + 1 - part.start_position :][: logits_WV.shape[0]]
            if ids:
                told.append(self._tell(part.sequence_id, first + 1, ids, logits_WV))
        if told:
            logprobs = tuple(logprob for piece in told for logprob in piece.logprobs)
            yield replace(told[0], logprobs=logprobs)

    def _tell(self, sequence_id: int, position: int, ids: Sequence[int], logits_WV: torch.Tensor) -> PromptLogprobs:
        return self._sampler.prompt_logprobs(sequence_id, position, ids, logits_WV)

    def _pool(self, part: SequencePart, first_row: int, head: Head) -> Iterable[PooledVector]:
        """Return the vector of a prompt that ends here.

        Raises:
            NumericalFault: it has numbers that are not finite.
        """
        state = self._states[part.sequence_id]
        if state.opened.goal is not Goal.EMBED:
            return
        end = part.start_position + len(part.token_ids)
        hidden_TD = head.hidden_TD[first_row : first_row + len(part.token_ids)].float()
        is_done = end == state.opened.num_prompt_tokens
        if state.opened.pooling == "last":
            pooled_D = hidden_TD[-1]
        else:
            pooled_D = self._mean(state, part.start_position, hidden_TD)
        if is_done:
            vector_D = pooled_D.cpu()
            if not vector_D.isfinite().all():
                raise NumericalFault(f"the vector of {end} tokens has numbers that are not finite")
            yield PooledVector(sequence_id=part.sequence_id, vector=vector_D.numpy().astype("<f4").tobytes())

    @staticmethod
    def _mean(state: _State, start_position: int, hidden_TD: torch.Tensor) -> torch.Tensor:
        """Add a part's hidden states to those before it and return the mean so far."""
        if state.num_summed != start_position:
            raise InternalError(
                f"the mean of sequence {state.opened.sequence_id} has {state.num_summed} tokens before {start_position}"
            )
        sum_D = hidden_TD.sum(dim=0)
        state.sum_D = sum_D if state.sum_D is None else state.sum_D + sum_D
        state.num_summed += hidden_TD.shape[0]
        return state.sum_D / state.num_summed


def _drawn_rows(part: SequencePart, first_row: int) -> _Drawn:
    """Return the rows of a part from which tokens are drawn: its last, and the one before each guess."""
    num_known = len(part.token_ids) - part.num_drafted
    return [
        (
            first_row + place - 1,
            SampleRow(
                sequence_id=part.sequence_id,
                position=part.start_position + place,
                drafted_id=part.token_ids[place] if place < len(part.token_ids) else None,
            ),
        )
        for place in range(num_known, len(part.token_ids) + 1)
    ]


def _blocks(parts: Iterable[_Drawn]) -> Iterable[_Drawn]:
    """Put parts together into blocks of few rows. A part is not divided: its rows decide about each other."""
    block: _Drawn = []
    for rows in parts:
        if block and len(block) + len(rows) > _MAX_LOGITS_ROWS:
            yield block
            block = []
        block = [*block, *rows]
    if block:
        yield block


def _first_rows(parts: Sequence[SequencePart]) -> list[int]:
    rows: list[int] = []
    end = 0
    for part in parts:
        rows.append(end)
        end += len(part.token_ids)
    return rows
