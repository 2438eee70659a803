"""What is wrong with a grammar is found before its first token, and said in words that name the place."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from teengined.core.errors import PackageError, RequestError
from teengined.core.sampling import MAX_GRAMMAR_CHARACTERS, Grammar, GrammarKind
from teengined.engine.grammar import read_tokenizer
from teengined.service.grammar_probe import MAX_NESTING, probe
from tests.fakes.byte_package import EOS, write_byte_package

if TYPE_CHECKING:
    import llguidance


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> "llguidance.LLTokenizer":
    return read_tokenizer(write_byte_package(tmp_path_factory.mktemp("store")))


def nested(levels: int) -> str:
    """Return a schema of so many levels of braces and brackets."""
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(levels - 1):
        schema = {"items": schema} if len(json.dumps(schema)) % 2 else {"anyOf": [schema]}
    return json.dumps(schema)


VALID = {
    "empty schema": Grammar(kind=GrammarKind.JSON_SCHEMA, text=" {} "),
    "object": Grammar(kind=GrammarKind.JSON_OBJECT),
    "tree": Grammar(
        kind=GrammarKind.JSON_SCHEMA,
        text=json.dumps(
            {
                "$ref": "#/$defs/tree",
                "$defs": {
                    "tree": {
                        "type": "object",
                        "properties": {"children": {"type": "array", "items": {"$ref": "#/$defs/tree"}}},
                        "additionalProperties": False,
                    }
                },
            }
        ),
    ),
    "brackets in strings": Grammar(kind=GrammarKind.JSON_SCHEMA, text=json.dumps({"const": '[{"\\' * 100})),
    "deep": Grammar(kind=GrammarKind.JSON_SCHEMA, text='{"const":' + "[" * 60 + "]" * 60 + "}"),
    "regex": Grammar(kind=GrammarKind.REGEX, text=r"\w+@\w+\.(com|org)"),
    "empty answer": Grammar(kind=GrammarKind.REGEX, text="a{0}"),
    "choice": Grammar(kind=GrammarKind.CHOICE, choices=("a", '"b"', "\\", "日本\n")),
    "lark": Grammar(kind=GrammarKind.LARK, text='start: "(" start ")" | "x"'),
    "left recursion": Grammar(kind=GrammarKind.LARK, text='start: start "a" | "b"'),
    "names the end": Grammar(kind=GrammarKind.LARK, text='start: "a" <eos>'),
}

REFUSED = {
    "no json": (GrammarKind.JSON_SCHEMA, '{"type": object}', "no JSON: Expecting value: line 1 column 10"),
    "half a json": (GrammarKind.JSON_SCHEMA, "[", "no JSON"),
    "number that is none": (GrammarKind.JSON_SCHEMA, '{"minimum": NaN}', "NaN is no JSON number"),
    "endless number": (GrammarKind.JSON_SCHEMA, "1" * MAX_GRAMMAR_CHARACTERS, "no JSON"),
    "no object": (GrammarKind.JSON_SCHEMA, "[1]", "must be a JSON object"),
    "true": (GrammarKind.JSON_SCHEMA, "true", "must be a JSON object"),
    "too deep": (GrammarKind.JSON_SCHEMA, nested(MAX_NESTING * 2), f"deeper than {MAX_NESTING} levels"),
    "much too deep": (GrammarKind.JSON_SCHEMA, "[" * MAX_GRAMMAR_CHARACTERS, f"deeper than {MAX_NESTING} levels"),
    "unknown type": (GrammarKind.JSON_SCHEMA, '{"type":"wombat"}', "wombat"),
    "unknown keyword": (GrammarKind.JSON_SCHEMA, '{"not":{}}', '"not"'),
    "schema of nothing": (GrammarKind.JSON_SCHEMA, '{"allOf":[{"type":"null"},{"type":"string"}]}', "refused"),
    "reference elsewhere": (GrammarKind.JSON_SCHEMA, '{"$ref":"https://example.com/s"}', "example.com"),
    "reference to itself": (GrammarKind.JSON_SCHEMA, '{"$ref":"#"}', "no text follows it"),
    "references in a circle": (
        GrammarKind.JSON_SCHEMA,
        '{"$defs":{"a":{"$ref":"#/$defs/b"},"b":{"$ref":"#/$defs/a"}},"$ref":"#/$defs/a"}',
        "no text follows it",
    ),
    "too many cases": (
        GrammarKind.JSON_SCHEMA,
        json.dumps(
            {"allOf": [{"anyOf": [{"properties": {f"{i}.{j}": {"const": j}}} for j in range(9)]} for i in range(9)]}
        ),
        "too large",
    ),
    "open group": (GrammarKind.REGEX, "a(b", "unclosed group"),
    "back reference": (GrammarKind.REGEX, r"(a)\1", "backreferences are not supported"),
    "look ahead": (GrammarKind.REGEX, "a(?=b)", "look-around"),
    "regex too deep": (GrammarKind.REGEX, "(" * 30_000 + "a" + ")" * 30_000, "refused"),
    "regex of nothing": (GrammarKind.REGEX, r"[^\x00-\U0010FFFF]", "no text follows it"),
    "no unicode": (GrammarKind.REGEX, "ab\ud800", "no Unicode text at character 2"),
    "no lark": (GrammarKind.LARK, "start: (((", "1(11)"),
    "no start": (GrammarKind.LARK, 'first: "a"', "no start rule"),
    "lark too deep": (GrammarKind.LARK, "start: " + "(" * 20_000 + '"a"' + ")" * 20_000, "too deeply nested"),
    "rule of itself": (GrammarKind.LARK, "start: start", "no text follows it"),
    "rules in a circle": (GrammarKind.LARK, "start: a\na: b\nb: a", "no text follows it"),
    "rule without end": (GrammarKind.LARK, 'start: "x" start', "Too many items"),
    "token of itself": (GrammarKind.LARK, "start: A\nA: A", "circular reference"),
    "doubling tokens": (
        GrammarKind.LARK,
        "\n".join(["start: A0", *(f"A{i}: A{i + 1} A{i + 1}" for i in range(40)), 'A40: "a"']),
        "too big",
    ),
    "unknown special token": (GrammarKind.LARK, "start: <nothing>", "unknown special token"),
    "file": (GrammarKind.LARK, "%import /etc/passwd.X\nstart: X", "refused"),
}


@pytest.mark.parametrize("grammar", VALID.values(), ids=VALID)
def test_what_can_be_followed_passes(tokenizer: "llguidance.LLTokenizer", grammar: Grammar) -> None:
    probe(grammar, tokenizer)


@pytest.mark.parametrize(("kind", "text", "said"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_followed_is_refused_with_the_reason(
    tokenizer: "llguidance.LLTokenizer", kind: GrammarKind, text: str, said: str
) -> None:
    with pytest.raises(RequestError) as refused:
        probe(Grammar(kind=kind, text=text), tokenizer)

    assert said in refused.value.message
    assert len(refused.value.message) < 500
    assert "<state>" not in refused.value.message


def test_the_deepest_schema_that_is_allowed_passes(tokenizer: "llguidance.LLTokenizer") -> None:
    probe(Grammar(kind=GrammarKind.JSON_SCHEMA, text='{"const":' + "[" * 63 + "]" * 63 + "}"), tokenizer)


def test_ends_of_a_text_are_those_of_the_package(tmp_path: Path) -> None:
    package = write_byte_package(tmp_path)

    assert read_tokenizer(package).eos_tokens == [EOS]
    assert read_tokenizer(package, (257, 99_999)).eos_tokens == [257]


@pytest.mark.parametrize("content", [b"", b"\xff", b"{}", b"[" * 100_000, b'{"model":{"type":"BPE"}}'])
def test_a_damaged_tokenizer_is_told_by_name(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "tokenizer.json").write_bytes(content)

    with pytest.raises((PackageError, RequestError), match=tmp_path.name):
        read_tokenizer(tmp_path)
