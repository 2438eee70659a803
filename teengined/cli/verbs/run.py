"""`teengine run`: ask a model once, through a pipe, or in a chat."""

import os
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from teengined.cli.answer import Answer, Gathered, stream_answer, timing_lines
from teengined.cli.answer_view import AnswerView
from teengined.cli.chat import Chat, Interrupted
from teengined.cli.conversation import Conversation
from teengined.cli.history import history_file
from teengined.cli.interrupts import Interrupts
from teengined.cli.invocation import Invocation, Verb
from teengined.cli.loading import load_if_absent
from teengined.cli.model_name import MODEL
from teengined.cli.placement_options import numeric_options, plan_fields
from teengined.cli.progress import open_progress
from teengined.cli.prose import printable
from teengined.cli.sampling_options import sampling_from, sampling_options
from teengined.cli.speculation_options import Speculation, speculation_options
from teengined.core.request import ChatMessage, FinishReason
from teengined.core.sampling import SamplingParams
from teengined.protocol.messages import Accepted, Generate, LoadModel, PlanModel, TokenChunk

if TYPE_CHECKING:
    from teengined.client import Client

__all__ = ["command"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Asking:
    """How this run asks, and how it shows what comes."""

    model: str
    raw: bool
    verbose: bool
    chats: bool
    has_colour: bool
    keeps_history: bool
    speculates: bool


_PLANNED = ("numerics", "kv_dtype")


@click.command("run", cls=Verb, short_help="Ask a model: one prompt, standard input, or a chat.")
@click.argument("model", type=MODEL)
@click.argument("prompt", required=False)
@click.option("--system", default="", metavar="TEXT", help="Who the model is to be.")
@sampling_options
@speculation_options
@numeric_options
@click.option("--raw", is_flag=True, help="Give the prompt as it is, without the chat template.")
@click.option("--no-history", is_flag=True, help="Neither read nor keep what is typed in chats.")
@click.option("--verbose", is_flag=True, help="Tell timings and the share of the bound after each answer.")
@click.pass_obj
def command(
    invocation: Invocation,
    *,
    model: str,
    prompt: str | None,
    system: str,
    speculation: Speculation,
    draft: str,
    **choices: Any,
) -> None:
    """Ask MODEL, and load it first where it is not loaded.

    Where it is, what only a load can settle (--draft, --numerics, --kv-dtype) must be as it was loaded.

    PROMPT is answered once; - or a pipe takes the prompt from standard input; on a terminal without PROMPT a chat
    begins. Ctrl-C stops an answer.
    """
    asking = Asking(
        model=model,
        raw=choices.pop("raw"),
        verbose=choices.pop("verbose"),
        chats=prompt is None and sys.stdin.isatty() and sys.stdout.isatty(),
        has_colour=invocation.uses_colour(sys.stdout),
        keeps_history=not choices.pop("no_history"),
        speculates=speculation != "off",
    )
    planned = {name: choices.pop(name) for name in _PLANNED}
    request = LoadModel(plan=PlanModel(model=model, **plan_fields(planned)), speculation=speculation, draft=draft)
    sampling = sampling_from(**choices)
    if asking.raw and (asking.chats or system):
        raise click.UsageError("--raw takes one prompt and no --system")
    text = "" if asking.chats else _prompt_text(prompt)
    with invocation.client() as client:
        load_if_absent(client, request, open_progress)
        if asking.chats:
            _chat(client, asking, Conversation(system=system), sampling)
        else:
            _ask_once(client, asking, Conversation(system=system).asked(text), sampling)


def _prompt_text(prompt: str | None) -> str:
    text = sys.stdin.read() if prompt in (None, "-") else prompt
    if not text.strip():
        raise click.UsageError("the prompt is empty")
    return text


def _ask_once(client: "Client", asking: Asking, conversation: Conversation, sampling: SamplingParams) -> None:
    try:
        with Interrupts() as interrupts:
            _answer(client, asking, _request(asking, conversation.messages, sampling), interrupts)
    except Interrupted:
        _write("\n")
        raise KeyboardInterrupt from None
    _write("\n")


def _chat(client: "Client", asking: Asking, conversation: Conversation, sampling: SamplingParams) -> None:
    from teengined.cli.line_editor import LineEditor

    click.echo(f"{asking.model} is ready; /bye leaves, /help helps", err=True)
    history = history_file(os.environ, Path.home()) if asking.keeps_history else None
    with Interrupts() as interrupts:

        def read_line(prompt: str) -> str:
            interrupts.open()
            try:
                return input(prompt)
            finally:
                interrupts.close()

        def answer(messages: tuple[ChatMessage, ...], chosen: SamplingParams) -> Answer:
            return _answer(client, asking, _request(asking, messages, chosen), interrupts)

        Chat(
            model=asking.model,
            answer=answer,
            read_line=LineEditor(read_line, history, _say).read,
            write=_write,
            say=_say,
            conversation=conversation,
            sampling=sampling,
        ).run()


def _answer(client: "Client", asking: Asking, request: Generate, interrupts: Interrupts) -> Answer:
    """Show an answer as it comes.

    Raises:
        Interrupted: the user stopped it, and with it the request.
    """
    seen = Gathered()
    view = AnswerView(_write, is_terminal=sys.stdout.isatty(), has_colour=asking.has_colour)

    def hear(event: Accepted | TokenChunk) -> None:
        if isinstance(event, Accepted):
            interrupts.open()
        else:
            seen.add(event)
            view.show(event)

    interrupts.hold()
    try:
        answer = stream_answer(client, request, hear, time.monotonic)
    except KeyboardInterrupt:
        raise Interrupted(seen.text) from None
    finally:
        interrupts.close()
        view.end()
    _tell(answer, asking)
    return answer


def _request(asking: Asking, messages: tuple[ChatMessage, ...], sampling: SamplingParams) -> Generate:
    request = Generate(model=asking.model, sampling=sampling, speculate=asking.speculates)
    if asking.raw:
        return replace(request, prompt=messages[-1].content)
    return replace(request, messages=messages, parse=True)


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _say(text: str) -> None:
    click.echo(printable(text), err=True)


def _tell(answer: Answer, asking: Asking) -> None:
    notes: list[str] = []
    if answer.finished.reason is FinishReason.LENGTH:
        more = "/set max_tokens" if asking.chats else "--max-tokens"
        notes.append(f"(cut off after {answer.finished.usage.completion_tokens} tokens; {more} allows more)")
    if asking.verbose:
        notes += timing_lines(answer)
    if notes:
        sys.stdout.flush()
        click.echo("\n" + "\n".join(notes), err=True)
