"""What a step that is over means for each of its sequences: tokens to deliver, things to tell, ends."""

from collections.abc import Iterator

from teengined.core.errors import InternalError, NumericalFault, TeengineError, error_class
from teengined.core.request import FinishReason, Goal
from teengined.protocol.worker_messages import PooledVector, PromptLogprobs, SampledToken
from teengined.scheduler.events import Emit, End, Instruction, StepCompleted, Tell
from teengined.scheduler.sequence import Sequence
from teengined.scheduler.state import Flight, State

__all__ = ["Completion", "end_sequence"]


def end_sequence(
    state: State, sequence: Sequence, *, reason: FinishReason | None = None, error: TeengineError | None = None
) -> End:
    """Forget a sequence and return its end."""
    state.end(sequence)
    return End(sequence_id=sequence.id, reason=reason, error=error, cached_tokens=sequence.cached_tokens or 0)


class Completion:
    """The last stage's answer to one step, by sequence."""

    def __init__(self, state: State, event: StepCompleted, now_seconds: float) -> None:
        """Take the answer in."""
        self._state = state
        self._now_seconds = now_seconds
        self._step = event.step
        self._tokens: dict[int, list[SampledToken]] = {}
        for token in event.tokens:
            self._tokens.setdefault(token.sequence_id, []).append(token)
        self._vectors: dict[int, PooledVector] = {vector.sequence_id: vector for vector in event.vectors}
        self._logprobs: dict[int, list[PromptLogprobs]] = {}
        for told in event.prompt_logprobs:
            self._logprobs.setdefault(told.sequence_id, []).append(told)

    def settle(self, flight: Flight) -> list[Instruction]:
        """Return what follows for a sequence that has not ended since it was sent."""
        sequence = flight.sequence
        tokens = self._tokens.get(sequence.id, [])
        if tokens and tokens[0].fault:
            return self._after_fault(sequence, tokens[0])
        self._state.arrive(sequence, flight.stop)
        instructions: list[Instruction] = [*self._tell_logprobs(sequence), *self._tell_vector(sequence)]
        if flight.samples:
            self._learn_draft(flight, tokens)
            return [*instructions, *self._after_sampling(flight, tokens)]
        return [*instructions, *self._after_chunk(sequence)]

    def _after_fault(self, sequence: Sequence, token: SampledToken) -> list[Instruction]:
        """Fail a sequence that could not be gone on with.

        Numbers that are none may come from a wrong guess: what stands behind a row has weight 0 for it, which leaves
        NaN what it is. So a sequence that had guesses is computed once more without.
        """
        self._state.cache.distrust(sequence.table)
        if token.fault == NumericalFault.code and sequence.has_drafted:
            sequence.may_draft = False
            self._state.preempt(sequence, self._now_seconds)
            return []
        return [self._fail(sequence, error_class(token.fault)(token.message or "the stage gave no reason"))]

    def _learn_draft(self, flight: Flight, tokens: list[SampledToken]) -> None:
        guess = flight.guess
        if guess is not None and tokens and not tokens[-1].fault:
            request_class, num_accepted = flight.sequence.request.request_class, len(tokens) - 1
            self._state.speculation.learn_draft(request_class, guess.source, len(guess.token_ids), num_accepted)

    def _fail(self, sequence: Sequence, error: TeengineError) -> End:
        return end_sequence(self._state, sequence, error=error)

    def _tell_logprobs(self, sequence: Sequence) -> Iterator[Tell]:
        """Tell of prompt tokens in order and once, whatever was computed again after a preemption."""
        request = sequence.request
        for told in self._logprobs.get(sequence.id, ()):
            known = request.told_until - told.start_position
            if 0 <= known < len(told.logprobs) and request.told_until < request.num_prompt_tokens:
                fresh = PromptLogprobs(
                    sequence_id=sequence.id, start_position=request.told_until, logprobs=told.logprobs[known:]
                )
                request.told_until += len(fresh.logprobs)
                yield Tell(sequence_id=sequence.id, prompt_logprobs=fresh)

    def _tell_vector(self, sequence: Sequence) -> Iterator[Tell]:
        vector = self._vectors.get(sequence.id)
        if vector is not None and sequence.request.submitted.goal is Goal.EMBED:
            yield Tell(sequence_id=sequence.id, vector=vector)

    def _lacks_answers(self, sequence: Sequence) -> bool:
        """Whether the prompt was computed without all that was to be told of it."""
        request = sequence.request
        lacks_vector = request.submitted.goal is Goal.EMBED and sequence.id not in self._vectors
        return lacks_vector or request.told_until < request.num_prompt_tokens

    def _after_chunk(self, sequence: Sequence) -> list[Instruction]:
        if sequence.num_remaining or sequence.request.submitted.goal is Goal.GENERATE:
            self._state.make_available(sequence)
            return []
        if self._lacks_answers(sequence):
            return [self._fail(sequence, InternalError(f"the last stage left something out in step {self._step}"))]
        return [end_sequence(self._state, sequence, reason=FinishReason.STOP)]

    def _after_sampling(self, flight: Flight, tokens: list[SampledToken]) -> list[Instruction]:
        sequence, num_most = flight.sequence, 1 + (0 if flight.guess is None else len(flight.guess.token_ids))
        if not 0 < len(tokens) <= num_most or self._lacks_answers(sequence):
            what = f"drew {len(tokens)} of {num_most} tokens" if tokens else "drew no token"
            what = "left log-probabilities out" if self._lacks_answers(sequence) else what
            return [self._fail(sequence, InternalError(f"the last stage {what} in step {self._step}"))]
        instructions: list[Instruction] = []
        for number, token in enumerate(tokens):
            if number:  # The token before this one had been guessed.
                self._state.accept(sequence)
            if token.fault:
                return [*instructions, *self._after_fault(sequence, token)]
            emit, reason = self._emit(sequence, token, drafted=number + 1 < len(tokens))
            instructions.append(emit)
            if reason is not None:  # What was drawn after the end is nobody's.
                return [*instructions, end_sequence(self._state, sequence, reason=reason)]
        self._state.make_available(sequence)
        return instructions

    def _emit(self, sequence: Sequence, token: SampledToken, *, drafted: bool) -> tuple[Emit, FinishReason | None]:
        """Add a token to the answer; return what to deliver, and why the sequence ends with it if it does."""
        sampling = sequence.request.submitted.sampling
        sequence.emitted.append(token.token_id)
        num_emitted = len(sequence.emitted)
        stopped = token.token_id in sequence.request.end_token_ids and num_emitted > sampling.min_tokens
        emit = Emit(sequence_id=sequence.id, token=token, silent=stopped, drafted=drafted)
        if stopped:
            return emit, FinishReason.STOP
        return emit, FinishReason.LENGTH if num_emitted >= sampling.max_tokens else None
