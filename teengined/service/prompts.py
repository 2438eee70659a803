"""From what a client sent to the tokens of a prompt. Tokenizers run in threads, and long texts in one of their own."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import TypeVar

from teengined.core.errors import QueueFull
from teengined.protocol.messages import Generate, Score
from teengined.service.detached_threads import DetachedThreads
from teengined.service.rendering.variables import parse_options, parse_tools
from teengined.service.text import TextCodec

__all__ = ["Prompt", "PromptReader"]

T = TypeVar("T")

# Tokenizers read a few megabytes in a second: what is longer than this takes longer than a decision may.
_LONG_CHARACTERS = 64 << 10
_NUM_SHORT_THREADS = 4
_NUM_LONG_THREADS = 1
# Texts that wait for their threads: some seconds' work. Of long ones each may be as large as the largest message.
_MAX_LONG_WAITING = 16
_MAX_SHORT_WAITING = 512
# Enough of a prompt's end to see whether the answer begins inside reasoning.
_TAIL_CHARACTERS = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """What the model reads."""

    token_ids: tuple[int, ...]
    tail: str = ""
    """The end of its text, where it was given as text."""


class PromptReader:
    """Reads the prompts of one deployment, so that one client's megabytes delay nobody's sentence."""

    def __init__(self, text: TextCodec, context_tokens: int, now: Callable[[], datetime]) -> None:
        """Take the deployment's tokenizer; prompts beyond its context are refused as soon as they are counted.

        `now` is what templates tell of the date.
        """
        self._text = text
        self._now = now
        self._context_tokens = context_tokens
        self._short = DetachedThreads(_NUM_SHORT_THREADS)
        self._long = DetachedThreads(_NUM_LONG_THREADS)

    async def read(self, message: Generate) -> Prompt:
        """Return the prompt of a request.

        Raises:
            RequestError: the model has no chat template, or it refuses these messages.
            ContextTooLong: the prompt alone is too long.
            QueueFull: too many texts wait to be read, or the template is kept busy.
        """
        if message.token_ids:
            return Prompt(token_ids=message.token_ids)
        if message.prompt is not None:
            return Prompt(token_ids=await self.read_text(message.prompt), tail=message.prompt[-_TAIL_CHARACTERS:])
        tools, options = parse_tools(message.tools), parse_options(message.template_options)

        def render() -> Prompt:
            text = self._text.render_chat(message.messages, tools, options, now=self._now())
            token_ids = self._text.encode_rendered(text, self._context_tokens)
            return Prompt(token_ids=token_ids, tail=text[-_TAIL_CHARACTERS:])

        return await self._run(_num_characters(message), render)

    async def read_text(self, content: str) -> tuple[int, ...]:
        """Return the tokens of a text. Raises as `read`."""
        return await self._run(len(content), lambda: self._text.encode(content, self._context_tokens))

    async def read_pair(self, message: Score) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return the tokens of a context and of its continuation. Raises as `read`."""
        if message.continuation_ids:
            return message.context_ids, message.continuation_ids
        context, continuation = message.context, message.continuation
        return await self._run(
            2 * len(context) + len(continuation), lambda: self._text.encode_pair(context, continuation)
        )

    async def _run(self, num_characters: int, function: Callable[[], T]) -> T:
        threads = self._short if num_characters <= _LONG_CHARACTERS else self._long
        kind, limit = ("long", _MAX_LONG_WAITING) if threads is self._long else ("short", _MAX_SHORT_WAITING)
        if threads.num_waiting >= limit:
            raise QueueFull(
                f"{threads.num_waiting} {kind} texts wait to be read already", hint="try again", retry_after_seconds=1.0
            )
        return await threads.run(function)


def _num_characters(message: Generate) -> int:
    """Return how much a template has to read."""
    num_characters = sum(map(len, message.tools)) + sum(map(len, message.template_options.values()))
    for turn in message.messages:
        num_characters += len(turn.role) + len(turn.content) + len(turn.tool_call_id)
        num_characters += sum(len(call.name) + len(call.arguments) for call in turn.tool_calls)
    return num_characters
