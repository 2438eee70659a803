import asyncio

import pytest

from teengined.scheduler.events import Event, Tick
from teengined.service import event_feed
from teengined.service.event_feed import EventFeed


class Troubled(EventFeed):
    """Fails at its first tick."""

    def __init__(self) -> None:
        self.name = "m"
        self.ticks: list[Event] = []
        self.went_on = asyncio.Event()

    def advance(self, *events: Event) -> None:
        self.ticks += events
        if len(self.ticks) == 1:
            raise RuntimeError("a bug")
        self.went_on.set()


def test_a_tick_that_fails_is_told_and_not_the_last(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture):
    monkeypatch.setattr(event_feed, "_TICK_SECONDS", 0.0)

    async def story() -> list[Event]:
        model = Troubled()
        ticking = asyncio.create_task(model.tick())
        async with asyncio.timeout(20):
            await model.went_on.wait()
        ticking.cancel()
        return model.ticks

    assert asyncio.run(story())[:2] == [Tick(), Tick()]
    assert "m: a tick failed" in caplog.text
