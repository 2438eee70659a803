"""Tokens are drawn as the parameters say, each row for itself, and the same after a preemption as without one."""

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from teengined.core.errors import NumericalFault
from teengined.core.sampling import Grammar, GrammarKind, SamplingParams
from teengined.engine.sampler import Sampler, SampleRow
from teengined.protocol.worker_messages import SampledToken, SequenceOpen

VOCAB = 64
EOS = 5


@pytest.fixture
def sampler(tmp_path: Path) -> Iterator[Sampler]:
    made = Sampler(vocab_size=VOCAB, package_dir=tmp_path)
    yield made
    made.shutdown()


def opened(sequence_id: int, params: SamplingParams, **changes: Any) -> SequenceOpen:
    values: dict[str, Any] = {"num_prompt_tokens": 3, "eos_token_ids": (EOS,), "history": (1, 2, 3), **changes}
    return SequenceOpen(sequence_id=sequence_id, sampling=params, **values)


def logits_of(seed: int, num_rows: int = 1, vocab: int = VOCAB) -> torch.Tensor:
    return torch.randn(num_rows, vocab, generator=torch.Generator().manual_seed(seed)) * 2


def draw(sampler: Sampler, params: SamplingParams, logits: torch.Tensor, position: int = 3) -> SampledToken:
    sampler.open(opened(1, params))
    drawn = sampler.sample([SampleRow(1, position)], logits.reshape(1, -1).clone())
    sampler.close(1)
    return drawn[0]


def raised(logits: torch.Tensor, **values: float) -> torch.Tensor:
    changed = logits.clone()
    for name, value in values.items():
        changed.view(-1)[int(name[1:])] = value
    return changed


MIXED = [
    SamplingParams(),
    SamplingParams(logprobs=3),
    SamplingParams(temperature=1.0, seed=4),
    SamplingParams(temperature=0.7, top_p=0.8, seed=5, logprobs=0),
    SamplingParams(temperature=1.5, top_k=7, seed=6),
    SamplingParams(temperature=1.0, typical_p=0.6, seed=7),
    SamplingParams(temperature=1.0, min_p=0.2, seed=8, repetition_penalty=1.4),
    SamplingParams(frequency_penalty=1.5, presence_penalty=-0.5, min_tokens=4),
    SamplingParams(temperature=2.0, logit_bias=((4, 5.0), (9, -9.0)), banned_token_ids=(7, 8), seed=10),
    SamplingParams(temperature=9.0, allowed_token_ids=(3, 14, 15, 9, 26), seed=11),
]


def answers(sampler: Sampler, order: list[int], batch_size: int, num_steps: int = 6) -> dict[int, list[SampledToken]]:
    """Draw `num_steps` tokens for each of `order`, in batches; logits depend on sequence and position alone."""
    for sequence_id in order:
        sampler.open(opened(sequence_id, MIXED[sequence_id % len(MIXED)], choice=sequence_id))
    found: dict[int, list[SampledToken]] = {sequence_id: [] for sequence_id in order}
    for position in range(3, 3 + num_steps):
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            logits = torch.cat([logits_of(1000 * sequence_id + position) for sequence_id in batch])
            for token in sampler.sample([SampleRow(i, position) for i in batch], logits):
                found[token.sequence_id].append(token)
    for sequence_id in order:
        sampler.close(sequence_id)
    return found


@pytest.mark.parametrize("batch_size", [2, 3, 7, 16])
def test_a_draw_depends_on_neither_batch_size_nor_order(sampler: Sampler, batch_size: int) -> None:
    alone = answers(sampler, list(range(16)), 1)
    shuffled = np.random.default_rng(batch_size).permutation(16).tolist()

    assert answers(sampler, shuffled, batch_size) == alone


@pytest.mark.parametrize("vocab", [257, 4099, 49_157])
def test_a_rows_place_in_memory_changes_no_bit(tmp_path: Path, vocab: int) -> None:
    """Rows of an odd width lie at other alignments in every batch."""
    sampler = Sampler(vocab_size=vocab, package_dir=tmp_path)
    filters = ({}, {"top_p": 0.9}, {"top_k": 40}, {"typical_p": 0.8}, {"min_p": 0.01})
    for sequence_id in range(10):
        values: dict[str, Any] = filters[sequence_id % 5]
        sampler.open(opened(sequence_id, SamplingParams(temperature=1.1, seed=sequence_id, logprobs=5, **values)))
    logits = logits_of(vocab, 10, vocab)
    rows = [SampleRow(sequence_id, 3) for sequence_id in range(10)]

    together = sampler.sample(rows, logits)
    reversed_rows = sampler.sample(rows[::-1], logits.flip(0))
    alone = tuple(sampler.sample([row], logits[i : i + 1].clone())[0] for i, row in enumerate(rows))
    sampler.shutdown()

    assert together == alone == reversed_rows[::-1]


def test_seed_choice_and_position_each_change_a_draw(sampler: Sampler) -> None:
    def eight(start: int = 3, choice: int = 0, seed: int = 0) -> list[int]:
        sampler.open(opened(1, SamplingParams(temperature=1.0, seed=seed), choice=choice))
        rows = [SampleRow(1, position) for position in range(start, start + 8)]
        return [sampler.sample([row], torch.zeros(1, VOCAB))[0].token_id for row in rows]

    assert eight() == eight()
    assert len({tuple(eight()), tuple(eight(seed=1)), tuple(eight(choice=1)), tuple(eight(start=20))}) == 4


@pytest.mark.parametrize("params", MIXED, ids=range(len(MIXED)))
def test_an_answer_taken_up_after_a_preemption_goes_on_as_it_would_have(
    sampler: Sampler, params: SamplingParams
) -> None:
    rows = logits_of(3, 12)
    sampler.open(opened(1, params))
    straight = [sampler.sample([SampleRow(1, 3 + i)], rows[i : i + 1])[0] for i in range(12)]
    known = (1, 2, 3, *(token.token_id for token in straight[:5]))
    sampler.close(1)

    sampler.open(opened(1, params, history=known if params.uses_history else ()))
    resumed = [sampler.sample([SampleRow(1, 3 + i)], rows[i : i + 1])[0] for i in range(5, 12)]

    assert resumed == straight[5:]


def test_greedy_takes_the_largest_logit_and_of_equal_ones_the_first(sampler: Sampler) -> None:
    logits = raised(torch.zeros(VOCAB), _9=3.0, _12=3.0)

    assert draw(sampler, SamplingParams(), logits).token_id == 9


@pytest.mark.parametrize("temperature", [1e-300, 1e-38, 1e-6])
def test_the_coldest_temperature_is_greedy(sampler: Sampler, temperature: float) -> None:
    logits = raised(logits_of(1), _9=30.0)

    assert draw(sampler, SamplingParams(temperature=temperature), logits).token_id == 9


def test_bias_moves_a_logit(sampler: Sampler) -> None:
    logits = torch.zeros(VOCAB)

    assert draw(sampler, SamplingParams(logit_bias=((7, 0.5), (8, 0.25), (8, 0.5))), logits).token_id == 8


def test_only_allowed_tokens_that_are_not_banned_are_drawn(sampler: Sampler) -> None:
    params = SamplingParams(allowed_token_ids=(4, 5, 6), banned_token_ids=(6,))
    logits = raised(torch.zeros(VOCAB), _20=9.0, _5=1.0, _6=2.0)

    assert draw(sampler, params, logits).token_id == 5


def test_a_banned_token_stays_banned_whatever_its_bias(sampler: Sampler) -> None:
    params = SamplingParams(logit_bias=((6, 100.0),), banned_token_ids=(6,))

    assert draw(sampler, params, torch.zeros(VOCAB)).token_id == 0


@pytest.mark.parametrize("ender", [EOS, 9])
def test_no_end_is_drawn_before_the_least_number_of_tokens(sampler: Sampler, ender: int) -> None:
    params = SamplingParams(min_tokens=2, stop_token_ids=(9,))
    logits = raised(torch.zeros(1, VOCAB), **{f"_{ender}": 5.0})
    sampler.open(opened(1, params))

    drawn = [sampler.sample([SampleRow(1, position)], logits)[0].token_id for position in (3, 4, 5)]

    assert drawn == [0, 0, ender]


def test_ends_outside_the_vocabulary_are_nobodys_fault(sampler: Sampler) -> None:
    sampler.open(opened(1, SamplingParams(min_tokens=2, stop_token_ids=(VOCAB + 7,)), eos_token_ids=(VOCAB,)))

    assert sampler.sample([SampleRow(1, 3)], torch.zeros(1, VOCAB))[0].token_id == 0


def test_penalties_count_what_was_drawn(sampler: Sampler) -> None:
    logits = raised(torch.zeros(1, VOCAB), _9=1.0, _8=0.9, _7=0.8)
    sampler.open(opened(1, SamplingParams(frequency_penalty=0.15)))

    drawn = [sampler.sample([SampleRow(1, 3 + i)], logits)[0].token_id for i in range(4)]

    assert drawn == [9, 8, 9, 7]


def test_logprobs_are_those_of_the_raw_logits(sampler: Sampler) -> None:
    logits = logits_of(8)
    expected = logits[0].double().log_softmax(0)
    params = SamplingParams(temperature=3.0, top_k=3, repetition_penalty=5.0, banned_token_ids=(0,), logprobs=4)

    told = draw(sampler, params, logits)

    assert told.logprobs is not None
    assert told.logprobs.token_id == told.token_id
    assert told.logprobs.logprob == pytest.approx(float(expected[told.token_id]), abs=1e-5)
    assert [token_id for token_id, _ in told.logprobs.top] == expected.argsort(descending=True)[:4].tolist()


def test_logprobs_are_told_only_where_asked_for(sampler: Sampler) -> None:
    assert draw(sampler, SamplingParams(), logits_of(1)).logprobs is None
    own = draw(sampler, SamplingParams(logprobs=0), logits_of(1)).logprobs
    assert own is not None
    assert own.top == ()


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_row_with_a_faulty_logit_fails_alone(sampler: Sampler, value: float, temperature: float) -> None:
    for sequence_id in (1, 2, 3):
        sampler.open(opened(sequence_id, SamplingParams(temperature=temperature)))
    logits = logits_of(1, 3)
    healthy = logits.clone()
    logits[1, 50] = value

    drawn = sampler.sample([SampleRow(i, 3) for i in (1, 2, 3)], logits)

    assert (drawn[1].token_id, drawn[1].fault) == (-1, "numerical_fault")
    assert "position 3" in drawn[1].message
    assert [drawn[0], drawn[2]] == [*sampler.sample([SampleRow(1, 3), SampleRow(3, 3)], healthy[[0, 2]])]


def test_a_row_without_any_finite_logit_is_a_numerical_fault(sampler: Sampler) -> None:
    assert draw(sampler, SamplingParams(), torch.full((VOCAB,), -math.inf)).fault == "numerical_fault"


def test_some_logits_of_minus_infinity_are_none(sampler: Sampler) -> None:
    logits = raised(torch.full((VOCAB,), -math.inf), _9=1.0, _3=0.5)

    assert draw(sampler, SamplingParams(temperature=5.0, top_p=0.99), logits).token_id in (9, 3)


def test_penalties_that_overflow_are_a_fault_of_that_row(sampler: Sampler) -> None:
    logits = raised(torch.zeros(VOCAB), _2=3e38)

    assert draw(sampler, SamplingParams(repetition_penalty=0.01), logits).fault == "numerical_fault"


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(allowed_token_ids=(4,), banned_token_ids=(4,)),
        SamplingParams(allowed_token_ids=(EOS,), min_tokens=2),
        SamplingParams(banned_token_ids=tuple(range(VOCAB))),
    ],
)
def test_bans_that_leave_nothing_are_the_requests_fault(sampler: Sampler, params: SamplingParams) -> None:
    told = draw(sampler, params, logits_of(1))

    assert (told.token_id, told.fault) == (-1, "invalid_request")
    assert "no token may be drawn at position 3" in told.message


@pytest.mark.parametrize(
    ("params", "name"),
    [
        (SamplingParams(logit_bias=((VOCAB, 1.0),)), "logit_bias"),
        (SamplingParams(allowed_token_ids=(0, VOCAB)), "allowed_token_ids"),
        (SamplingParams(banned_token_ids=(VOCAB + 9, 0)), "banned_token_ids"),
    ],
)
def test_an_id_outside_the_vocabulary_is_named(sampler: Sampler, params: SamplingParams, name: str) -> None:
    told = draw(sampler, params, logits_of(1))

    assert told.fault == "invalid_request"
    assert f"{name} must have token ids between 0 and {VOCAB - 1}, got {VOCAB}" in told.message or "73" in told.message


def test_prompt_logprobs_are_those_of_the_tokens_that_came(sampler: Sampler) -> None:
    logits = logits_of(2, 4)
    expected = logits.double().log_softmax(1)
    sampler.open(opened(1, SamplingParams(prompt_logprobs=2)))

    told = sampler.prompt_logprobs(1, 6, (9, 8, 7, 60), logits)

    assert (told.sequence_id, told.start_position) == (1, 6)
    assert [row.token_id for row in told.logprobs] == [9, 8, 7, 60]
    assert [row.logprob for row in told.logprobs] == pytest.approx(
        [float(expected[row, token_id]) for row, token_id in enumerate((9, 8, 7, 60))], abs=1e-5
    )
    assert [len(row.top) for row in told.logprobs] == [2] * 4


def test_prompt_logprobs_of_faulty_logits_are_an_error_that_names_the_position(sampler: Sampler) -> None:
    logits = logits_of(2, 4)
    logits[2, 1] = math.nan
    sampler.open(opened(1, SamplingParams(prompt_logprobs=0)))

    with pytest.raises(NumericalFault, match="position 8"):
        sampler.prompt_logprobs(1, 6, (9, 8, 7, 60), logits)


def test_closing_what_never_came_is_no_error(sampler: Sampler) -> None:
    sampler.close(77)

    sampler.open(opened(77, SamplingParams()))
    logits = logits_of(1)
    (token,) = sampler.sample([SampleRow(77, 3)], logits)
    assert token.token_id == int(logits[0].argmax())


def test_a_grammar_without_its_tokenizer_is_a_fault_of_its_sequence_alone(sampler: Sampler) -> None:
    sampler.open(opened(1, SamplingParams(grammar=Grammar(kind=GrammarKind.REGEX, text="a"))))
    sampler.open(opened(2, SamplingParams()))

    drawn = sampler.sample([SampleRow(1, 3), SampleRow(2, 3)], logits_of(1, 2))

    assert drawn[0].fault == "package_invalid"
    assert "tokenizer.json" in drawn[0].message
    assert not drawn[1].fault


# Distributions: counts of many draws against probabilities that are computed here in the plainest way.

REFERENCE_VOCAB = 12
NUM_DRAWS = 4000


def reference(logits: np.ndarray, params: SamplingParams) -> np.ndarray:
    """Return the probabilities after every filter, by sorting in double precision."""
    probabilities = np.exp((logits - logits.max()) / params.temperature)
    probabilities /= probabilities.sum()
    if params.top_k:
        probabilities = _only(
            probabilities, sorted(range(len(logits)), key=lambda i: -probabilities[i])[: params.top_k]
        )
    if params.top_p < 1:
        probabilities = _until(probabilities, lambda i: -probabilities[i], params.top_p)
    if params.min_p:
        largest = probabilities.max()
        probabilities = _only(
            probabilities, [i for i in range(len(logits)) if probabilities[i] >= params.min_p * largest]
        )
    if params.typical_p < 1:
        surprise = np.array([-math.log(p) if p > 0 else math.inf for p in probabilities])
        entropy = sum(p * s for p, s in zip(probabilities, surprise, strict=True) if p > 0)
        probabilities = _until(probabilities, lambda i: abs(surprise[i] - entropy), params.typical_p)
    return probabilities


def _only(probabilities: np.ndarray, kept: list[int]) -> np.ndarray:
    left = np.array([p if i in kept else 0.0 for i, p in enumerate(probabilities)])
    return left / left.sum()


def _until(probabilities: np.ndarray, key: Callable[[int], float], share: float) -> np.ndarray:
    kept: list[int] = []
    for token_id in sorted(range(len(probabilities)), key=key):
        kept.append(token_id)
        if sum(probabilities[i] for i in kept) >= share:
            break
    return _only(probabilities, kept)


DISTRIBUTIONS: dict[str, dict[str, Any]] = {
    "temperature": {},
    "hot": {"temperature": 3.0},
    "top_k": {"top_k": 4},
    "top_p": {"top_p": 0.75},
    "min_p": {"min_p": 0.15},
    "typical": {"typical_p": 0.7},
    "all": {"temperature": 1.6, "top_k": 9, "top_p": 0.93, "min_p": 0.05, "typical_p": 0.9},
}


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("changes", DISTRIBUTIONS.values(), ids=DISTRIBUTIONS)
def test_frequencies_follow_the_probabilities(changes: dict[str, Any], seed: int, tmp_path: Path) -> None:
    values: dict[str, Any] = {"temperature": 1.0, "seed": seed, **changes}
    params = SamplingParams(**values)
    logits = logits_of(seed, vocab=REFERENCE_VOCAB)
    expected = reference(logits[0].double().numpy(), params) * NUM_DRAWS
    sampler = Sampler(vocab_size=REFERENCE_VOCAB, package_dir=tmp_path)
    sampler.open(opened(1, params))
    counts = np.zeros(REFERENCE_VOCAB)
    for position in range(NUM_DRAWS):
        counts[sampler.sample([SampleRow(1, position + 3)], logits)[0].token_id] += 1
    sampler.shutdown()

    possible = expected > 0
    assert not counts[~possible].any()
    chi_square = float((((counts - expected) ** 2)[possible] / expected[possible]).sum())
    num_free = int(possible.sum()) - 1
    # Mean and deviation of the distribution are known; five deviations never happen by chance under fixed seeds.
    assert chi_square <= num_free + 5 * math.sqrt(2 * max(num_free, 1)), f"seed {seed}: {chi_square}, {counts}"


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(
    seed=st.integers(0, 10_000),
    temperature=st.sampled_from([0.0, 0.3, 1.0, 4.0]),
    top_k=st.integers(0, 80),
    top_p=st.floats(0.01, 1),
    min_p=st.floats(0, 1),
    typical_p=st.floats(0.01, 1),
    banned=st.lists(st.integers(0, VOCAB - 1), max_size=VOCAB - 1, unique=True),
)
def test_whatever_is_asked_for_a_token_of_the_vocabulary_comes(
    sampler: Sampler, seed: int, banned: list[int], **filters: Any
) -> None:
    params = SamplingParams(seed=seed, banned_token_ids=tuple(banned), logprobs=2, **filters)

    told = draw(sampler, params, logits_of(seed))

    assert not told.fault
    assert told.token_id in set(range(VOCAB)) - set(banned)


def drawn_with_guesses(
    sampler: Sampler, number: int, plain: list[SampledToken], rng: np.random.Generator
) -> list[SampledToken]:
    """Return the same answer drawn several tokens at a time, guesses from `plain` being right or wrong."""
    sampler.open(opened(number, MIXED[number], choice=number))
    found: list[SampledToken] = []
    while len(found) < len(plain):
        start, num_guesses = len(found), int(rng.integers(0, len(plain) - len(found)))
        right = [token.token_id for token in plain[start : start + num_guesses]]
        guesses = [token_id if rng.random() < 0.8 else (token_id + 1) % VOCAB for token_id in right]
        rows = [SampleRow(number, 3 + start + i, guess) for i, guess in enumerate([*guesses, None])]
        # The row behind a wrong guess has logits that nobody may look at.
        is_right = [guesses[:i] == right[:i] for i in range(len(rows))]
        logits = [logits_of(1000 * number + row.position) for row in rows]
        nothing = torch.full((1, VOCAB), math.nan)
        told = sampler.sample(
            rows, torch.cat([row if ok else nothing for row, ok in zip(logits, is_right, strict=True)])
        )
        assert len(told) == sum(is_right)
        found += told
    sampler.close(number)
    return found


@pytest.mark.parametrize("number", range(len(MIXED)))
def test_an_answer_is_the_same_with_and_without_guesses(sampler: Sampler, number: int, seed: int) -> None:
    plain = answers(sampler, [number], 1, num_steps=12)[number]
    rng = np.random.default_rng(seed)

    for _ in range(8):
        assert drawn_with_guesses(sampler, number, plain, rng) == plain


def test_rows_behind_a_fault_are_not_drawn(sampler: Sampler) -> None:
    logits = torch.cat([logits_of(1), torch.full((1, VOCAB), math.nan), logits_of(2)])
    first = int(logits[0].argmax())
    sampler.open(opened(1, SamplingParams()))

    told = sampler.sample([SampleRow(1, 3, first), SampleRow(1, 4, 7), SampleRow(1, 5)], logits)

    assert [(token.token_id, token.fault) for token in told] == [(first, ""), (-1, NumericalFault.code)]


def test_a_wrong_guess_of_one_sequence_is_nothing_to_another(sampler: Sampler) -> None:
    sampler.open(opened(1, SamplingParams()))
    sampler.open(opened(2, SamplingParams()))
    logits = raised(torch.zeros(4, VOCAB), _9=1.0, _73=1.0, _137=1.0, _201=1.0)

    rows = [SampleRow(1, 3, 8), SampleRow(2, 3, 9), SampleRow(1, 4), SampleRow(2, 4)]

    assert [token.sequence_id for token in sampler.sample(rows, logits)] == [1, 2, 2]
