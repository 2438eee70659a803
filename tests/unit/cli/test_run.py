"""What `run` asks for and what it writes into a pipe, with a daemon that answers from a script."""

import io
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from teengined.cli.main import main
from teengined.core.request import ChatMessage, FinishReason, Usage
from teengined.core.sampling import Grammar, GrammarKind, SamplingParams
from teengined.protocol import messages as wire
from tests.unit.cli.test_listing_verbs import DEPLOYMENT

USAGE = Usage(
    prompt_tokens=1,
    completion_tokens=1,
    prefill_seconds=0.0,
    decode_seconds=0.0,
    streamed_bytes=0,
    bound_seconds_per_token=0.0,
)
CALL = wire.ToolCallDelta(index=0, id="1", name="now", arguments="{}")


@pytest.fixture
def run(daemon, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Return a function that runs the command and returns exit code, output, errors, and the request that was sent."""
    daemon.answer(wire.ListDeployments, wire.DeploymentList(deployments=(DEPLOYMENT,)))
    daemon.answer(
        wire.Generate,
        wire.Accepted(request_id="r1", num_prompt_tokens=1, context_tokens=64),
        wire.TokenChunk(request_id="r1", sequence=0, token_ids=(1,), text="", reasoning="hm"),
        wire.TokenChunk(request_id="r1", sequence=1, token_ids=(2,), text="Yes\x1b[1m", tool_calls=(CALL,)),
        wire.Finished(request_id="r1", sequence=2, reason=FinishReason.STOP, usage=USAGE),
    )

    def invoke(*words: str, stdin: str = ""):
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        with pytest.raises(SystemExit) as ended:
            main(["--endpoint", daemon.endpoint, "run", *words])
        told = capsys.readouterr()
        asked = [message for message in daemon.asked if isinstance(message, wire.Generate)]
        return ended.value.code, told.out, told.err, asked[-1] if asked else None

    return invoke


def test_a_pipe_gets_the_answer_without_reasoning(run):
    code, out, _, asked = run("tiny", "hi", "--system", "be brief")

    assert (code, out) == (0, "Yes\x1b[1m\n[calls now {}]\n")
    assert asked.parse
    assert asked.messages == (ChatMessage(role="system", content="be brief"), ChatMessage(role="user", content="hi"))
    assert asked.sampling == SamplingParams()


def test_a_raw_prompt_is_not_taken_apart(run):
    _, _, _, asked = run("tiny", "hi", "--raw")

    assert (asked.prompt, asked.messages, asked.parse) == ("hi", (), False)


def test_every_option_reaches_the_request(run):
    numbers = ["--temperature=0.5", "--top-p=0.9", "--top-k=40", "--min-p=0.1", "--seed=7", "--max-tokens=9"]

    _, _, _, asked = run("tiny", "-", *numbers, "--stop", "END", "--stop", "the end", "--format", "json", stdin="hi")

    assert asked.messages[-1].content == "hi"
    assert asked.sampling == SamplingParams(
        temperature=0.5,
        top_p=0.9,
        top_k=40,
        min_p=0.1,
        seed=7,
        max_tokens=9,
        stop=("END", "the end"),
        grammar=Grammar(kind=GrammarKind.JSON_OBJECT),
    )


def test_a_schema_comes_from_its_file(run, tmp_path: Path):
    (tmp_path / "schema.json").write_text('{"type": "object"}')

    _, _, _, asked = run("tiny", "hi", "--format", str(tmp_path / "schema.json"))

    assert asked.sampling.grammar == Grammar(kind=GrammarKind.JSON_SCHEMA, text='{"type": "object"}')


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--format", "nowhere.json"), "error: format is json or a file with a JSON schema; 'nowhere.json'"),
        (("--min-p", "2"), "error: min_p must be between 0 and 1, got 2.0"),
        (("--stop", ""), "error: length of stop[0] must be between 1 and 256"),
        (("--raw", "--system", "x"), "error: --raw takes one prompt and no --system"),
    ],
)
def test_what_cannot_be_asked_for_is_a_wrong_use(run, words: tuple[str, ...], told: str):
    code, out, err, asked = run("tiny", "hi", *words)

    assert (code, out, asked) == (2, "", None)
    assert told in err


def test_guesses_can_be_left_out_of_an_answer(run):
    assert run("tiny", "hi")[3].speculate
    assert run("tiny", "hi", "--speculation", "lookup")[3].speculate
    assert not run("tiny", "hi", "--speculation", "off")[3].speculate


ABSENT = wire.DeploymentList(deployments=())


def loads(daemon) -> list[wire.LoadModel]:
    return [message for message in daemon.asked if isinstance(message, wire.LoadModel)]


def test_what_only_a_load_can_settle_reaches_the_load(run, daemon):
    daemon.answer(wire.ListDeployments, ABSENT)
    daemon.answer(wire.LoadModel, wire.Loaded(deployment=DEPLOYMENT, seconds=1.0))

    run("tiny", "hi", "--draft", "tinier", "--numerics", "strict", "--kv-dtype", "int8", "--speculation", "draft")

    plan = wire.PlanModel(model="tiny", numerics="strict", kv_dtype="int8")
    assert loads(daemon) == [wire.LoadModel(plan=plan, speculation="draft", draft="tinier")]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--draft", "other"), "tiny is loaded already, and tinier drafts for it, not other"),
        (("--numerics", "strict"), "it was loaded with --numerics default, not strict"),
        (("--kv-dtype", "int8", "--numerics", "strict"), "it was loaded with --kv-dtype auto, not int8"),
        (("--speculation", "lookup"), "it was loaded with --speculation auto, not lookup"),
    ],
)
def test_a_model_that_is_loaded_otherwise_is_not_asked(run, daemon, words: tuple[str, ...], told: str):
    loaded = replace(DEPLOYMENT, draft="tinier", numerics="default", kv_dtype="auto", speculation="auto")
    daemon.answer(wire.ListDeployments, wire.DeploymentList(deployments=(loaded,)))

    code, out, err, asked = run("tiny", "hi", *words)

    assert (code, out, asked) == (9, "", None)
    assert told in err
    assert "hint: `teengine unload tiny`" in err


def test_a_model_that_is_loaded_so_already_is_asked(run, daemon):
    loaded = replace(DEPLOYMENT, draft="tinier", numerics="strict", kv_dtype="auto", speculation="auto")
    daemon.answer(wire.ListDeployments, wire.DeploymentList(deployments=(loaded,)))

    code, *_ = run("tiny", "hi", "--draft", "tinier", "--numerics", "strict", "--speculation", "off")

    assert code == 0
    assert loads(daemon) == []
