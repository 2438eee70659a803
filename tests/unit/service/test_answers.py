import asyncio
from collections.abc import Callable
from typing import NoReturn

import pytest

from teengined.core.errors import InternalError, MessageTooLarge, NumericalFault, SlowReader
from teengined.core.request import FinishReason, TokenLogprobs
from teengined.protocol.messages import TokenChunk
from teengined.protocol.worker_messages import PooledVector, PromptLogprobs, SampledToken
from teengined.scheduler.events import Cancelled, Emit, End, Event, Stopped, Tell
from teengined.service.account import Account
from teengined.service.answer import Answer
from teengined.service.answers import AnswerTable
from teengined.service.choice import Choice
from teengined.service.chunk_stream import ChunkStream
from teengined.service.detokenizer import Detokenizer
from teengined.service.stop_text import StopText
from tests.unit.service.test_speed import meter


class Story:
    """A table with one answer of two choices, sequences 1 and 2, and what was sent of it."""

    def __init__(self, credits_: int | None = None, stops: tuple[str, ...] = ()) -> None:
        self.table = AnswerTable(speed=meter(compute_seconds=1.0, streamed_bytes=0, disk=1.0))
        self.sent: list[TokenChunk] = []
        stream = ChunkStream(request_id="r", send=self.sent.append, credits=credits_, max_buffer_bytes=50)
        self.answer = Answer(
            request_id="r",
            model="m",
            owner="uid:1",
            client_id="",
            priority=0,
            max_tokens=9,
            choices=tuple(self.choice(index, stops) for index in range(2)),
            stream=stream,
            account=Account(num_prompt_tokens=4, submitted_seconds=0.0),
            ended=asyncio.get_running_loop().create_future(),
        )
        self.table.add(self.answer)

    @staticmethod
    def choice(index: int, stops: tuple[str, ...]) -> Choice:
        detokenizer = Detokenizer(lambda tokens: bytes(tokens).decode(errors="replace"))
        return Choice(index=index, sequence_id=index + 1, detokenizer=detokenizer, stop=StopText(stops))

    def emit(self, sequence_id: int, letter: str) -> list[Event]:
        token = SampledToken(sequence_id=sequence_id, token_id=ord(letter))
        return self.table.obey(Emit(sequence_id=sequence_id, token=token, silent=False), 1.0)

    def end(self, sequence_id: int, **fields) -> list[Event]:
        return self.table.obey(End(sequence_id=sequence_id, **(fields or {"reason": FinishReason.LENGTH})), 2.0)

    @property
    def told(self) -> list[tuple[int, int, str, FinishReason | None]]:
        return [(chunk.sequence, chunk.choice, chunk.text, chunk.reason) for chunk in self.sent]


def tell(story: Callable[[], object]) -> None:
    async def run() -> None:
        story()

    asyncio.run(run())


def test_chunks_of_several_choices_share_one_count_and_each_choice_ends_once():
    def story() -> None:
        made = Story()
        made.emit(1, "a")
        made.emit(2, "b")
        made.table.flush()
        made.emit(1, "c")
        made.end(1)
        made.table.flush()
        assert not made.answer.ended.done()
        made.end(2, reason=FinishReason.STOP)
        made.table.flush()

        assert made.told == [
            (0, 0, "a", None),
            (1, 1, "b", None),
            (2, 0, "c", FinishReason.LENGTH),
            (3, 1, "", FinishReason.STOP),
        ]
        outcome = made.answer.ended.result()
        assert (outcome.reason, outcome.usage.completion_tokens) == (FinishReason.LENGTH, 3)
        assert made.table.speed.num_completed == 1

    tell(story)


def test_stop_text_takes_its_sequence_off_the_stages():
    def story() -> None:
        made = Story(stops=("ab",))
        assert made.emit(1, "a") == []
        assert made.emit(1, "b") == [Stopped(sequence_id=1)]
        made.end(1, reason=FinishReason.STOP)
        made.table.flush()

        assert made.told == [(0, 0, "", FinishReason.STOP)]
        assert made.sent[0].token_ids == (97, 98)

    tell(story)


def test_choice_that_fails_fails_the_request_and_stops_the_others():
    def story() -> None:
        made = Story()
        made.emit(2, "x")

        assert made.end(1, error=NumericalFault("no numbers")) == [Cancelled(sequence_id=2)]
        assert made.end(2, reason=FinishReason.CANCELLED) == []
        made.table.flush()

        assert isinstance(made.answer.ended.exception(), NumericalFault)
        assert made.sent == []
        assert made.table.speed.num_completed == 0

    tell(story)


def test_answer_of_which_a_choice_was_cancelled_is_cancelled():
    def story() -> None:
        made = Story()
        made.end(1)
        made.end(2, reason=FinishReason.CANCELLED)

        assert made.answer.ended.result().reason is FinishReason.CANCELLED
        assert made.table.speed.num_completed == 0

    tell(story)


def test_reader_that_leaves_too_much_waiting_loses_the_answer_and_only_it():
    def story() -> None:
        made = Story(credits_=1)
        events: list[Event] = []
        for letter in "abcdefg":
            made.emit(1, letter)
            events = made.table.flush()

        assert events == [Cancelled(sequence_id=1), Cancelled(sequence_id=2)]
        assert isinstance(made.answer.ended.exception(), SlowReader)
        assert made.told == [(0, 0, "a", None)]

    tell(story)


def test_table_is_empty_when_the_sequences_ended_and_the_caller_let_go():
    def story() -> None:
        made = Story()
        made.end(1)
        made.end(2)
        assert not made.table.is_empty
        made.table.release(made.answer)
        assert made.table.is_empty

    tell(story)


def test_instructions_for_sequences_that_are_gone_change_nothing():
    def story() -> None:
        made = Story()
        made.end(1)

        assert made.emit(1, "a") == []
        assert made.end(1) == []

    tell(story)


def test_state_follows_the_request():
    def story() -> None:
        made = Story(credits_=1)
        states = [made.table.describe(5.0)[0].state]
        made.answer.account.begin(1.0, 0)
        states.append(made.table.describe(5.0)[0].state)
        made.emit(1, "a")
        made.table.flush()
        states.append(made.table.describe(5.0)[0].state)
        made.emit(1, "b")
        made.table.flush()
        states.append(made.table.describe(5.0)[0].state)

        assert states == ["queued", "prefill", "decode", "waiting for its reader"]

    tell(story)


def logprob(token: int) -> TokenLogprobs:
    return TokenLogprobs(token_id=token, logprob=-1.0)


def test_what_is_told_of_the_prompt_is_told_in_order_and_once():
    def story() -> None:
        made = Story()
        for start, tokens in ((1, (5, 6)), (3, (7,)), (1, (5, 6))):
            told = PromptLogprobs(sequence_id=1, start_position=start, logprobs=tuple(map(logprob, tokens)))
            made.table.obey(Tell(sequence_id=1, prompt_logprobs=told), 1.0)
        made.table.obey(Tell(sequence_id=1, vector=PooledVector(sequence_id=1, vector=b"1234")), 1.0)
        made.end(1)
        made.end(2)

        outcome = made.answer.ended.result()
        assert [item.token_id for item in outcome.prompt_logprobs] == [5, 6, 7]
        assert outcome.vector == b"1234"

    tell(story)


def test_what_is_missing_of_the_prompt_fails_the_request():
    def story() -> None:
        made = Story()
        for start in (1, 3):
            told = PromptLogprobs(sequence_id=1, start_position=start, logprobs=(logprob(5),))
            made.table.obey(Tell(sequence_id=1, prompt_logprobs=told), 1.0)
        made.end(1)
        made.end(2)

        with pytest.raises(InternalError, match="missing"):
            made.answer.ended.result()

    tell(story)


class Failing:
    """Text or socket that fails on one word."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def __call__(self, *_) -> NoReturn:
        raise self.error


def beside(made: Story) -> Story:
    """Put another answer into the same table, as sequences 3 and 4."""
    other = Story()
    for choice in other.answer.choices:
        choice.sequence_id += 2
    other.answer.request_id = "other"
    other.table = made.table
    made.table.add(other.answer)
    return other


def test_an_answer_that_cannot_be_told_ends_and_what_follows_is_obeyed(caplog: pytest.LogCaptureFixture):
    def story() -> None:
        made = Story()
        other = beside(made)
        made.answer.choices[0].detokenizer = Detokenizer(Failing(UnicodeEncodeError("utf-8", "", 0, 1, "no")))

        assert made.emit(1, "a") == [Cancelled(sequence_id=1), Cancelled(sequence_id=2)]
        other.emit(3, "b")
        other.table.flush()

        assert isinstance(made.answer.ended.exception(), InternalError)
        assert not other.answer.ended.done()
        assert [chunk.text for chunk in other.sent] == ["b"]
        assert "request r cannot go on" in caplog.text

    tell(story)


@pytest.mark.parametrize(
    ("error", "told"), [(RuntimeError("a bug"), InternalError), (MessageTooLarge("too much"), MessageTooLarge)]
)
def test_an_answer_that_cannot_be_sent_ends_and_others_are_sent(error: Exception, told: type[Exception]):
    def story() -> None:
        made = Story()
        other = beside(made)
        assert made.answer.stream is not None
        made.answer.stream.send = Failing(error)
        made.emit(1, "a")
        other.emit(3, "b")

        assert made.table.flush() == [Cancelled(sequence_id=1), Cancelled(sequence_id=2)]
        assert isinstance(made.answer.ended.exception(), told)
        assert [chunk.text for chunk in other.sent] == ["b"]

    tell(story)


def test_a_grant_for_what_cannot_be_sent_ends_the_answer():
    def story() -> None:
        made = Story(credits_=1)
        made.emit(1, "a")
        made.table.flush()
        made.emit(1, "b")
        assert made.answer.stream is not None
        made.answer.stream.send = Failing(MessageTooLarge("too much"))

        assert made.table.grant(made.answer, 1) == [Cancelled(sequence_id=1), Cancelled(sequence_id=2)]
        assert isinstance(made.answer.ended.exception(), MessageTooLarge)

    tell(story)


@pytest.mark.parametrize("end", [{"reason": FinishReason.LENGTH}, {"error": NumericalFault("none")}])
def test_what_was_drawn_behind_a_stop_text_is_nobody_s(end):
    def story() -> None:
        made = Story(stops=("ab",))
        made.emit(1, "a")
        assert made.emit(1, "b") == [Stopped(sequence_id=1)]
        assert made.emit(1, "c") == []  # Of the same step.
        made.end(1, **end)
        made.table.flush()
        assert [(chunk.token_ids, chunk.reason) for chunk in made.sent] == [((97, 98), FinishReason.STOP)]
        assert made.answer.account.num_tokens == 2
        assert not made.answer.ended.done()

    tell(story)
