"""Only rows that somebody wants reach the head, and each row's logits reach the one who wants them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from teengined.core.errors import InternalError
from teengined.core.request import Goal, TokenLogprobs
from teengined.core.sampling import SamplingParams
from teengined.engine.answers import Answerer, Answers
from teengined.engine.sampler import Sampler, SampleRow
from teengined.protocol.worker_messages import PromptLogprobs, RunStep, SampledToken, SequenceOpen, SequencePart


class RecordingSampler(Sampler):
    """Draws the row's number, and scores a token with it."""

    def __init__(self) -> None:
        super().__init__(vocab_size=9, package_dir=Path())
        self.known: list[int] = []
        self.rows: list[SampleRow] = []

    def open(self, opened: SequenceOpen) -> None:
        self.known.append(opened.sequence_id)

    def close(self, sequence_id: int) -> None:
        self.known.remove(sequence_id)

    def sample(self, rows: Sequence[SampleRow], logits_WV: torch.Tensor) -> tuple[SampledToken, ...]:
        self.rows += rows
        pairs = zip(rows, logits_WV[:, 0].tolist(), strict=True)
        return tuple(
            SampledToken(sequence_id=1000 * row.sequence_id + row.position, token_id=int(x)) for row, x in pairs
        )

    def prompt_logprobs(
        self, sequence_id: int, start_position: int, token_ids: Sequence[int], logits_WV: torch.Tensor
    ) -> PromptLogprobs:
        pairs = zip(token_ids, logits_WV[:, 0].tolist(), strict=True)
        told = tuple(TokenLogprobs(token_id=token_id, logprob=x) for token_id, x in pairs)
        return PromptLogprobs(sequence_id=sequence_id, start_position=start_position, logprobs=told)


class RowNumbers:
    """A head whose logits and hidden states are the numbers of their rows."""

    def __init__(self, num_rows: int) -> None:
        self.asked: list[int] = []
        self.hidden_TD = torch.arange(float(num_rows))[:, None].expand(-1, 2)

    def logits(self, rows: Sequence[int]) -> torch.Tensor:
        self.asked += rows
        return torch.tensor(list(rows), dtype=torch.float32)[:, None].expand(-1, 9)


def opened(sequence_id: int, num_prompt_tokens: int = 6, **fields: Any) -> SequenceOpen:
    given: dict[str, Any] = {"sampling": SamplingParams(), **fields}
    return SequenceOpen(sequence_id=sequence_id, num_prompt_tokens=num_prompt_tokens, **given)


def part(
    sequence_id: int, token_ids: Sequence[int], start: int = 0, *, sample: bool = False, num_drafted: int = 0
) -> SequencePart:
    return SequencePart(
        sequence_id=sequence_id,
        token_ids=tuple(token_ids),
        start_position=start,
        sample=sample,
        num_drafted=num_drafted,
    )


def answer(answerer: Answerer, *parts: SequencePart, **changes: Any) -> tuple[Answers, list[int]]:
    """Return the answers and the rows that were asked of the head."""
    step = RunStep(deployment_id="d", step=0, parts=parts, **changes)
    answerer.apply(step)
    head: Any = RowNumbers(sum(len(each.token_ids) for each in parts))
    return answerer.answer(step, head), head.asked


def pairs(told: PromptLogprobs) -> list[tuple[int, float]]:
    return [(each.token_id, each.logprob) for each in told.logprobs]


def test_tokens_are_drawn_from_the_last_rows_of_parts_that_want_one() -> None:
    parts = (part(1, [5, 6], 4, sample=True), part(2, [5, 6, 7]), part(3, [8], 9, sample=True))

    answers, asked = answer(Answerer(RecordingSampler()), *parts, opened=(opened(1), opened(2), opened(3)))

    assert [(token.sequence_id, token.token_id) for token in answers.tokens] == [(1006, 1), (3010, 5)]
    assert asked == [1, 5]


def test_a_row_is_wanted_for_each_guess_and_one_behind_them() -> None:
    parts = (part(1, [5, 6, 7], 4, sample=True, num_drafted=2), part(2, [5, 6]), part(3, [8], 9, sample=True))
    sampler = RecordingSampler()

    answers, asked = answer(Answerer(sampler), *parts, opened=(opened(1), opened(2), opened(3)))

    assert asked == [0, 1, 2, 5]
    assert [token.sequence_id for token in answers.tokens] == [1005, 1006, 1007, 3010]
    assert [row.drafted_id for row in sampler.rows] == [6, 7, None, None]


def test_rows_of_one_part_are_looked_at_together() -> None:
    parts = tuple(part(i, range(10), sample=True, num_drafted=9) for i in range(8))
    answerer = Answerer(RecordingSampler())
    step = RunStep(deployment_id="d", step=0, parts=parts, opened=tuple(map(opened, range(8))))
    answerer.apply(step)
    head: Any = RowNumbers(80)
    sizes: list[int] = []
    original = head.logits
    head.logits = lambda rows: (sizes.append(len(rows)), original(rows))[1]

    answerer.answer(step, head)

    assert sizes == [60, 20]


def test_a_step_that_wants_nothing_computes_no_logits() -> None:
    answers, asked = answer(Answerer(RecordingSampler()), part(1, [5, 6]), opened=(opened(1),))

    assert (answers, asked) == (Answers(), [])


def test_logits_are_computed_a_bounded_number_of_rows_at_a_time() -> None:
    parts = tuple(part(i, [5], sample=True) for i in range(100))
    answerer = Answerer(RecordingSampler())
    step = RunStep(deployment_id="d", step=0, parts=parts, opened=tuple(map(opened, range(100))))
    answerer.apply(step)
    head: Any = RowNumbers(100)
    sizes: list[int] = []
    original = head.logits
    head.logits = lambda rows: (sizes.append(len(rows)), original(rows))[1]

    assert [token.token_id for token in answerer.answer(step, head).tokens] == list(range(100))
    assert sizes == [64, 36]


def test_a_score_tells_of_each_token_from_the_row_before_it() -> None:
    answers, asked = answer(
        Answerer(RecordingSampler()), part(1, [10, 11, 12, 13, 14, 15]), opened=(opened(1, goal=Goal.SCORE),)
    )

    (told,) = answers.prompt_logprobs
    assert (told.start_position, pairs(told)) == (1, [(11, 0), (12, 1), (13, 2), (14, 3), (15, 4)])
    assert asked == [0, 1, 2, 3, 4]
    assert answers.tokens == ()


def test_the_row_at_the_end_of_a_chunk_waits_for_its_token() -> None:
    answerer = Answerer(RecordingSampler())
    first, _ = answer(answerer, part(1, [10, 11]), opened=(opened(1, goal=Goal.SCORE),))
    second, asked = answer(answerer, part(2, [1, 2, 3]), part(1, [12], 2), opened=(opened(2),))
    third, _ = answer(answerer, part(1, [13, 14, 15], 3))

    assert [pairs(each) for each in first.prompt_logprobs] == [[(11, 0)]]
    assert [(each.start_position, pairs(each)) for each in second.prompt_logprobs] == [(2, [(12, 1)])]
    assert asked == [3]
    assert [(each.start_position, pairs(each)) for each in third.prompt_logprobs] == [(3, [(13, 3), (14, 0), (15, 1)])]


def test_what_lies_before_the_start_of_a_score_is_not_computed() -> None:
    answers, asked = answer(
        Answerer(RecordingSampler()),
        part(1, [10, 11, 12, 13, 14, 15]),
        opened=(opened(1, goal=Goal.SCORE, score_start=4),),
    )

    assert asked == [3, 4]
    assert answers.prompt_logprobs[0].start_position == 4


def test_the_last_prompt_token_s_row_belongs_to_the_drawn_token() -> None:
    sampling = SamplingParams(prompt_logprobs=0)
    answerer = Answerer(RecordingSampler())
    answers, asked = answer(answerer, part(1, [10, 11, 12], sample=True), opened=(opened(1, 3, sampling=sampling),))
    later, _ = answer(answerer, part(1, [13], 3, sample=True))

    assert pairs(answers.prompt_logprobs[0]) == [(11, 0), (12, 1)]
    assert asked == [2, 0, 1]
    assert later.prompt_logprobs == ()


def test_a_row_left_over_from_before_a_preemption_is_not_used() -> None:
    answerer = Answerer(RecordingSampler())
    answer(answerer, part(1, [10, 11]), opened=(opened(1, goal=Goal.SCORE),))
    answers, _ = answer(
        answerer, part(1, [12, 13], 2), closed=(1,), opened=(opened(1, goal=Goal.SCORE, score_start=3),)
    )

    assert [pairs(each) for each in answers.prompt_logprobs] == [[(13, 0)]]


@pytest.mark.parametrize(("pooling", "expected"), [("last", 4.0), ("mean", (0 + 1 + 2 + 3 + 4) / 5)])
def test_a_vector_is_told_with_the_last_prompt_token(pooling: str, expected: float) -> None:
    answers, asked = answer(
        Answerer(RecordingSampler()),
        part(1, [1, 2, 3, 4, 5]),
        opened=(opened(1, 5, goal=Goal.EMBED, pooling=pooling),),
    )

    assert np.frombuffer(answers.vectors[0].vector, dtype="<f4").tolist() == [expected, expected]
    assert asked == []


def test_a_mean_goes_over_all_chunks() -> None:
    answerer = Answerer(RecordingSampler())
    first, _ = answer(answerer, part(1, [1, 2, 3]), opened=(opened(1, 5, goal=Goal.EMBED, pooling="mean"),))
    second, _ = answer(answerer, part(1, [4, 5], 3))

    assert first.vectors == ()
    assert np.frombuffer(second.vectors[0].vector, dtype="<f4")[0] == pytest.approx((0 + 1 + 2 + 0 + 1) / 5)


def test_a_mean_without_its_first_tokens_is_refused() -> None:
    with pytest.raises(InternalError, match="the mean of sequence 1 has 0 tokens before 3"):
        answer(
            Answerer(RecordingSampler()),
            part(1, [4, 5], 3),
            opened=(opened(1, 5, goal=Goal.EMBED, pooling="mean"),),
        )


def test_the_sampler_is_told_who_comes_and_goes() -> None:
    sampler = RecordingSampler()
    answerer = Answerer(sampler)
    answer(answerer, opened=(opened(1), opened(2)))
    answer(answerer, closed=(1, 77), opened=(opened(3),))

    assert sampler.known == [2, 3]
