"""An answer under a grammar is a text of that grammar, whatever the model wants and however it was interrupted."""

import json
import re
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from teengined.core.sampling import Grammar, GrammarKind, SamplingParams
from teengined.engine import grammar_masks
from teengined.engine.grammar import read_tokenizer
from teengined.engine.sampler import Sampler, SampleRow
from teengined.protocol.worker_messages import SampledToken, SequenceOpen
from tests.fakes.byte_package import EOS, write_byte_package

# Wider than the tokenizer's 258, as embeddings that were padded are.
VOCAB = 300
PROMPT = (104, 105)

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 6},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "size": {"enum": ["s", "m", "l"]},
        "tags": {"type": "array", "items": {"type": "boolean"}, "minItems": 1, "maxItems": 3},
        "next": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/leaf"}]},
    },
    "required": ["name", "age", "size", "tags", "next"],
    "additionalProperties": False,
    "$defs": {
        "leaf": {
            "type": "object",
            "properties": {"ok": {"type": "boolean"}},
            "required": ["ok"],
            "additionalProperties": False,
        }
    },
}


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_byte_package(tmp_path_factory.mktemp("store"))


@pytest.fixture
def sampler(package: Path) -> Iterator[Sampler]:
    made = Sampler(vocab_size=VOCAB, package_dir=package)
    yield made
    made.shutdown()


def grammar(kind: GrammarKind, text: str = "", choices: Sequence[str] = ()) -> Grammar:
    return Grammar(kind=kind, text=text, choices=tuple(choices))


def params_of(wanted: Grammar, **changes: Any) -> SamplingParams:
    return SamplingParams(grammar=wanted, **changes)


def open_sequence(sampler: Sampler, params: SamplingParams, answer: Sequence[int] = (), **changes: Any) -> None:
    values: dict[str, Any] = {"eos_token_ids": (EOS,), "num_prompt_tokens": 2, **changes}
    sampler.open(SequenceOpen(sequence_id=1, sampling=params, history=(*PROMPT, *answer), **values))


def random_row(seed: int, position: int, vocab: int = VOCAB) -> torch.Tensor:
    return torch.randn(1, vocab, generator=torch.Generator().manual_seed(seed * 10_000 + position)) * 3


def draw(sampler: Sampler, position: int, seed: int = 0, vocab: int = VOCAB) -> SampledToken:
    return sampler.sample([SampleRow(1, position)], random_row(seed, position, vocab))[0]


def answer(sampler: Sampler, *, seed: int = 0, known: Sequence[int] = (), most: int = 400) -> list[int]:
    """Draw from random logits until the end of sequence comes, and return the tokens with it."""
    tokens = list(known)
    while len(tokens) < most and tokens[-1:] != [EOS]:
        drawn = draw(sampler, len(tokens) + 2, seed)
        assert not drawn.fault, f"seed {seed}: {drawn.message} after {bytes(tokens)!r}"
        tokens.append(drawn.token_id)
    assert tokens[-1] == EOS, f"seed {seed}: no end after {bytes(tokens)!r}"
    return tokens


def text_of(tokens: list[int]) -> str:
    return bytes(tokens[:-1]).decode()


def check(value: Any) -> None:
    """Hold a value to SCHEMA by hand."""
    assert list(value) == ["name", "age", "size", "tags", "next"]
    assert isinstance(value["name"], str)
    assert len(value["name"]) <= 6
    assert type(value["age"]) is int
    assert 0 <= value["age"] <= 120
    assert value["size"] in ("s", "m", "l")
    assert 1 <= len(value["tags"]) <= 3
    assert all(isinstance(tag, bool) for tag in value["tags"])
    assert value["next"] is None or (list(value["next"]) == ["ok"] and isinstance(value["next"]["ok"], bool))


@pytest.mark.parametrize("temperature", [0.0, 1.0, 20.0])
@pytest.mark.parametrize("seed", range(6))
def test_random_logits_are_forced_into_the_schema(sampler: Sampler, seed: int, temperature: float) -> None:
    wanted = grammar(GrammarKind.JSON_SCHEMA, json.dumps(SCHEMA))
    open_sequence(sampler, params_of(wanted, temperature=temperature, seed=seed))

    check(json.loads(text_of(answer(sampler, seed=seed))))


@pytest.mark.parametrize("seed", range(5))
def test_an_answer_matches_its_regular_expression(sampler: Sampler, seed: int) -> None:
    pattern = r"([0-9]{3}-){2}[a-fé]{1,4}"
    open_sequence(sampler, params_of(grammar(GrammarKind.REGEX, pattern), temperature=1.0))

    assert re.fullmatch(pattern, text_of(answer(sampler, seed=seed)))


@pytest.mark.parametrize("seed", range(5))
def test_an_answer_is_one_of_the_choices(sampler: Sampler, seed: int) -> None:
    choices = ["yes", "no", 'per"haps\\', "naïve\n", "日本", "😀", "no way"]
    open_sequence(sampler, params_of(grammar(GrammarKind.CHOICE, choices=choices), temperature=5.0))

    assert text_of(answer(sampler, seed=seed)) in choices


def test_an_answer_follows_a_lark_grammar(sampler: Sampler) -> None:
    lark = 'start: "(" start ")" | "x" /[0-9]/'
    open_sequence(sampler, params_of(grammar(GrammarKind.LARK, lark), temperature=1.0))

    assert re.fullmatch(r"\(*x\d\)*", text_of(answer(sampler)))


def test_any_object_is_a_json_object(sampler: Sampler) -> None:
    open_sequence(sampler, params_of(grammar(GrammarKind.JSON_OBJECT), temperature=1.0))

    first = draw(sampler, 2)

    assert bytes([first.token_id]) == b"{"


def test_whitespace_in_json_comes_to_an_end(sampler: Sampler) -> None:
    spaces = torch.zeros(1, VOCAB)
    spaces[0, 32] = 9.0
    open_sequence(sampler, params_of(grammar(GrammarKind.JSON_SCHEMA, '{"type":"array","items":{"type":"null"}}')))
    drawn = [sampler.sample([SampleRow(1, 2 + i)], spaces)[0].token_id for i in range(60)]

    assert drawn.count(32) < 40


@pytest.mark.parametrize("cut", [0, 1, 5, 17])
@pytest.mark.parametrize(
    "wanted",
    [grammar(GrammarKind.JSON_SCHEMA, json.dumps(SCHEMA)), grammar(GrammarKind.REGEX, "[a-z]{30}(x|y)*")],
    ids=["json_schema", "regex"],
)
def test_a_preempted_answer_goes_on_as_it_would_have(sampler: Sampler, wanted: Grammar, cut: int) -> None:
    params = params_of(wanted, temperature=1.0, seed=3, frequency_penalty=0.1)
    open_sequence(sampler, params)
    straight = answer(sampler, seed=2)
    sampler.close(1)

    open_sequence(sampler, params, straight[:cut])

    assert answer(sampler, seed=2, known=straight[:cut]) == straight


def test_where_the_grammar_is_complete_only_the_end_is_left(sampler: Sampler) -> None:
    open_sequence(sampler, params_of(grammar(GrammarKind.REGEX, "a"), ignore_eos=True))

    assert [draw(sampler, 2 + i).token_id for i in range(4)] == [97, EOS, EOS, EOS]


def test_where_the_grammar_may_go_on_both_are_left(sampler: Sampler) -> None:
    open_sequence(sampler, params_of(grammar(GrammarKind.REGEX, "ab*"), temperature=50.0))
    seen = {draw(sampler, 2).token_id}
    sampler.close(1)
    for seed in range(20):
        open_sequence(sampler, params_of(grammar(GrammarKind.REGEX, "ab*"), temperature=50.0, seed=seed), (97,))
        seen.add(draw(sampler, 3).token_id)
        sampler.close(1)

    assert seen == {97, 98, EOS}


def test_a_stop_token_is_drawn_only_where_the_grammar_may_end(sampler: Sampler) -> None:
    row = torch.zeros(1, VOCAB)
    row[0, 98] = 9.0
    open_sequence(sampler, params_of(grammar(GrammarKind.REGEX, "(ab){2}"), stop_token_ids=(98,)))

    told = sampler.sample([SampleRow(1, 2)], row)[0], sampler.sample([SampleRow(1, 3)], row)[0]

    assert told[0].token_id == 97
    assert told[1].fault == "invalid_request"
    assert "no token of the model's vocabulary can follow" in told[1].message


def test_a_grammar_may_name_the_end_of_sequence_itself(sampler: Sampler) -> None:
    open_sequence(sampler, params_of(grammar(GrammarKind.LARK, 'start: "a" <eos>')))

    assert [draw(sampler, 2 + i).token_id for i in range(3)] == [97, EOS, EOS]


def test_without_an_end_of_sequence_stop_tokens_end_the_answer(sampler: Sampler) -> None:
    params = params_of(grammar(GrammarKind.REGEX, "a"), stop_token_ids=(257,))
    open_sequence(sampler, params, eos_token_ids=())

    assert [draw(sampler, 2).token_id, draw(sampler, 3).token_id] == [97, 257]


def test_ends_that_the_tokenizer_or_the_model_lacks_are_nobodys_fault(sampler: Sampler) -> None:
    params = params_of(grammar(GrammarKind.REGEX, "a"), stop_token_ids=(VOCAB + 5, 2**31 - 1))
    open_sequence(sampler, params, eos_token_ids=(VOCAB - 1, VOCAB))

    assert [draw(sampler, 2 + i).token_id for i in range(2)] == [97, VOCAB - 1]


def test_a_complete_grammar_with_nothing_to_end_it_is_a_fault_that_says_so(sampler: Sampler) -> None:
    open_sequence(sampler, params_of(grammar(GrammarKind.REGEX, "a")), eos_token_ids=())

    assert draw(sampler, 2).token_id == 97
    told = draw(sampler, 3)
    assert (told.token_id, told.fault) == (-1, "invalid_request")
    assert "complete" in told.message
    assert "stop_token_ids" in told.message


@pytest.mark.parametrize("changes", [{"banned_token_ids": (97,)}, {"allowed_token_ids": (98,)}, {"min_tokens": 5}])
def test_bans_against_the_grammar_leave_nothing(sampler: Sampler, changes: dict[str, Any]) -> None:
    text = "a" if "min_tokens" not in changes else "a?"
    open_sequence(sampler, params_of(grammar(GrammarKind.REGEX, text), **changes), (97,) * ("min_tokens" in changes))

    told = draw(sampler, 3 if "min_tokens" in changes else 2)

    assert (told.token_id, told.fault) == (-1, "invalid_request")


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        (grammar(GrammarKind.REGEX, "a("), "unclosed group"),
        (grammar(GrammarKind.LARK, "nothing"), "lark"),
        (grammar(GrammarKind.JSON_SCHEMA, "{"), "json_schema"),
        (grammar(GrammarKind.JSON_SCHEMA, '{"type":"wombat"}'), "wombat"),
        (grammar(GrammarKind.JSON_SCHEMA, '{"$ref":"#"}'), "cannot be followed"),
        (grammar(GrammarKind.REGEX, "\ud800"), "regex"),
    ],
)
def test_a_grammar_that_does_not_compile_fails_its_sequence_alone(sampler: Sampler, wanted: Grammar, said: str) -> None:
    open_sequence(sampler, params_of(wanted))
    sampler.open(SequenceOpen(sequence_id=2, num_prompt_tokens=2, sampling=SamplingParams()))

    drawn = sampler.sample([SampleRow(1, 2), SampleRow(2, 2)], torch.zeros(2, VOCAB))

    assert (drawn[0].token_id, drawn[0].fault) == (-1, "invalid_request")
    assert said in drawn[0].message
    assert len(drawn[0].message) < 500
    assert (drawn[1].token_id, drawn[1].fault) == (0, "")


def test_a_grammar_that_grows_without_bound_fails_in_its_step(sampler: Sampler) -> None:
    open_sequence(sampler, params_of(grammar(GrammarKind.LARK, 'start: "x" start')))

    told = [draw(sampler, 2 + i) for i in range(2)]

    assert any("cannot be followed" in token.message for token in told)


def test_many_sequences_share_the_threads(sampler: Sampler) -> None:
    """Each has its own state, and neighbours change nothing."""
    wanted = grammar(GrammarKind.REGEX, "[a-z]{3}[0-9]{3}")
    params = params_of(wanted, temperature=1.0)
    for sequence_id in range(40):
        opened = SequenceOpen(
            sequence_id=sequence_id, num_prompt_tokens=2, sampling=params, choice=sequence_id, history=PROMPT
        )
        sampler.open(opened)
    texts = [""] * 40
    for position in range(2, 8):
        rows = torch.cat([random_row(sequence_id, position) for sequence_id in range(40)])
        for token in sampler.sample([SampleRow(sequence_id, position) for sequence_id in range(40)], rows):
            texts[token.sequence_id] += chr(token.token_id)

    assert all(re.fullmatch("[a-z]{3}[0-9]{3}", text) for text in texts)
    assert len(set(texts)) > 30


def test_closing_does_not_wait_for_what_is_computed(sampler: Sampler) -> None:
    for _ in range(30):
        open_sequence(sampler, params_of(grammar(GrammarKind.JSON_SCHEMA, json.dumps(SCHEMA))))
        sampler.close(1)

    open_sequence(sampler, params_of(grammar(GrammarKind.REGEX, "x")))
    (token,) = sampler.sample([SampleRow(1, 2)], random_row(1, 2))
    assert chr(token.token_id) == "x"


def test_tokens_of_several_bytes_and_letters_that_end_a_text_are_told_apart(tmp_path: Path) -> None:
    """A model whose end of sequence is an ordinary token, here `ab`, still ends only where the grammar does."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {symbol: index for index, symbol in enumerate([*alphabet, "ab", "abab"])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[("a", "b"), ("ab", "ab")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    tokenizer.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    sampler = Sampler(vocab_size=258, package_dir=tmp_path)
    row = torch.zeros(1, 258)
    row[0, 256] = 9.0
    row[0, 257] = 5.0
    open_sequence(sampler, params_of(grammar(GrammarKind.REGEX, "abab")), eos_token_ids=(256,))

    drawn = [sampler.sample([SampleRow(1, position)], row)[0].token_id for position in (2, 3)]
    sampler.shutdown()

    assert drawn == [257, 256]


def test_a_tokenizer_that_is_read_ahead_is_not_read_again(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[tuple[int, ...]] = []

    def counted(package_dir: Path, end_ids: tuple[int, ...]) -> Any:
        read.append(end_ids)
        return read_tokenizer(package_dir, end_ids)

    monkeypatch.setattr(grammar_masks, "read_tokenizer", counted)
    sampler = Sampler(vocab_size=VOCAB, package_dir=package)
    sampler.prepare_grammars([EOS])
    open_sequence(sampler, params_of(grammar(GrammarKind.REGEX, "ab")))

    assert text_of(answer(sampler)) == "ab"
    assert read == [(EOS,)]
    sampler.shutdown()


def test_a_mask_that_does_not_come_in_time_fails_its_sequence_alone(
    package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on = threading.Event()

    def held_up(package_dir: Path, end_ids: tuple[int, ...]) -> Any:
        go_on.wait()
        return read_tokenizer(package_dir, end_ids)

    monkeypatch.setattr(grammar_masks, "read_tokenizer", held_up)
    monkeypatch.setattr(grammar_masks, "_WAIT_SECONDS", 0.05)
    sampler = Sampler(vocab_size=VOCAB, package_dir=package)
    try:
        open_sequence(sampler, params_of(grammar(GrammarKind.REGEX, "ab")))
        sampler.open(SequenceOpen(sequence_id=2, num_prompt_tokens=2, sampling=SamplingParams()))
        drawn = sampler.sample([SampleRow(1, 2), SampleRow(2, 2)], torch.zeros(2, VOCAB))
    finally:
        go_on.set()
        sampler.shutdown()

    assert (drawn[0].token_id, drawn[0].fault) == (-1, "deadline_exceeded")
    assert (drawn[1].token_id, drawn[1].fault) == (0, "")


def test_guesses_change_nothing_under_a_grammar(sampler: Sampler, seed: int) -> None:
    params = params_of(grammar(GrammarKind.JSON_SCHEMA, json.dumps(SCHEMA)), temperature=1.0, seed=3)
    open_sequence(sampler, params)
    plain = answer(sampler, seed=seed)
    sampler.close(1)
    open_sequence(sampler, params)
    found: list[int] = []
    while len(found) < len(plain):
        right = plain[len(found) : len(found) + 5]
        guesses = [*right[:3], 0, 0] if len(found) % 2 else right[:-1]
        rows = [SampleRow(1, 2 + len(found) + i, guess) for i, guess in enumerate([*guesses, None])]
        drawn = sampler.sample(rows, torch.cat([random_row(seed, row.position) for row in rows]))
        assert not any(token.fault for token in drawn)
        found += [token.token_id for token in drawn]

    # Where a guess was the end, one more was drawn: whoever counts the tokens drops it.
    assert found[: len(plain)] == plain, f"seed {seed}"
