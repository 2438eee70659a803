"""From what a client sent to the tokens of a prompt. Tokenizers run in threads, and long texts in one of their own."""

from collections.abc import Callable
from typing import TypeVar

from teengined.core.errors import QueueFull
from teengined.protocol.messages import Generate, Score
from teengined.service.detached_threads import DetachedThreads
from teengined.service.text import TextCodec

__all__ = ["PromptReader"]

T = TypeVar("T")

# Tokenizers read a few megabytes in a second: what is longer than this takes longer than a decision may.
_LONG_CHARACTERS = 64 << 10
_NUM_SHORT_THREADS = 4
_NUM_LONG_THREADS = 1
# Long texts that wait for their thread: some seconds' work, and up to as many times the largest message in memory.
_MAX_LONG_WAITING = 16


class PromptReader:
    """Reads the prompts of one deployment, so that one client's megabytes delay nobody's sentence."""

    def __init__(self, text: TextCodec, context_tokens: int) -> None:
        """Take the deployment's tokenizer; prompts beyond its context are refused as soon as they are counted."""
        self._text = text
        self._context_tokens = context_tokens
        self._short = DetachedThreads(_NUM_SHORT_THREADS)
        self._long = DetachedThreads(_NUM_LONG_THREADS)

    async def read(self, message: Generate) -> tuple[int, ...]:
        """Return the prompt of a request.

        Raises:
            RequestError: the model has no chat template, or it refuses these messages.
            ContextTooLong: the prompt alone is too long.
            QueueFull: too many long texts wait to be read.
        """
        text, limit = self._text, self._context_tokens
        if message.token_ids:
            return message.token_ids
        if message.prompt is not None:
            prompt = message.prompt
            return await self._run(len(prompt), lambda: text.encode(prompt, limit))
        num_characters = sum(len(turn.content) for turn in message.messages)
        return await self._run(num_characters, lambda: text.encode_chat(message.messages, limit))

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
        if threads is self._long and threads.num_waiting >= _MAX_LONG_WAITING:
            raise QueueFull(
                f"{threads.num_waiting} long texts wait to be read already", hint="try again", retry_after_seconds=1.0
            )
        return await threads.run(function)
