"""Tokens per second with and without guessed tokens, and the same text.

    python -m benchmarks.speculation [--json] [--rounds N] [--tokens N] [--precision P] [--directory DIR]

SmolLM2-135M-Instruct in a daemon of its own: with nothing resident and reads past the page cache, so that every step
streams the whole model; the same with its int8 package as a draft model; and all of it resident, where guesses must at
least not cost. Two tasks: to repeat a text, where the prompt holds what follows, and to tell a story, where little
repeats. Each is asked with and without in turns, greedy and strict, so that the texts must be equal to the last letter;
the table shows medians over the rounds. Each deployment answers one request before, so that it knows its own times.
"""

import argparse
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from benchmarks.private_daemon import PrivateDaemon
from benchmarks.smollm2 import smollm2_package
from benchmarks.table import print_json, print_table
from teengined.client import Client
from teengined.core.device import DeviceSpec
from teengined.core.errors import InternalError
from teengined.core.request import ChatMessage, Usage
from teengined.core.sampling import SamplingParams
from teengined.protocol.messages import Finished, Generate, LoadModel, PlanModel, TokenChunk

__all__ = ["main"]

_TEXT = (
    "The harbour master walked along the quay before sunrise, counting the boats that had come in during the night. "
    "There were eleven of them, three more than the day before, and every one had its nets spread out to dry. He wrote "
    "the number into his book, underlined it twice, and went home to drink his tea."
)
_TASKS: Mapping[str, str] = {
    "repeat a text": f"Repeat this text word for word, and say nothing else:\n\n{_TEXT}",
    "tell a story": "Tell me a story about a lighthouse.",
}
_STREAMED, _DRAFTED, _RESIDENT = "streamed", "streamed-drafted", "resident"
_DRAFT = "draft"
_DEPLOYMENTS: Mapping[str, Sequence[str]] = {
    _STREAMED: tuple(_TASKS),
    _DRAFTED: ("tell a story",),
    _RESIDENT: tuple(_TASKS),
}
_WARMING = "Say one, two, three, four, five, and then the same again, and again."
_SETTINGS = '[streaming]\ndirect_io = "always"\n'
_MEMORY_BYTES = 4 << 30
_TIMEOUT_SECONDS = 600.0


@dataclass(frozen=True, slots=True)
class Told:
    """One answer."""

    text: str
    usage: Usage

    @property
    def tokens_per_second(self) -> float:
        """After the first token."""
        return (self.usage.completion_tokens - 1) / self.usage.decode_seconds


def main(arguments: Sequence[str] | None = None) -> None:
    """Ask each deployment's tasks with and without guesses, in turns, and print the table."""
    options = _options(arguments)
    directory = Path(options.directory)
    store = directory / "models"
    store.mkdir(parents=True, exist_ok=True)
    package_dir, _ = smollm2_package(store, options.precision)
    devices = [DeviceSpec(id="cpu:0", driver="cpu", memory_bytes=_MEMORY_BYTES, threads=psutil.cpu_count() or 1)]
    with PrivateDaemon(directory / "state", store, devices, _SETTINGS) as daemon:
        cases: list[dict[str, Any]] = []
        for name, tasks in _DEPLOYMENTS.items():
            _load(daemon.client, name, package_dir.name, smollm2_package(store, "int8")[0].name)
            _ask(daemon.client, name, _WARMING, options.tokens, speculate=True)
            cases += [_case(daemon.client, name, task, options) for task in tasks]
            daemon.client.unload(name)
    _print(cases)
    if options.json:
        print_json({"cases": cases, "precision": options.precision})


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object on the last line")
    parser.add_argument("--rounds", type=int, default=2, help="times each task is asked each way (default 2)")
    parser.add_argument("--tokens", type=int, default=80, help="longest answer (default 80)")
    parser.add_argument("--precision", default="bf16", help="of the package (default bf16)")
    parser.add_argument(
        "--directory",
        default=str(Path(tempfile.gettempdir()) / "teengine-benchmarks"),
        help="where the model is kept: on the disk to be measured",
    )
    return parser.parse_args(arguments)


def _load(client: Client, name: str, package: str, draft_package: str) -> None:
    """Load a deployment, and a draft model beside it where it has one."""
    if name == _DRAFTED:
        client.load(LoadModel(plan=PlanModel(model=draft_package), name=_DRAFT, verify=False))
    resident = None if name == _RESIDENT else 0.0
    plan = PlanModel(model=package, resident_fraction=resident, numerics="strict")
    client.load(LoadModel(plan=plan, name=name, verify=False, draft=_DRAFT if name == _DRAFTED else ""))


def _case(client: Client, model: str, task: str, options: argparse.Namespace) -> dict[str, Any]:
    without: list[Told] = []
    guessed: list[Told] = []
    for _ in range(options.rounds):
        without.append(_ask(client, model, _TASKS[task], options.tokens, speculate=False))
        guessed.append(_ask(client, model, _TASKS[task], options.tokens, speculate=True))
    texts = {told.text for told in (*without, *guessed)}
    if len(texts) > 1:
        raise InternalError(f"{task}: the texts differ: {sorted(texts)}")
    slow = statistics.median(told.tokens_per_second for told in without)
    fast = statistics.median(told.tokens_per_second for told in guessed)
    usage = guessed[-1].usage
    return {
        "deployment": model,
        "task": task,
        "tokens": usage.completion_tokens,
        "guessed_right": usage.accepted_tokens,
        "tokens_per_s_without": slow,
        "tokens_per_s": fast,
        "times": fast / slow,
        "streamed_bytes_per_token_without": without[-1].usage.streamed_bytes / usage.completion_tokens,
        "streamed_bytes_per_token": usage.streamed_bytes / usage.completion_tokens,
    }


def _ask(client: Client, model: str, prompt: str, num_tokens: int, *, speculate: bool) -> Told:
    request = Generate(
        model=model,
        messages=(ChatMessage(role="user", content=prompt),),
        sampling=SamplingParams(max_tokens=num_tokens),
        speculate=speculate,
        timeout_seconds=_TIMEOUT_SECONDS,
    )
    text = ""
    for event in client.generate(request):
        if isinstance(event, TokenChunk):
            text += event.text
        elif isinstance(event, Finished):
            return Told(text, event.usage)
    raise InternalError("the answer ended without its last message")


def _print(cases: Sequence[Mapping[str, Any]]) -> None:
    headers = ["DEPLOYMENT", "TASK", "TOKENS", "GUESSED", "TOK/S WITHOUT", "TOK/S", "TIMES", "STREAMED/TOKEN"]
    rows = [
        [
            case["deployment"],
            case["task"],
            str(case["tokens"]),
            str(case["guessed_right"]),
            f"{case['tokens_per_s_without']:.2f}",
            f"{case['tokens_per_s']:.2f}",
            f"{case['times']:.2f}",
            f"{case['streamed_bytes_per_token'] / 1e6:.0f} MB",
        ]
        for case in cases
    ]
    print_table(headers, rows)


if __name__ == "__main__":
    main()
