import json

import pytest

from teengined.cli.main import main
from teengined.protocol import messages as wire

ITEM = wire.RequestItem(
    request_id="ab12",
    model="tiny",
    owner="uid:1000",
    client_id="evil\x1b[2J\nname",
    state="decode",
    priority=-5,
    num_choices=2,
    num_prompt_tokens=100,
    num_cached_tokens=64,
    num_emitted_tokens=7,
    max_tokens=20,
    age_seconds=3.21,
)


def run(daemon, capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main(["--endpoint", daemon.endpoint, *words])
    captured = capsys.readouterr()
    return int(str(ended.value.code)), captured.out, captured.err


@pytest.fixture
def listing(daemon):
    daemon.answer(wire.ListRequests, wire.RequestList(requests=(ITEM,)))
    return daemon


def test_requests_are_listed_without_what_could_drive_the_terminal(listing, capsys):
    _, out, _ = run(listing, capsys, "requests")

    header, row = out.splitlines()
    assert header.split() == ["ID", "MODEL", "OWNER", "NAME", "STATE", "PRIORITY", "PROMPT", "ANSWER", "AGE"]
    assert row == "ab12  tiny   uid:1000  evil[2J name  decode        -5  100 (64 cached)    7/40  3.2 s"


def test_requests_of_one_model_are_asked_for(listing, capsys):
    _, out, _ = run(listing, capsys, "requests", "ls", "--model", "tiny", "-q")

    assert out == "ab12\n"
    assert listing.asked[-1] == wire.ListRequests(model="tiny")


def test_requests_as_json_are_the_records(listing, capsys):
    _, out, _ = run(listing, capsys, "requests", "--json")

    written = json.loads(out)
    assert written["schema"] == "teengine.requests/v1"
    assert written["items"][0]["num_cached_tokens"] == 64


def test_every_request_that_is_named_is_cancelled_whatever_becomes_of_the_others(daemon, capsys):
    def answer(message: wire.Cancel) -> list[object]:
        gone = wire.ErrorReply(code="unknown_request", message="it is gone", hint="", retryable=False)
        return [gone if message.request_id == "gone" else wire.Done()]

    daemon.script[wire.Cancel] = answer

    code, out, err = run(daemon, capsys, "requests", "cancel", "one", "gone", "two")

    assert code == 4
    assert out == "cancelled one\ncancelled two\n"
    assert "it is gone" in err
    assert [message.request_id for message in daemon.asked if isinstance(message, wire.Cancel)] == [
        "one",
        "gone",
        "two",
    ]
