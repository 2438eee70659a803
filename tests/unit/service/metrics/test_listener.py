"""Real connections on loopback to a listener that has nothing behind it."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from teengined.core.errors import ConfigError
from teengined.service.metrics.listener import MetricsListener
from teengined.service.settings import MetricsSettings

PAGE = "thing 1\n# EOF\n"
REQUEST = b"GET /metrics HTTP/1.1\r\nHost: here\r\n\r\n"
Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


def listening(
    story: Callable[[MetricsListener], Awaitable[None]], metrics: Callable[[], str] = lambda: PAGE, **more: Any
):
    """Run a story beside a listener on a free port."""

    async def run() -> None:
        usual: dict[str, Any] = {"timeout": 20.0, "max_connections": 2}
        settings = MetricsSettings(listen="127.0.0.1:0", **usual | more)
        listener = MetricsListener(settings, metrics)
        await listener.open()
        try:
            async with asyncio.timeout(20):
                await story(listener)
        finally:
            await listener.close()

    asyncio.run(run())


async def connect(listener: MetricsListener, data: bytes = b"") -> Connection:
    reader, writer = await asyncio.open_connection("127.0.0.1", listener.port)
    writer.write(data)
    return reader, writer


async def gone(reader: asyncio.StreamReader) -> bool:
    """Wait for the end of a connection, and say whether nothing came before it."""
    try:
        return await reader.read() == b""
    except ConnectionResetError:
        return True


async def answer(listener: MetricsListener, data: bytes) -> bytes:
    """Return all that comes back; nothing where the connection is cut."""
    reader, writer = await connect(listener, data)
    try:
        return await reader.read()
    except ConnectionResetError:
        return b""
    finally:
        writer.close()


def test_page_is_served_and_the_connection_closed():
    async def story(listener: MetricsListener) -> None:
        for _ in range(5):  # More than may be there at once.
            assert (await answer(listener, REQUEST)).endswith(PAGE.encode())

    listening(story)


def test_nothing_listens_where_nothing_is_configured():
    async def story() -> None:
        listener = MetricsListener(MetricsSettings(), lambda: PAGE)
        await listener.open()
        assert listener.port == 0
        await listener.close()

    asyncio.run(story())


def test_port_that_is_taken_is_told_before_anything_is_served():
    async def story(listener: MetricsListener) -> None:
        second = MetricsListener(MetricsSettings(listen=f"127.0.0.1:{listener.port}"), lambda: PAGE)
        with pytest.raises(ConfigError, match=r"metrics\.listen: cannot listen on 127\.0\.0\.1:\d+: "):
            await second.open()

    listening(story)


def test_headers_beyond_the_bound_are_refused():
    async def story(listener: MetricsListener) -> None:
        said = await answer(listener, b"GET /metrics HTTP/1.1\r\nX: " + b"a" * 600 + b"\r\n\r\n")
        assert said == b"" or said.startswith(b"HTTP/1.1 431 ")  # It may be cut while more of it is on its way.
        assert (await answer(listener, REQUEST)).endswith(PAGE.encode())

    listening(story, max_request=256)


def test_one_who_says_nothing_is_cut_off_in_time_and_told_of_and_keeps_nobody_out(caplog: pytest.LogCaptureFixture):
    async def story(listener: MetricsListener) -> None:
        silent = [await connect(listener, b"GET /met") for _ in range(2)]
        for reader, writer in silent:
            assert await reader.read() == b""
            writer.close()
        while not (await answer(listener, REQUEST)).endswith(PAGE.encode()):
            pass  # Its place may not be free yet.

    with caplog.at_level(logging.INFO):
        listening(story, timeout=0.1)
    assert "a connection for metrics was too slow" in caplog.text


def test_one_connection_too_many_takes_the_place_of_the_oldest():
    async def story(listener: MetricsListener) -> None:
        held = [await connect(listener, b"GET") for _ in range(20)]
        for _ in range(5):
            assert (await answer(listener, REQUEST)).endswith(PAGE.encode())
        for reader, _ in held[:18]:
            assert await gone(reader)
        for _, writer in held:
            writer.transport.abort()

    listening(story)


def test_one_who_leaves_in_the_middle_is_not_missed():
    async def story(listener: MetricsListener) -> None:
        _, writer = await connect(listener, b"GET /metrics HT")
        writer.transport.abort()
        while not (page := await answer(listener, REQUEST)):
            pass  # Its place may not be free yet.
        assert page.endswith(PAGE.encode())

    listening(story, max_connections=1)


def test_one_who_does_not_read_is_cut_off_in_time():
    async def story(listener: MetricsListener) -> None:
        _, writer = await connect(listener, REQUEST)
        while not (other := await answer(listener, b"GET / HTTP/1.1\r\n\r\n")):
            pass  # The only place is not free before its time is over.
        assert other.startswith(b"HTTP/1.1 404")
        writer.transport.abort()

    listening(story, lambda: "x" * (64 << 20), max_connections=1, timeout=0.2)


def test_a_mistake_costs_one_answer_and_is_told(caplog: pytest.LogCaptureFixture):
    def broken() -> str:
        raise RuntimeError("a bug")

    async def story(listener: MetricsListener) -> None:
        assert await answer(listener, REQUEST) == b""
        assert (await answer(listener, b"GET / HTTP/1.1\r\n\r\n")).startswith(b"HTTP/1.1 404")

    listening(story, broken)

    assert "metrics could not be served" in caplog.text
