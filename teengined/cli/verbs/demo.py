"""`teengine demo`: a model larger than its devices, from download to answer, with nothing left behind.

What `make run` does. It shows the whole way: get and convert the model, start a private daemon whose two devices have
less memory than the model has bytes, plan, load, answer, and say how close to the hardware's bound that was.
"""

import os
import re
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from teengined.cli.answer import Answer, speed_of, stream_answer
from teengined.cli.conversion import Conversion, convert_into
from teengined.cli.invocation import Invocation, Verb
from teengined.cli.leash import ending_in_order, leash_to_parent
from teengined.cli.loading import load, progress_step
from teengined.cli.places import StorePlaces
from teengined.cli.progress import open_progress
from teengined.cli.prose import percent, printable
from teengined.core.model import ModelManifest
from teengined.core.quantities import format_bytes, format_seconds
from teengined.core.request import ChatMessage
from teengined.core.sampling import SamplingParams
from teengined.protocol.messages import Accepted, Generate, LoadModel, PlanModel, PlanReply, TokenChunk

if TYPE_CHECKING:
    from teengined.cli.demo_setting import DemoDevice
    from teengined.client import Client

__all__ = ["command"]

DEFAULT_MODEL = "smollm2"
DEFAULT_PROMPT = "Why is the sky blue? Answer in two sentences."
DEFAULT_MAX_TOKENS = 96
# Nothing is faster than its bound: beyond the noise of measuring, the bound is out of date.
ABOVE_THE_BOUND = 1.05


@dataclass(slots=True)
class Stopwatch:
    """Names the parts of the time until the first token."""

    began_seconds: float = field(default_factory=time.monotonic)
    laps: list[tuple[str, float]] = field(default_factory=list[tuple[str, float]])
    _last_seconds: float | None = None

    def lap(self, name: str, now_seconds: float | None = None) -> None:
        """End the part `name` now."""
        now = time.monotonic() if now_seconds is None else now_seconds
        self.laps.append((name, now - (self._last_seconds or self.began_seconds)))
        self._last_seconds = now

    @property
    def total_seconds(self) -> float:
        """All parts so far."""
        return sum(seconds for _, seconds in self.laps)


@click.command("demo", cls=Verb, short_help="Run a model larger than its devices, from download to answer.")
@click.argument("model", default=DEFAULT_MODEL)
@click.option("--prompt", default=DEFAULT_PROMPT, metavar="TEXT", help="What to ask.")
@click.option("--max-tokens", type=click.IntRange(min=1), default=DEFAULT_MAX_TOKENS, help="Longest answer.")
@click.option("--state-dir", type=click.Path(path_type=Path), metavar="DIR", help="Where model and measurements stay.")
@click.option("--measure", is_flag=True, help="Measure devices and disk again, as they are today.")
@click.option("--verbose", is_flag=True, help="Tell where the time until the first token went.")
@click.pass_obj
def command(invocation: Invocation, *, model: str, state_dir: Path | None, **question: Any) -> None:
    """Convert MODEL, plan it for two small devices, stream it through them, and answer a prompt.

    MODEL is an alias, ORG/NAME on the hub, a directory or a .gguf file; smollm2 by default. The second run finds the
    model and the measurements of the first. Ends everything it started, however it is ended itself.
    """
    watch = Stopwatch()
    leash_to_parent()
    with ending_in_order():
        place = (state_dir or _default_state_dir()).absolute()
        manifest = _package(model, place)
        watch.lap("model")
        _run(invocation, manifest, place, Question(**question), watch)


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What is asked, on what grounds, and how much is told."""

    prompt: str
    max_tokens: int
    measure: bool
    verbose: bool


def _default_state_dir() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "teengine" / "demo"


def _package(model: str, place: Path) -> ModelManifest:
    """Return the package's manifest, converted first where it is not there yet."""
    from teengined.modelpack.store import PackageStore

    store, name = PackageStore(place / "models"), _package_name(model)
    if name not in store.names():
        place.mkdir(parents=True, exist_ok=True)
        conversion = Conversion(reference=model, choices={"name": name})
        convert_into(StorePlaces(directory=store.root, disks=()), conversion, open_progress())
    return store.manifest(name)


def _package_name(model: str) -> str:
    """Return a name that the store takes, the same one each time."""
    tail = Path(model).name.removesuffix(".gguf")
    return re.sub(r"[^A-Za-z0-9._]+", "-", tail).strip("-._") or "model"


def _run(invocation: Invocation, manifest: ModelManifest, place: Path, question: Question, watch: Stopwatch) -> None:
    from teengined.cli.demo_setting import configuration_text, demo_devices
    from teengined.cli.private_daemon import private_daemon, runtime_directory
    from teengined.client import Client

    devices = demo_devices(manifest, sorted(os.sched_getaffinity(0)))
    _say(*_setting_lines(manifest, devices))
    with runtime_directory() as directory:
        configuration = directory / "teengined.toml"
        runtime_dir = directory / "run"
        configuration.write_text(
            configuration_text(devices, runtime_dir=runtime_dir, state_dir=place, store=place / "models")
        )
        with (
            private_daemon(configuration, directory, place / "teengined.log"),
            Client(f"ipc://{runtime_dir}/teengined.sock", timeout_seconds=invocation.timeout_seconds) as client,
        ):
            watch.lap("daemon")
            plan = _load(client, manifest.name, question, watch)
            answer = _ask(client, manifest.name, question, watch)
            _say("", *_result_lines(answer, plan, watch, verbose=question.verbose))


def _load(client: "Client", model: str, question: Question, watch: Stopwatch) -> PlanReply:
    from teengined.placement.explain import explain

    progress = open_progress()
    client.measure(question.measure, on_progress=lambda told: progress.show(progress_step(told, "")))
    progress.close()
    watch.lap("measuring")
    request = PlanModel(model=model)
    reply = client.plan(request)
    _say(*explain(reply.plan, model_bytes=reply.model_bytes), "")
    watch.lap("plan")
    load(client, LoadModel(plan=request), open_progress())
    watch.lap("load")
    return reply


def _ask(client: "Client", model: str, question: Question, watch: Stopwatch) -> Answer:
    asked_seconds = time.monotonic()
    request = Generate(
        model=model,
        messages=(ChatMessage(role="user", content=question.prompt),),
        sampling=SamplingParams(max_tokens=question.max_tokens),
    )
    _say(f"> {question.prompt}")
    answer = stream_answer(client, request, _hear, time.monotonic)
    watch.lap("first token", asked_seconds + answer.first_token_seconds)
    _say("")
    return answer


def _setting_lines(manifest: ModelManifest, devices: "tuple[DemoDevice, ...]") -> list[str]:
    total_bytes = sum(device.memory_bytes for device in devices)
    listed = " and ".join(f"{device.id} with {format_bytes(device.memory_bytes)}" for device in devices)
    return [
        f"model    {manifest.name}: {format_bytes(manifest.size_bytes)} in {manifest.precision}",
        f"devices  {listed}: together {percent(total_bytes / manifest.size_bytes)} of the model",
        "",
    ]


def _result_lines(answer: Answer, reply: PlanReply, watch: Stopwatch, *, verbose: bool) -> list[str]:
    usage = answer.finished.usage
    speed = speed_of(usage)
    lines: list[str] = []
    if speed.tokens_per_second is not None:
        reached = f"reached      {speed.tokens_per_second:.1f} tokens/s"
        if speed.share_of_bound is not None:
            bound = f"{1 / usage.bound_seconds_per_token:.1f}"
            reached += f", {percent(speed.share_of_bound)} of the bound of {bound}"
        lines.append(f"{reached}; predicted {1 / reply.plan.seconds_per_token:.1f}")
    if speed.share_of_bound is not None and speed.share_of_bound > ABOVE_THE_BOUND:
        lines.append("             the disk or the cores are faster now than when they were measured: --measure")
    streamed = speed.streamed_bytes_per_token
    lines.append(
        f"streamed     {format_bytes(streamed)} per token, {percent(streamed / reply.model_bytes)} of the model"
    )
    lines.append(f"first token  {format_seconds(watch.total_seconds)} after the start")
    if verbose:
        lines += [f"  {name:<11}{format_seconds(seconds)}" for name, seconds in watch.laps]
    return lines


def _say(*lines: str) -> None:
    sys.stdout.writelines(f"{line}\n" for line in lines)
    sys.stdout.flush()


def _hear(event: Accepted | TokenChunk) -> None:
    if isinstance(event, TokenChunk):
        _write(event.text)


def _write(text: str) -> None:
    sys.stdout.write(printable(text) if sys.stdout.isatty() else text)
    sys.stdout.flush()
