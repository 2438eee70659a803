from pathlib import Path

import pytest

from teengined.cli.parameters import changed, parameter_names, setting_of, shown, unlike_default
from teengined.core.sampling import Grammar, GrammarKind, SamplingParams

DEFAULTS = SamplingParams()
EXAMPLES = {
    "max_tokens": ("12", 12),
    "min_tokens": ("3", 3),
    "temperature": ("0.7", 0.7),
    "top_k": ("40", 40),
    "top_p": ("0.9", 0.9),
    "min_p": ("0.05", 0.05),
    "typical_p": ("0.95", 0.95),
    "repetition_penalty": ("1.1", 1.1),
    "presence_penalty": ("-0.5", -0.5),
    "frequency_penalty": ("0.5", 0.5),
    "logit_bias": ("42:-1.5, 7:2", ((42, -1.5), (7, 2.0))),
    "allowed_token_ids": ("1 2, 3", (1, 2, 3)),
    "banned_token_ids": ("1", (1,)),
    "stop": ("END 'the end'", ("END", "the end")),
    "stop_token_ids": ("2", (2,)),
    "include_stop": ("on", True),
    "grammar": ("json", Grammar(kind=GrammarKind.JSON_OBJECT)),
    "seed": ("7", 7),
    "ignore_eos": ("true", True),
}


@pytest.mark.parametrize("name", parameter_names())
def test_every_parameter_of_a_chat_is_set_shown_and_taken_back(name: str):
    text, value = EXAMPLES[name]

    sampling = changed(DEFAULTS, name, text)

    assert getattr(sampling, name) == value
    assert unlike_default(sampling) == (name,)
    if name != "grammar":
        assert changed(DEFAULTS, name, shown(sampling, name)) == sampling
    assert changed(sampling, name, "default") == DEFAULTS


def test_names_may_be_written_as_options_are():
    assert setting_of("top-k") == "top_k"
    assert setting_of("format") == "grammar"


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("max_tokens", "many", "max_tokens takes a whole number or default, not 'many'"),
        ("max_tokens", "1.5", "max_tokens takes a whole number"),
        ("max_tokens", "0", "max_tokens must be between"),
        ("temperature", "nan", "temperature must be between"),
        ("ignore_eos", "maybe", "ignore_eos takes on or off"),
        ("logit_bias", "42", "logit_bias takes pairs of token id and bias"),
        ("logit_bias", "42:1:2", "logit_bias takes pairs of token id and bias"),
        ("stop", "'never closed", "stop takes texts"),
        ("stop", "''", r"length of stop\[0\]"),
        ("stop_token_ids", "eos", "stop_token_ids takes token ids"),
        ("format", "no such file", "format is json or a file with a JSON schema"),
        ("logprobs", "1", "no meaning in a chat"),
        ("", "1", "no parameter is named ''"),
    ],
)
def test_a_value_that_cannot_be_is_refused_in_a_sentence(name: str, text: str, told: str):
    with pytest.raises(ValueError, match=told):
        changed(DEFAULTS, name, text)


def test_a_schema_is_read_from_its_file(tmp_path: Path):
    file = tmp_path / "schema.json"
    file.write_text('{"type": "object"}')

    sampling = changed(DEFAULTS, "format", str(file))

    assert sampling.grammar == Grammar(kind=GrammarKind.JSON_SCHEMA, text='{"type": "object"}')
    assert shown(sampling, "format") == "json_schema"
