import json
from pathlib import Path

import pytest

from teengined.cli.main import main
from teengined.core.request import TokenLogprobs, Usage
from teengined.protocol import messages as wire
from tests.fakes.scripted_daemon import ScriptedDaemon
from tests.unit.cli.test_listing_verbs import DEPLOYMENT


def run(daemon: ScriptedDaemon, *arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["--endpoint", daemon.endpoint, "perplexity", *arguments])
    return int(ended.value.code or 0)


def script(daemon: ScriptedDaemon) -> None:
    daemon.answer(wire.ListDeployments, wire.DeploymentList(deployments=(DEPLOYMENT,)))
    usage = Usage(
        prompt_tokens=2,
        completion_tokens=0,
        prefill_seconds=0.0,
        decode_seconds=0.0,
        streamed_bytes=0,
        bound_seconds_per_token=0.0,
    )
    scored = wire.Scored(
        logprobs=(TokenLogprobs(token_id=5, logprob=-2.0),) * 2, total=-4.0, is_greedy=False, usage=usage
    )
    daemon.answer(wire.Score, scored)


def test_pieces_of_the_text_are_scored_and_their_mean_told(
    daemon: ScriptedDaemon, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script(daemon)
    (tmp_path / "text").write_text("some words\n" * 300)

    assert run(daemon, "tiny", "--text", str(tmp_path / "text"), "-o", "json") == 0

    told = json.loads(capsys.readouterr().out)
    asked = [message for message in daemon.asked if isinstance(message, wire.Score)]
    assert "".join(message.continuation for message in asked) == "some words\n" * 300
    assert told["num_tokens"] == 2 * len(asked) == 6
    assert told["perplexity"] == pytest.approx(7.389, abs=1e-3)


def test_a_text_that_is_not_there_is_an_error_that_names_it(
    daemon: ScriptedDaemon, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(daemon, "tiny", "--text", "/no/such/text") == 2
    assert "/no/such/text cannot be read" in capsys.readouterr().err


def test_an_empty_text_is_refused(daemon: ScriptedDaemon, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script(daemon)
    (tmp_path / "text").write_text(" \n")

    assert run(daemon, "tiny", "--text", str(tmp_path / "text")) == 2
    assert "no text to predict" in capsys.readouterr().err
