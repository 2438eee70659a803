"""`teengine run`: ask a model once, through a pipe, or in a chat."""

import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from teengined.cli.answer import Answer, stream_answer, timing_lines
from teengined.cli.chat import Chat, Conversation, Interrupted
from teengined.cli.invocation import Invocation, Verb
from teengined.cli.loading import is_loaded, load
from teengined.cli.model_name import MODEL
from teengined.cli.progress import open_progress
from teengined.cli.prose import printable
from teengined.core.request import ChatMessage, FinishReason
from teengined.core.sampling import SamplingParams
from teengined.protocol.messages import Generate, LoadModel, PlanModel

if TYPE_CHECKING:
    from teengined.client import Client

__all__ = ["command"]

DEFAULTS = SamplingParams()


@dataclass(frozen=True, slots=True, kw_only=True)
class Asking:
    """How this run asks."""

    model: str
    sampling: SamplingParams
    raw: bool
    verbose: bool


@click.command("run", cls=Verb, short_help="Ask a model: one prompt, standard input, or a chat.")
@click.argument("model", type=MODEL)
@click.argument("prompt", required=False)
@click.option("--system", default="", metavar="TEXT", help="Who the model is to be.")
@click.option("--temperature", type=float, default=DEFAULTS.temperature, help="0, the default, is greedy.")
@click.option("--top-p", type=float, default=DEFAULTS.top_p, help="Draw from the likeliest this share.")
@click.option("--max-tokens", type=int, default=DEFAULTS.max_tokens, show_default=True, help="Longest answer.")
@click.option("--seed", type=int, default=DEFAULTS.seed, help="Fixes every draw.")
@click.option("--raw", is_flag=True, help="Give the prompt as it is, without the chat template.")
@click.option("--verbose", is_flag=True, help="Tell timings and the share of the bound after each answer.")
@click.pass_obj
def command(
    invocation: Invocation, *, model: str, prompt: str | None, system: str, raw: bool, verbose: bool, **sampling: Any
) -> None:
    """Ask MODEL, and load it first where it is not loaded.

    PROMPT is answered once; - or a pipe takes the prompt from standard input; on a terminal without PROMPT a chat
    begins. Ctrl-C stops an answer.
    """
    asking = Asking(model=model, sampling=_sampling(sampling), raw=raw, verbose=verbose)
    chats = prompt is None and sys.stdin.isatty() and sys.stdout.isatty()
    if raw and (chats or system):
        raise click.UsageError("--raw takes one prompt and no --system")
    text = "" if chats else _prompt_text(prompt)
    with invocation.client() as client:
        if not is_loaded(client, model):
            load(client, LoadModel(plan=PlanModel(model=model)), open_progress())
        if chats:
            _chat(client, asking, system)
        else:
            _ask_once(client, asking, Conversation(system=system).asked(text))


def _sampling(values: dict[str, Any]) -> SamplingParams:
    try:
        return SamplingParams(**values)
    except ValueError as error:
        raise click.UsageError(str(error)) from error


def _prompt_text(prompt: str | None) -> str:
    text = sys.stdin.read() if prompt in (None, "-") else prompt
    if not text.strip():
        raise click.UsageError("the prompt is empty")
    return text


def _ask_once(client: "Client", asking: Asking, conversation: Conversation) -> None:
    try:
        _answer(client, asking, conversation.messages)
    except Interrupted:
        sys.stdout.write("\n")
        raise KeyboardInterrupt from None
    sys.stdout.write("\n")


def _chat(client: "Client", asking: Asking, system: str) -> None:
    import readline

    readline.set_auto_history(True)  # having imported it is what gives input() editing and recall

    click.echo(f"{asking.model} is ready; /bye leaves, /? helps", err=True)
    Chat(
        answer=lambda messages: _answer(client, asking, messages),
        read_line=input,
        write=_write,
        say=lambda line: click.echo(line, err=True),
        conversation=Conversation(system=system),
    ).run()


def _answer(client: "Client", asking: Asking, messages: tuple[ChatMessage, ...]) -> Answer:
    seen: list[str] = []

    def write(text: str) -> None:
        seen.append(text)
        _write(text)

    prompt = messages[-1].content if asking.raw else None
    request = Generate(
        model=asking.model, prompt=prompt, messages=() if asking.raw else messages, sampling=asking.sampling
    )
    try:
        answer = stream_answer(client, request, write, time.monotonic)
    except KeyboardInterrupt:
        raise Interrupted("".join(seen)) from None
    _tell(answer, asking)
    return answer


def _write(text: str) -> None:
    sys.stdout.write(printable(text) if sys.stdout.isatty() else text)
    sys.stdout.flush()


def _tell(answer: Answer, asking: Asking) -> None:
    notes: list[str] = []
    if answer.finished.reason is FinishReason.LENGTH:
        notes.append(f"(cut off after {answer.finished.usage.completion_tokens} tokens; --max-tokens allows more)")
    if asking.verbose:
        notes += timing_lines(answer)
    if notes:
        sys.stdout.flush()
        click.echo("\n" + "\n".join(notes), err=True)
