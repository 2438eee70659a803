"""One sequence between its submission and its end."""

from dataclasses import dataclass, field

from teengined.interfaces.policy import SequenceView
from teengined.protocol.worker_messages import SequenceStep
from teengined.scheduler.events import Submitted

__all__ = ["Sequence"]


@dataclass(slots=True, kw_only=True)
class Sequence:
    """Counts of a sequence. `num_computed` tokens have their KV on the stages or in the step in flight."""

    submitted: Submitted
    arrived_seconds: float
    running: bool = False
    """Holds a slot."""
    ended: bool = False
    """Its terminal event is out; the slot is held until the step in flight is over."""
    num_computed: int = 0
    emitted: list[int] = field(default_factory=list[int])

    @property
    def prefilled(self) -> bool:
        """Whether all of the prompt has been given to the stages."""
        return self.num_computed >= len(self.submitted.prompt)

    def view(self) -> SequenceView:
        """Return what a policy may know."""
        return SequenceView(
            id=self.submitted.sequence_id,
            owner=self.submitted.owner,
            arrived_seconds=self.arrived_seconds,
            num_prompt_tokens=len(self.submitted.prompt),
            num_computed_tokens=self.num_computed,
            num_emitted_tokens=len(self.emitted),
            running=self.running,
        )

    def next_part(self, max_tokens: int) -> SequenceStep:
        """Return the next decode token or prompt chunk of at most `max_tokens`, and count it as computed."""
        start = self.num_computed
        tokens = (self.emitted[-1],) if self.prefilled else self.submitted.prompt[start : start + max_tokens]
        self.num_computed += len(tokens)
        sampling = self.submitted.sampling
        return SequenceStep(
            sequence_id=self.submitted.sequence_id,
            token_ids=tokens,
            start_position=start,
            sample=self.prefilled,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            seed=sampling.seed,
        )
