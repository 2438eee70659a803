"""A validated request on its way to the scheduler, and the answer that it becomes."""

import math
from asyncio import Future
from collections.abc import Sequence
from dataclasses import dataclass, field

from teengined.core.request import Goal
from teengined.core.sampling import SamplingParams
from teengined.scheduler.events import Submitted
from teengined.service.account import Account
from teengined.service.answer import Answer, Outcome
from teengined.service.choice import Choice
from teengined.service.chunk_stream import ChunkStream
from teengined.service.segments import open_fold
from teengined.service.stop_text import StopText
from teengined.service.text import TextCodec

__all__ = ["Submission"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """A validated request."""

    request_id: str
    owner: str
    prompt: tuple[int, ...]
    deadline_seconds: float = math.inf
    """Monotonic."""
    sampling: SamplingParams = field(default_factory=SamplingParams)
    client_id: str = ""
    priority: int = 0
    salt: bytes = b""
    goal: Goal = Goal.GENERATE
    pooling: str = ""
    score_start: int = 0
    stream: ChunkStream | None = None
    """Where its chunks go; None where nothing is drawn."""
    parser: str | None = None
    """Name of the format in which reasoning and tool calls are told apart; None: all is text."""
    prompt_tail: str = ""
    """The end of the prompt's text, for that."""
    speculates: bool = True
    """Tokens may be guessed ahead."""

    def event(self, sequence_ids: Sequence[int], eos_token_ids: Sequence[int]) -> Submitted:
        """Return what the scheduler hears."""
        return Submitted(
            sequence_ids=tuple(sequence_ids),
            owner=self.owner,
            prompt=self.prompt,
            sampling=self.sampling,
            eos_token_ids=frozenset(eos_token_ids),
            deadline_seconds=self.deadline_seconds,
            priority=self.priority,
            salt=self.salt,
            goal=self.goal,
            pooling=self.pooling,
            score_start=self.score_start,
            speculates=self.speculates,
        )

    def answer(
        self, model: str, sequence_ids: Sequence[int], text: TextCodec, ended: "Future[Outcome]", now_seconds: float
    ) -> Answer:
        """Return its empty answer."""
        choices = tuple(self._choice(index, sequence_id, text) for index, sequence_id in enumerate(sequence_ids))
        return Answer(
            request_id=self.request_id,
            model=model,
            owner=self.owner,
            client_id=self.client_id,
            priority=self.priority,
            max_tokens=self.sampling.max_tokens if self.goal is Goal.GENERATE else 0,
            choices=choices,
            stream=self.stream,
            account=Account(num_prompt_tokens=len(self.prompt), submitted_seconds=now_seconds),
            ended=ended,
        )

    def _choice(self, index: int, sequence_id: int, text: TextCodec) -> Choice:
        segments = (
            None if self.parser is None else open_fold(self.parser, f"{self.request_id}/{index}", self.prompt_tail)
        )
        return Choice(
            index=index,
            sequence_id=sequence_id,
            detokenizer=text.detokenizer(() if segments is None else segments.kept_special_tokens),
            stop=StopText(self.sampling.stop, self.sampling.include_stop),
            segments=segments,
            min_tokens=self.sampling.min_tokens,
        )
