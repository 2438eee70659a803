"""Grammars as llguidance takes them, the same for the check at admission and for the worker. Imports no torch.

The library bounds what a grammar may cost in compiling and in each step; the bounds are here, so that what one side
accepts compiles on the other. Some grammars still escape them (`multipleOf` a large number never ends), which is why
the check runs in a process that can be killed.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING

from teengined.core.errors import PackageError, RequestError
from teengined.core.sampling import Grammar, GrammarKind
from teengined.modelpack.layout import MAX_TOKENIZER_BYTES

if TYPE_CHECKING:
    import llguidance

__all__ = ["compile_grammar", "first_lines", "mapped", "read_tokenizer"]

# States of a compiled lexer, 1 to 2 kB each: ten times what large schemas use, and some 40 MB for a hostile one.
_MAX_LEXER_STATES = 20_000
# A step that needs more than this (14,000 and 20,000 a millisecond) is refused: the library's own defaults.
_STEP_LEXER_FUEL = 200_000
_STEP_ITEMS = 50_000
# Building of regular expressions, 50,000 a millisecond: the library's default, too.
_INITIAL_LEXER_FUEL = 1_000_000
# Symbols in productions: the largest schema that a grammar's text can hold makes a fifth of it.
_MAX_GRAMMAR_SIZE = 500_000
# Models that are forced into JSON tend to fall into endless whitespace. So much indents sixteen levels by two.
_WHITESPACE = r"[\x20\x0A\x0D\x09]{1,33}"
_MESSAGE_CHARACTERS = 300
_ANY_OBJECT = '{"type":"object"}'


def read_tokenizer(package_dir: Path, eos_token_ids: tuple[int, ...] = ()) -> "llguidance.LLTokenizer":
    """Return the package's tokenizer for masks. Slow: a tenth of a second to some seconds.

    The library must know which tokens end a text, or it guesses one by name, and takes id 0 where no name helps.

    Raises:
        PackageError: `tokenizer.json` cannot be read.
        RequestError: it is of a kind that grammars cannot be used with.
    """
    import llguidance

    path = package_dir / "tokenizer.json"
    try:
        if path.stat().st_size > MAX_TOKENIZER_BYTES:
            raise PackageError(f"{package_dir.name}: tokenizer.json is larger than {MAX_TOKENIZER_BYTES} bytes")
        text = path.read_text("utf-8")
    except (OSError, ValueError) as error:
        raise PackageError(f"{package_dir.name}: tokenizer.json cannot be read: {error!s:.200}") from error
    try:
        guessed = llguidance.LLTokenizer(text)
        known = [token_id for token_id in eos_token_ids if token_id < guessed.vocab_size]
        if not known or set(known) == set(guessed.eos_tokens):
            return guessed
        return llguidance.LLTokenizer(text, eos_token=known)
    except BaseException as error:
        raise mapped(error, f"{package_dir.name} cannot follow grammars: its tokenizer") from error


def compile_grammar(tokenizer: "llguidance.LLTokenizer", grammar: Grammar) -> "llguidance.LLMatcher":
    """Return a matcher at the start of a text.

    Raises:
        RequestError: the grammar is invalid, or too large to be followed.
    """
    import llguidance

    limits = llguidance.LLParserLimits(
        initial_lexer_fuel=_INITIAL_LEXER_FUEL,
        step_lexer_fuel=_STEP_LEXER_FUEL,
        step_max_items=_STEP_ITEMS,
        max_lexer_states=_MAX_LEXER_STATES,
        max_grammar_size=_MAX_GRAMMAR_SIZE,
        verbose_errors=False,
    )
    try:
        matcher = llguidance.LLMatcher(tokenizer, _library_form(grammar), log_level=0, limits=limits)
    except BaseException as error:
        raise mapped(error, f"the grammar of kind {grammar.kind.value}") from error
    if matcher.is_error():
        raise RequestError(f"the grammar of kind {grammar.kind.value} is refused: {first_lines(matcher.get_error())}")
    return matcher


def first_lines(text: str) -> str:
    """Return what a person needs of the library's message: it goes on with the state of its parser."""
    said = text.partition("\n<")[0].strip()
    return said if len(said) <= _MESSAGE_CHARACTERS else f"{said[:_MESSAGE_CHARACTERS]}…"


def mapped(error: BaseException, what: str) -> BaseException:
    """Return our error for what the library raised, or the same error if it is not the library's.

    A panic of the library is no `Exception`; left alone it would end the thread that met it.
    """
    is_panic = type(error).__name__ == "PanicException"
    if not isinstance(error, (ValueError, TypeError, RuntimeError)) and not is_panic:
        return error
    return RequestError(f"{what} is refused: {first_lines(str(error))}")


def _library_form(grammar: Grammar) -> str:
    from llguidance import LLMatcher

    match grammar.kind:
        case GrammarKind.JSON_SCHEMA:
            return LLMatcher.grammar_from_json_schema(grammar.text, defaults={"whitespace_pattern": _WHITESPACE})
        case GrammarKind.JSON_OBJECT:
            return LLMatcher.grammar_from_json_schema(_ANY_OBJECT, defaults={"whitespace_pattern": _WHITESPACE})
        case GrammarKind.REGEX:
            return LLMatcher.grammar_from_regex(grammar.text)
        case GrammarKind.CHOICE:
            alternatives = " | ".join(json.dumps(choice, ensure_ascii=False) for choice in grammar.choices)
            return LLMatcher.grammar_from_lark(f"start: {alternatives}")
        case GrammarKind.LARK:
            return LLMatcher.grammar_from_lark(grammar.text)
