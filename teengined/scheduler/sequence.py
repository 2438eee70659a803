"""A request and its sequences between submission and end: counts and what follows from them. No decisions."""

from dataclasses import dataclass, field

from teengined.core.request import Goal
from teengined.interfaces.policy import SequenceView
from teengined.kvcache.block_table import BlockTable, num_blocks_for
from teengined.kvcache.spool import Stored
from teengined.protocol.worker_messages import SequenceOpen
from teengined.scheduler.events import Submitted
from teengined.scheduler.lookup import LookupIndex

__all__ = ["Fetch", "Guess", "Request", "Sequence", "num_kept_tokens", "num_promised_blocks"]


def num_kept_tokens(submitted: Submitted) -> int:
    """Return how many tokens' KV a choice may come to need: the last token of an answer is never run."""
    num_answer = submitted.sampling.max_tokens - 1 if submitted.goal is Goal.GENERATE else 0
    return len(submitted.prompt) + num_answer


def num_promised_blocks(submitted: Submitted, block_tokens: int) -> int:
    """Return how many blocks a choice may come to need."""
    return num_blocks_for(num_kept_tokens(submitted), block_tokens)


@dataclass(frozen=True, slots=True)
class Guess:
    """What may follow a sequence's tokens."""

    source: str
    num_tokens: int
    """Known tokens that it follows: it is worth nothing once there are more."""
    token_ids: tuple[int, ...]


@dataclass(slots=True, kw_only=True, eq=False)
class Request:
    """What the choices of one request have in common."""

    submitted: Submitted
    arrived_seconds: float
    running: dict[int, "Sequence"] = field(default_factory=dict[int, "Sequence"])
    """Choices that hold blocks: the others wait for one of them to have computed the prompt, and begin with it."""
    told_until: int = 0
    """Log-probabilities of the prompt are still to be told from this position on; its length where none are."""
    end_token_ids: frozenset[int] = frozenset()
    """Tokens that end a choice silently."""
    eos_token_ids: tuple[int, ...] = ()
    num_prompt_tokens: int = 0
    request_class: str = "greedy"
    """What is drawn alike, and guessed with like success: `greedy`, `sampled`, or `grammar`."""

    def __post_init__(self) -> None:
        """Work out once what every step asks."""
        submitted = self.submitted
        self.num_prompt_tokens = len(submitted.prompt)
        self.eos_token_ids = tuple(sorted(submitted.eos_token_ids))
        eos = frozenset[int]() if submitted.sampling.ignore_eos else submitted.eos_token_ids
        self.end_token_ids = eos | frozenset(submitted.sampling.stop_token_ids)
        if submitted.sampling.grammar is not None:
            self.request_class = "grammar"
        elif not submitted.sampling.greedy:
            self.request_class = "sampled"
        start = submitted.score_start if submitted.goal is Goal.SCORE else 1
        self.told_until = min(max(1, start), self.num_prompt_tokens) if self.wants_logprobs else self.num_prompt_tokens

    @property
    def wants_logprobs(self) -> bool:
        """Whether log-probabilities of the prompt are told."""
        goal, sampling = self.submitted.goal, self.submitted.sampling
        return goal is Goal.SCORE or (goal is Goal.GENERATE and sampling.prompt_logprobs is not None)

    @property
    def max_cached_tokens(self) -> int:
        """How many tokens of the prompt may come from the prefix cache, were there no last token to run.

        A row whose logits are to be told must run, and a mean is made of every row.
        """
        if self.submitted.goal is Goal.EMBED and self.submitted.pooling != "last":
            return 0
        return self.told_until - 1 if self.told_until < self.num_prompt_tokens else 1 << 62

    def source(self) -> "Sequence | None":
        """Return a choice that has computed the prompt and still holds it."""
        length = self.num_prompt_tokens
        return next((choice for choice in self.running.values() if choice.num_computed >= length), None)


@dataclass(slots=True, kw_only=True, eq=False)
class Fetch:
    """Contents on their way from disk to host memory for a sequence that waits, each pinned until it goes on."""

    stored: list[Stored]
    deadline_seconds: float
    """Then they would have been computed."""


@dataclass(slots=True, kw_only=True, eq=False)
class Sequence:
    """One choice of a request."""

    id: int
    choice: int
    request: Request
    table: BlockTable
    emitted: list[int] = field(default_factory=list[int])
    num_computed: int = 0
    """Tokens whose KV is on the stages."""
    num_in_flight: int = 0
    """Tokens after them in a step that is not over."""
    is_running: bool = False
    """Holds blocks, or may take some."""
    is_open: bool = False
    """The stages know it."""
    has_ended: bool = False
    cached_tokens: int | None = None
    """Prompt tokens from the prefix cache; None before it first ran."""
    num_charged: int = 0
    """Tokens that its owner was charged for, or that cost nothing. What a preemption repeats is not charged again."""
    num_queued: int = 0
    """Tokens that it adds to those that wait, while it does."""
    may_draft: bool = True
    """Whether tokens may be guessed ahead for it."""
    has_drafted: bool = False
    """Whether wrong guesses may have left something in its blocks, since it last began."""
    guess: Guess | None = None
    """Of a draft model, for the next step."""
    lookup: LookupIndex | None = None
    """Made when something is first guessed; it lives as long as the sequence."""
    num_checkpointed: int = 0
    """Tokens when its blocks were last copied below the device."""
    checkpointed_seconds: float = 0.0
    """When that was, or when it last began to run."""
    fetch: Fetch | None = None
    """What it waits for on its way from disk, or waited for, since it last ran."""
    _view: SequenceView | None = None

    @property
    def num_tokens(self) -> int:
        """Tokens that are known: prompt and answer."""
        return self.request.num_prompt_tokens + len(self.emitted)

    @property
    def num_remaining(self) -> int:
        """Known tokens that no step has brought to the stages yet."""
        return self.num_tokens - self.num_computed - self.num_in_flight

    @property
    def is_available(self) -> bool:
        """Whether it runs and no step in flight has it."""
        return self.is_running and not self.num_in_flight

    def tokens(self, start: int, stop: int) -> tuple[int, ...]:
        """Return the known tokens at positions `[start, stop)`; fewer where they end before."""
        prompt = self.request.submitted.prompt
        length = len(prompt)
        if stop <= length:
            return prompt[start:stop]
        return (*prompt[start:], *self.emitted[max(0, start - length) : stop - length])

    def samples(self, stop: int) -> bool:
        """Whether a token is drawn after a part that ends at `stop`."""
        return stop == self.num_tokens and self.request.submitted.goal is Goal.GENERATE

    def num_logit_rows(self, start: int, stop: int) -> int:
        """Return how many rows of the head a part of tokens `[start, stop)` takes.

        Where log-probabilities are told, each row from the one before the first told token to the end of the prompt.
        """
        length = self.request.num_prompt_tokens
        if self.request.told_until < length and start < length:
            return max(0, min(stop, length) - max(start, self.request.told_until - 1))
        return int(self.samples(stop))

    def largest_part(self, start: int, max_tokens: int, max_logit_rows: int) -> int:
        """Return how many tokens from `start` on a part may have within these bounds."""
        stop = min(self.num_tokens, start + max_tokens)
        length = self.request.num_prompt_tokens
        if self.request.told_until < length and start < length:
            return min(stop, max(start, self.request.told_until - 1) + max_logit_rows) - start
        return stop - start - int(max_logit_rows == 0 and self.samples(stop))

    def view(self, owner_served_tokens: float) -> SequenceView:
        """Return what a policy may know; the last view where nothing changed."""
        view = self._view
        num_computed = self.num_computed + self.num_in_flight
        if (
            view is None
            or view.owner_served_tokens != owner_served_tokens
            or view.num_computed_tokens != num_computed
            or view.num_emitted_tokens != len(self.emitted)
            or view.running != self.is_running
        ):
            submitted = self.request.submitted
            view = self._view = SequenceView(
                id=self.id,
                owner=submitted.owner,
                arrived_seconds=self.request.arrived_seconds,
                num_prompt_tokens=len(submitted.prompt),
                num_computed_tokens=num_computed,
                num_emitted_tokens=len(self.emitted),
                running=self.is_running,
                priority=submitted.priority,
                owner_served_tokens=owner_served_tokens,
            )
        return view

    def opening(self) -> SequenceOpen:
        """Return what a worker must know before the sequence's first part."""
        submitted = self.request.submitted
        return SequenceOpen(
            sequence_id=self.id,
            num_prompt_tokens=len(submitted.prompt),
            sampling=submitted.sampling,
            eos_token_ids=self.request.eos_token_ids,
            choice=self.choice,
            goal=submitted.goal,
            pooling=submitted.pooling,
            score_start=self.request.told_until,
            history=self.tokens(0, self.num_tokens) if submitted.sampling.uses_history else (),
        )
