"""Who may see and stop a request, and what is done for one that cannot be taken: nothing."""

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest

from teengined.core.errors import NotAllowed, QueueFull
from teengined.protocol.messages import Cancel, Generate, ListRequests, RequestItem
from teengined.service.admission import ModelLimits
from teengined.service.handlers.generation import Generations
from teengined.service.requests import RequestTable
from teengined.service.server import Call

DAEMON_UID = 500
LIMITS = ModelLimits(
    model="m", vocab_size=10, context_tokens=100, max_choices=4, max_inputs=3, max_seconds=60.0, max_reply_bytes=10_000
)


def call_of(owner: str) -> Call:
    return Call(client=b"c", owner=owner, correlation=1, stream=lambda _: None)


class OneModel:
    """A model with one request of user 7."""

    request_limits = LIMITS

    def __init__(self) -> None:
        self.answer: Any = SimpleNamespace(request_id="r", owner="uid:7")
        self.cancelled: list[str] = []

    def cancel(self, answer: Any) -> None:
        self.cancelled.append(answer.request_id)

    def release(self, answer: Any) -> None:
        assert answer is self.answer

    def requests(self) -> tuple[RequestItem, ...]:
        counts = dict.fromkeys(
            ("priority", "num_choices", "num_prompt_tokens", "num_cached_tokens", "num_emitted_tokens", "max_tokens"), 0
        )
        item = RequestItem(
            request_id="r", model="m", owner="uid:7", client_id="", state="decode", age_seconds=1.0, **counts
        )
        return (item,)

    def check_room(self, owner: str, num_choices: int) -> None:
        raise QueueFull(f"no room for {num_choices} of {owner}")

    @property
    def context(self) -> Any:
        """Deployments with this model alone. Whatever else is asked for is missing."""
        deployments = SimpleNamespace(get=lambda _: self, models=(self,), check_open=lambda: None)
        return SimpleNamespace(deployments=deployments)


def cancel(owner: str) -> list[str]:
    model, requests = OneModel(), RequestTable()
    with requests.under_way(cast("Any", model), model.answer, b"other"):
        handlers = Generations(requests, DAEMON_UID)
        asyncio.run(handlers.cancel(model.context, call_of(owner), Cancel(request_id="r")))
    return model.cancelled


@pytest.mark.parametrize("owner", ["uid:7", "uid:0", f"uid:{DAEMON_UID}"])
def test_a_request_is_stopped_by_its_user_by_root_and_by_the_user_of_the_daemon(owner: str):
    assert cancel(owner) == ["r"]


@pytest.mark.parametrize("owner", ["uid:8", "uid:70", "client:00", ""])
def test_a_request_is_stopped_by_nobody_else(owner: str):
    with pytest.raises(NotAllowed, match="request r is another user's"):
        cancel(owner)


@pytest.mark.parametrize(("owner", "num_seen"), [("uid:7", 1), ("uid:0", 1), (f"uid:{DAEMON_UID}", 1), ("uid:8", 0)])
def test_requests_are_shown_to_those_who_may_stop_them(owner: str, num_seen: int):
    handlers = Generations(RequestTable(), DAEMON_UID)

    told = asyncio.run(handlers.list_requests(OneModel().context, call_of(owner), ListRequests()))

    assert len(told.requests) == num_seen


def test_a_request_without_room_is_refused_before_its_prompt_is_looked_at():
    handlers = Generations(RequestTable(), DAEMON_UID)

    with pytest.raises(QueueFull, match="no room for 1 of uid:7"):
        asyncio.run(handlers.generate(OneModel().context, call_of("uid:7"), Generate(model="m", prompt="hello")))
