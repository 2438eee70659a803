"""Draws the next token of each sequence from its logits, and keeps what a draw must know of the tokens before it.

Order of application in a row, as in `SamplingParams`: repetition, presence and frequency penalties; logit bias; allowed
and banned ids; end-of-sequence and stop ids before `min_tokens`; the grammar's mask; temperature; then top-k, top-p,
min-p and typical set, each on the probabilities that the one before it left; then one draw in the order of ids. Of
equal logits or probabilities the lower id comes first. Log-probabilities are those of the raw logits.

Rows are drawn one by one, each from nothing but its own logits, its sequence's tokens, and its counter: a result does
not depend on what else is in the batch, nor on how large it is.

Shapes: W = rows, V = vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from teengined.core.errors import NumericalFault, RequestError, TeengineError
from teengined.engine.draws import pick, uniform
from teengined.engine.filters import filtered
from teengined.engine.grammar_masks import GrammarMasks
from teengined.engine.logprobs import token_logprobs
from teengined.engine.sequence_draws import SequenceDraws
from teengined.protocol.worker_messages import PromptLogprobs, SampledToken, SequenceOpen

__all__ = ["SampleRow", "Sampler", "fault_of"]

Logits = npt.NDArray[np.float32]

_FAULTY_LOGITS = "the model's logits at position {} are not numbers, or infinite"
# Below it a float32 has no inverse; so cold a temperature is greedy.
_MIN_TEMPERATURE = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True, slots=True)
class SampleRow:
    """A token to be drawn."""

    sequence_id: int
    position: int
    """Of the token to be drawn: the number of tokens before it."""
    drafted_id: int | None = None
    """The guess on which the sequence's next row rests; None in its last row."""


class Sampler:
    """Draws for the open sequences of a stage, on the stage's one thread."""

    def __init__(self, *, vocab_size: int, package_dir: Path) -> None:
        """Grammars need the package's tokenizer; it is read with the first of them, or at `prepare_grammars`."""
        self._vocab_size = vocab_size
        self._masks = GrammarMasks(vocab_size=vocab_size, package_dir=package_dir)
        self._sequences: dict[int, SequenceDraws] = {}

    def prepare_grammars(self, eos_token_ids: Sequence[int]) -> None:
        """Begin to read the tokenizer in the background, so that no step waits for it: it may take seconds."""
        self._masks.prepare(tuple(sorted(set(eos_token_ids))))  # as sequences are opened with

    def open(self, opened: SequenceOpen) -> None:
        """Begin a sequence, or take it up again after a preemption. What is wrong with it is told when it draws."""
        self._sequences[opened.sequence_id] = SequenceDraws(opened, self._vocab_size, self._masks)

    def close(self, sequence_id: int) -> None:
        """Forget a sequence; an id that is not open is one that never reached this stage."""
        sequence = self._sequences.pop(sequence_id, None)
        if sequence is not None:
            sequence.close()

    def sample(self, rows: Sequence[SampleRow], logits_WV: torch.Tensor) -> tuple[SampledToken, ...]:
        """Return the token of each row, or its fault, in the order of rows, and fold each into its sequence.

        Rows of one sequence are in order of position. Those after a wrong guess or a fault rest on what is not in the
        answer: nothing is drawn from them. So an answer is the same with and without guesses, whatever is folded.

        `logits_WV` is fp32 on the CPU, one row for each of `rows`. Faults are `numerical_fault` (a logit is NaN or
        +inf, or all are -inf), `invalid_request` (what the request asks for leaves no token), or what kept a grammar
        from being followed; they concern their row alone.
        """
        logits = logits_WV.detach().contiguous().numpy()
        drawn: list[SampledToken] = []
        settled: set[int] = set()
        for row, logits_V in zip(rows, logits, strict=True):
            if row.sequence_id not in settled:
                drawn.append(self._sample(row, logits_V))
                if drawn[-1].token_id != row.drafted_id:
                    settled.add(row.sequence_id)
        return tuple(drawn)

    def prompt_logprobs(
        self, sequence_id: int, start_position: int, token_ids: Sequence[int], logits_WV: torch.Tensor
    ) -> PromptLogprobs:
        """Return those of consecutive prompt tokens, the first at `start_position`.

        Row i of `logits_WV` (fp32, CPU) is the one that predicts `token_ids[i]`: the output at the position before.

        Raises:
            NumericalFault: a row has no log-probabilities; it is this sequence's fault alone.
        """
        num_top = self._sequences[sequence_id].params.prompt_logprobs or 0
        logits = logits_WV.detach().contiguous().numpy()
        for offset, logits_V in enumerate(logits):
            if not np.isfinite(logits_V.max()):
                raise NumericalFault(_FAULTY_LOGITS.format(start_position + offset))
        return PromptLogprobs(
            sequence_id=sequence_id,
            start_position=start_position,
            logprobs=tuple(
                token_logprobs(logits_V, token_id, num_top)
                for token_id, logits_V in zip(token_ids, logits, strict=True)
            ),
        )

    def shutdown(self) -> None:
        """Forget all sequences and end the threads. Safe to call twice."""
        for sequence_id in tuple(self._sequences):
            self.close(sequence_id)
        self._masks.shutdown()

    def _sample(self, row: SampleRow, raw_V: Logits) -> SampledToken:
        sequence = self._sequences[row.sequence_id]
        try:
            token_id = self._draw(sequence, row.position, raw_V)
        except TeengineError as error:
            return fault_of(row.sequence_id, error)
        sequence.fold(token_id)
        num_top = sequence.params.logprobs
        logprobs = None if num_top is None else token_logprobs(raw_V, token_id, num_top)
        return SampledToken(sequence_id=row.sequence_id, token_id=token_id, logprobs=logprobs)

    def _draw(self, sequence: SequenceDraws, position: int, raw_V: Logits) -> int:
        if not np.isfinite(raw_V[raw_V.argmax()]):  # the first NaN, if there is one
            raise NumericalFault(_FAULTY_LOGITS.format(position))
        logits_V = sequence.adjusted(position, raw_V)
        best = int(logits_V.argmax())
        largest = logits_V[best]
        if largest == np.inf:
            raise NumericalFault(f"penalties make a logit at position {position} infinite")
        if largest == -np.inf:
            raise RequestError(
                f"no token may be drawn at position {position}",
                hint="allowed and banned ids, min_tokens and the grammar together leave none",
            )
        if sequence.params.greedy:
            return best
        weights_V = _weights(logits_V, float(largest), sequence.params.temperature)
        share = uniform(seed=sequence.params.seed, choice=sequence.choice, position=position)
        return pick(filtered(weights_V, sequence.params), share)


def fault_of(sequence_id: int, error: TeengineError) -> SampledToken:
    """Return what stands in a step's answer for a sequence that fails in it, whatever its goal; the others go on."""
    message = f"{error.message}; {error.hint}" if error.hint else error.message
    return SampledToken(sequence_id=sequence_id, token_id=-1, fault=error.code, message=message)


def _weights(logits_V: Logits, largest: float, temperature: float) -> Logits:
    """Return probabilities up to a factor: the largest is 1."""
    with np.errstate(over="ignore"):  # far below the largest: weight 0
        weights_V = logits_V - np.float32(largest)
        weights_V /= np.float32(max(temperature, _MIN_TEMPERATURE))
    return np.exp(weights_V, out=weights_V)
