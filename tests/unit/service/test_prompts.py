import asyncio
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from teengined.core.errors import QueueFull
from teengined.core.request import ChatMessage, ToolCall
from teengined.protocol.messages import Generate, Score
from teengined.service.prompts import PromptReader
from teengined.service.rendering.exchange import RenderBounds
from teengined.service.text import TextCodec
from tests.fakes.byte_package import write_byte_package

LONG = "x" * 100_000
NOW = datetime(2024, 2, 29, tzinfo=UTC)


class StuckOnLong(TextCodec):
    """Reads long texts only when it is let."""

    def __init__(self, package_dir: Path) -> None:
        super().__init__(package_dir, RenderBounds(max_characters=1000))
        self.let = threading.Event()

    def encode(self, prompt: str, max_tokens: int | None = None) -> tuple[int, ...]:
        if len(prompt) > 1000:
            assert self.let.wait(20)
            return (1,)
        return super().encode(prompt, max_tokens)


@pytest.fixture
def text(tmp_path: Path) -> StuckOnLong:
    return StuckOnLong(write_byte_package(tmp_path))


def test_every_form_of_a_prompt_becomes_tokens(text: StuckOnLong):
    async def story() -> list[tuple[int, ...]]:
        reader = PromptReader(text, 100, lambda: NOW)
        chat = (ChatMessage(role="user", content="hi"),)
        forms: list[dict[str, Any]] = [{"prompt": "hi"}, {"token_ids": (7, 8)}, {"messages": chat}]
        messages = [Generate(model="m", **form) for form in forms]
        return [
            *[(await reader.read(message)).token_ids for message in messages],
            await reader.read_text("ho"),
            *await reader.read_pair(Score(model="m", context="a", continuation="b")),
            *await reader.read_pair(Score(model="m", context_ids=(1,), continuation_ids=(2,))),
        ]

    *others, context, continuation, context_ids, continuation_ids = asyncio.run(story())
    assert others == [tuple(b"hi"), (7, 8), (*b"[user]hi", 256, *b"[assistant]"), tuple(b"ho")]
    assert (context, continuation, context_ids, continuation_ids) == ((97,), (98,), (1,), (2,))


def test_long_text_delays_no_short_one(text: StuckOnLong):
    async def story() -> list[bool]:
        reader = PromptReader(text, 100, lambda: NOW)
        long = asyncio.create_task(reader.read_text(LONG))
        short = [await reader.read_text("hi") for _ in range(10)]
        before = long.done()
        text.let.set()
        return [short == [tuple(b"hi")] * 10, before, await long == (1,)]

    assert asyncio.run(story()) == [True, False, True]


def test_long_texts_that_wait_are_limited(text: StuckOnLong):
    async def story() -> None:
        reader = PromptReader(text, 100, lambda: NOW)
        waiting = [asyncio.create_task(reader.read_text(LONG)) for _ in range(17)]
        await asyncio.sleep(0)

        with pytest.raises(QueueFull, match="16 long texts"):
            await reader.read_text(LONG)

        text.let.set()
        await asyncio.gather(*waiting)

    asyncio.run(story())


class StuckOnAll(StuckOnLong):
    """Reads nothing before it is let."""

    def encode(self, prompt: str, max_tokens: int | None = None) -> tuple[int, ...]:
        assert self.let.wait(20)
        return (1,)


def test_short_texts_that_wait_are_limited(tmp_path: Path):
    text = StuckOnAll(write_byte_package(tmp_path))

    async def story() -> None:
        reader = PromptReader(text, 100, lambda: NOW)
        waiting = [asyncio.create_task(reader.read_text("hi")) for _ in range(4 + 512)]
        await asyncio.sleep(0)

        with pytest.raises(QueueFull, match="512 short texts"):
            await reader.read_text("hi")

        text.let.set()
        await asyncio.gather(*waiting)

    asyncio.run(story())


@pytest.mark.parametrize(
    "fields",
    [
        {"tools": ("{}" + " " * 100_000,)},
        {"template_options": {"a": "1" + " " * 100_000}},
        {
            "messages": (
                ChatMessage(role="user", content="hi"),
                ChatMessage(
                    role="assistant",
                    content="",
                    tool_calls=(ToolCall(id="1", name="f", arguments='{"a": "' + LONG + '"}'),),
                ),
            )
        },
    ],
)
def test_all_that_a_template_reads_makes_a_prompt_long(text: StuckOnLong, fields: dict[str, Any]):
    async def story() -> None:
        reader = PromptReader(text, 100, lambda: NOW)
        waiting = [asyncio.create_task(reader.read_text(LONG)) for _ in range(17)]
        await asyncio.sleep(0)
        chat: dict[str, Any] = {"messages": (ChatMessage(role="user", content="hi"),)}

        with pytest.raises(QueueFull, match="16 long texts"):
            await reader.read(Generate(model="m", **(chat | fields)))

        text.let.set()
        await asyncio.gather(*waiting)

    asyncio.run(story())


def test_end_of_the_prompt_is_kept_for_what_the_answer_begins_in(text: StuckOnLong):
    async def story() -> list[str]:
        reader = PromptReader(text, 500, lambda: NOW)
        chat = (ChatMessage(role="user", content="hi" * 100),)
        messages = [Generate(model="m", prompt="hi<think>"), Generate(model="m", messages=chat)]
        return [(await reader.read(message)).tail for message in messages]

    plain, rendered = asyncio.run(story())
    assert plain == "hi<think>"
    assert (len(rendered), rendered[-11:]) == (100, "[assistant]")
