"""What is asked of a request before any work is done for it. Pure."""

import hashlib
import math
import os
from collections.abc import Iterable
from dataclasses import dataclass

from teengined.core.errors import ContextTooLong, RequestError
from teengined.core.sampling import MAX_LOGPROBS, SamplingParams
from teengined.protocol.messages import Embed, Generate, Score

__all__ = [
    "ModelLimits",
    "cache_salt_of",
    "check_embed",
    "check_generate",
    "check_prompt",
    "check_score",
    "check_told",
    "may_act_for",
    "owner_of",
    "timeout_of",
]

MIN_PRIORITY, MAX_PRIORITY = -100, 100
# Names are told in lists and kept in tables; a UUID has 36 characters.
MAX_NAME_CHARACTERS = 128
# What is told of a token, and of each alternative, takes so much in a message at most: names, an integer, a double.
_TOLD_BYTES = 40
_ALTERNATIVE_BYTES = 15
_USER = "uid:"
# Decides nothing; it only differs from daemon to daemon.
_THIS_PROCESS = os.urandom(16)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelLimits:
    """What one deployment takes."""

    model: str
    vocab_size: int
    context_tokens: int
    max_choices: int
    max_inputs: int
    """Of one request for embeddings."""
    max_seconds: float
    """Longest answer."""
    max_reply_bytes: int


def owner_of(peer_address: str, routing_id: bytes) -> str:
    """Return whose request it is: the user of the process that sent it, as the kernel told ZeroMQ.

    `peer_address` is `host:uid:gid:pid` for a local socket. Where it says nothing, each connection is its own owner.
    """
    parts = peer_address.split(":")
    if len(parts) == 4 and parts[1].isdigit():
        return f"{_USER}{parts[1]}"
    return f"client:{routing_id.hex()}"


def may_act_for(caller: str, owner: str, daemon_uid: int) -> bool:
    """Say whether a caller may see and stop an owner's requests: the owner itself, root, and the daemon's own user."""
    return caller in (owner, "uid:0", f"uid:{daemon_uid}")


def cache_salt_of(owner: str, salt: str) -> bytes:
    """Return what keeps cached prefixes of one owner and salt apart from all others.

    For a user it is always the same, so that prefixes which outlive the daemon are found again. A connection's name may
    be another's in the next daemon.
    """
    digest = hashlib.blake2b(b"" if owner.startswith(_USER) else _THIS_PROCESS, digest_size=16)
    for part in (owner, salt):
        content = part.encode()
        digest.update(len(content).to_bytes(8, "little") + content)
    return digest.digest()


def timeout_of(wanted_seconds: float, limits: ModelLimits) -> float:
    """Return how long a request may take; 0 asks for the longest.

    Raises:
        RequestError: it is no time.
    """
    if not (math.isfinite(wanted_seconds) and wanted_seconds >= 0):
        raise RequestError(f"timeout_seconds must be at least 0, got {wanted_seconds}")
    return min(wanted_seconds or limits.max_seconds, limits.max_seconds)


def check_generate(message: Generate, limits: ModelLimits) -> None:
    """Hold a request to what can be seen without its tokens.

    Raises:
        RequestError: names the field and what it may be.
    """
    num_given = (message.prompt is not None) + bool(message.messages) + bool(message.token_ids)
    if num_given != 1:
        raise RequestError(f"exactly one of prompt, messages and token_ids must be given, got {num_given}")
    if (message.tools or message.template_options) and not message.messages:
        raise RequestError("tools and template_options are for messages", hint="send messages instead of a prompt")
    if not MIN_PRIORITY <= message.priority <= MAX_PRIORITY:
        raise RequestError(f"priority must be between {MIN_PRIORITY} and {MAX_PRIORITY}, got {message.priority}")
    if message.credits < 0:
        raise RequestError(f"credits must be at least 0, got {message.credits}")
    for name in ("client_id", "cache_salt"):
        if len(getattr(message, name)) > MAX_NAME_CHARACTERS:
            raise RequestError(f"{name} has at most {MAX_NAME_CHARACTERS} characters")
    _check_sampling(message.sampling, limits)


def _check_sampling(sampling: SamplingParams, limits: ModelLimits) -> None:
    if sampling.num_choices > limits.max_choices:
        raise RequestError(
            f"num_choices is {sampling.num_choices}; the limit is {limits.max_choices}",
            hint="ask for fewer, send several requests, or raise batching.max_choices",
        )
    named = {
        "logit_bias": (token_id for token_id, _ in sampling.logit_bias),
        "allowed_token_ids": sampling.allowed_token_ids,
        "banned_token_ids": sampling.banned_token_ids,
        "stop_token_ids": sampling.stop_token_ids,
    }
    for name, token_ids in named.items():
        _check_ids(name, token_ids, limits.vocab_size)
    if sampling.allowed_token_ids and set(sampling.allowed_token_ids) <= set(sampling.banned_token_ids):
        raise RequestError("every allowed token is banned", hint="allow one that is not in banned_token_ids")
    if len(set(sampling.banned_token_ids)) >= limits.vocab_size:
        raise RequestError("every token of the vocabulary is banned")


def _check_ids(name: str, token_ids: Iterable[int], vocab_size: int) -> None:
    wrong = next((token_id for token_id in token_ids if not 0 <= token_id < vocab_size), None)
    if wrong is not None:
        raise RequestError(f"{name}: token ids must be between 0 and {vocab_size - 1}, got {wrong}")


def check_prompt(prompt: tuple[int, ...], max_tokens: int, limits: ModelLimits) -> None:
    """Hold a prompt of tokens, and what is to follow it, to the model.

    Raises:
        RequestError: there is none, or a token that the model does not know.
        ContextTooLong: there is no room for both; says for how much there is.
    """
    if not prompt:
        raise RequestError("the prompt has no tokens", hint="write at least one word")
    needed = len(prompt) + max_tokens
    if needed > limits.context_tokens:
        room = limits.context_tokens - len(prompt)
        ask = f"ask for at most {room} tokens" if room > 0 and max_tokens else "shorten the prompt"
        raise ContextTooLong(
            f"{len(prompt)} prompt tokens and max_tokens {max_tokens} make {needed}; "
            f"{limits.model} is loaded with a context of {limits.context_tokens}",
            hint=f"{ask}, or load it with a larger --context",
        )
    if not 0 <= min(prompt) <= max(prompt) < limits.vocab_size:
        raise RequestError(
            f"token ids must be between 0 and {limits.vocab_size - 1}, got {min(prompt)} to {max(prompt)}"
        )


def check_told(num_tokens: int, num_top: int, limits: ModelLimits) -> None:
    """Hold what is to be told of given tokens to one reply.

    Raises:
        RequestError: it would not fit, with `num_top` alternatives for each of `num_tokens`.
    """
    num_bytes = num_tokens * (_TOLD_BYTES + num_top * _ALTERNATIVE_BYTES)
    if num_bytes > limits.max_reply_bytes:
        raise RequestError(
            f"log-probabilities of {num_tokens} given tokens, each with {num_top} alternatives, may take {num_bytes} "
            f"bytes; a reply has at most {limits.max_reply_bytes}",
            hint="ask for fewer alternatives, send a shorter text, or raise protocol.max_message",
        )


def check_score(message: Score) -> None:
    """Hold a request for log-probabilities to what can be seen without its tokens.

    Raises:
        RequestError: names the field and what it may be.
    """
    as_ids = bool(message.context_ids or message.continuation_ids)
    if as_ids and (message.context or message.continuation):
        raise RequestError("context and continuation must both be text, or both be token ids")
    if not (message.continuation_ids if as_ids else message.continuation):
        raise RequestError("there is no continuation to score", hint="give at least one token of it")
    if as_ids and not message.context_ids:
        raise RequestError(
            "context_ids is empty: the first token of a sequence has no probability",
            hint="begin with the token that begins a text for this model",
        )
    if not 0 <= message.top <= MAX_LOGPROBS:
        raise RequestError(f"top must be between 0 and {MAX_LOGPROBS}, got {message.top}")


def check_embed(message: Embed, limits: ModelLimits) -> None:
    """Hold a request for vectors to what can be seen without its tokens.

    Raises:
        RequestError: names the field and what it may be.
    """
    if bool(message.texts) == bool(message.token_ids):
        raise RequestError("exactly one of texts and token_ids must be given")
    num_inputs = len(message.texts) + len(message.token_ids)
    if num_inputs > limits.max_inputs:
        raise RequestError(
            f"{num_inputs} inputs were sent; the limit is {limits.max_inputs}",
            hint="send several requests, or raise batching.max_inputs",
        )
