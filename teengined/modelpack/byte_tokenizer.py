"""A tokenizer for packages without one: token i is byte i, and all others are made-up words, so that noise can be read.

Prompts become one token for each byte; an answer of a random model is a row of words that no language has.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

import tokenizers

from teengined.core.errors import RequestError

__all__ = ["BOS_ID", "EOS_ID", "write_byte_tokenizer"]

_NUM_BYTES = 256
EOS_ID = 256
"""Ends a text."""
BOS_ID = 257
"""Begins one."""

_CONSONANTS, _VOWELS = "bdfgklmnprstvz", "aeiou"
_SYLLABLES = tuple(consonant + vowel for consonant in _CONSONANTS for vowel in _VOWELS)
_SPACE = "Ġ"
_TEMPLATE = (
    "{% for message in messages %}[{{ message.role }}] {{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)


def write_byte_tokenizer(directory: Path, vocab_size: int) -> Iterable[str]:
    """Write tokenizer.json and tokenizer_config.json and return their names.

    Raises:
        RequestError: the vocabulary has no room for all bytes.
    """
    if vocab_size <= BOS_ID:
        raise RequestError(f"a vocabulary of {vocab_size} has no room for {_NUM_BYTES} bytes and two special tokens")
    library = cast("Any", tokenizers)
    tokenizer = library.Tokenizer(library.models.BPE(vocab=_vocabulary(vocab_size), merges=[]))
    tokenizer.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = library.decoders.ByteLevel()
    tokenizer.add_special_tokens(["<eos>", "<bos>"])
    tokenizer.save(str(directory / "tokenizer.json"), pretty=False)
    config = {"eos_token": "<eos>", "bos_token": "<bos>", "chat_template": _TEMPLATE}
    (directory / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return ("tokenizer.json", "tokenizer_config.json")


def _vocabulary(vocab_size: int) -> dict[str, int]:
    """Return token texts in the spelling of byte-level vocabularies, where unprintable bytes are letters above 255."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(_NUM_BYTES) if byte not in printable]
    vocabulary = {chr(byte): byte for byte in printable}
    vocabulary.update({chr(_NUM_BYTES + index): byte for index, byte in enumerate(hidden)})
    vocabulary.update({"<eos>": EOS_ID, "<bos>": BOS_ID})
    for token_id in range(BOS_ID + 1, vocab_size):
        vocabulary[_SPACE + _word(token_id)] = token_id
    return vocabulary


def _word(number: int) -> str:
    """Return the number in syllables, at least two."""
    syllables: list[str] = []
    while number or len(syllables) < 2:
        number, digit = divmod(number, len(_SYLLABLES))
        syllables.append(_SYLLABLES[digit])
    return "".join(syllables)
