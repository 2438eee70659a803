"""Tries a grammar as a worker would, up to the first token. Runs in a process of its own: see `grammar_check`."""

import re
from typing import TYPE_CHECKING

from teengined.core.errors import RequestError
from teengined.core.sampling import Grammar, GrammarKind
from teengined.core.strict_json import STRICT_JSON
from teengined.engine.grammar import compile_grammar, first_lines, mapped

if TYPE_CHECKING:
    import llguidance

__all__ = ["MAX_NESTING", "probe"]

# Of brackets and braces in a schema; the library refuses 128, and nobody writes 64 by hand.
MAX_NESTING = 64

_NUM_STEPS = 4

_STRING_OR_BRACKET = re.compile(r'"(?:[^"\\]|\\.)*+"|[\[\]{}]', re.DOTALL)


def probe(grammar: Grammar, tokenizer: "llguidance.LLTokenizer") -> None:
    """Compile a grammar, and look for the first tokens of some text that follows it.

    Raises:
        RequestError: what is wrong with it, and where; or it is too large to be followed.
    """
    _check_characters(grammar)
    if grammar.kind is GrammarKind.JSON_SCHEMA:
        _check_json(grammar.text)
    matcher = compile_grammar(tokenizer, grammar)
    try:
        _walk(matcher, frozenset(tokenizer.eos_tokens))
    except BaseException as error:
        raise mapped(error, f"the grammar of kind {grammar.kind.value}") from error
    if matcher.is_error():
        problem = first_lines(matcher.get_error())
        # The library's word for a grammar that no text can follow.
        problem = "no text follows it" if problem.startswith("NoExtension") else problem
        raise RequestError(f"the grammar of kind {grammar.kind.value} is refused: {problem}")


def _walk(matcher: "llguidance.LLMatcher", end_ids: frozenset[int]) -> None:
    """Take the first token that may come, some times: many grammars that grow without bound do so at once."""
    for _ in range(_NUM_STEPS):
        bitmask = int.from_bytes(matcher.compute_bitmask(), "little")
        for token_id in end_ids:
            bitmask &= ~(1 << token_id)
        if matcher.is_error() or not bitmask:
            return
        matcher.consume_token((bitmask & -bitmask).bit_length() - 1)


def _check_characters(grammar: Grammar) -> None:
    for text in (grammar.text, *grammar.choices):
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise RequestError(
                f"the grammar of kind {grammar.kind.value} is no Unicode text at character {error.start}"
            ) from error


def _check_json(text: str) -> None:
    """Refuse what is no JSON in the words that people know, before the library counts from another place."""
    depth = 0
    for found in _STRING_OR_BRACKET.finditer(text):
        depth += {"[": 1, "{": 1, "]": -1, "}": -1}.get(found.group(), 0)
        if depth > MAX_NESTING:
            raise RequestError(f"the JSON schema nests deeper than {MAX_NESTING} levels at character {found.start()}")
    try:
        schema: object = STRICT_JSON.decode(text)
    except ValueError as error:
        raise RequestError(f"the JSON schema is no JSON: {error!s:.200}") from error
    if not isinstance(schema, dict):
        raise RequestError(
            f"the JSON schema must be a JSON object, got {text.strip():.40}", hint="{} is the schema of any value"
        )
